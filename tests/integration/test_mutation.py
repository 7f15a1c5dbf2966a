"""The mutation script in a small repository: what is killed, what survives, where it goes on."""

import json
import shutil
import subprocess
import sys

import pytest

from pcb.files import ROOT

MODULE = '''"""A module."""
def double(x):
    y = 0  # not used
    return x * 2
'''
TESTS = """from pcb.area import double

def test_nothing():
    pass

def test_double():
    assert double(3) == 6
"""


def mutant(old, new, test="tests/test_area.py"):
    return {"file": "pcb/area.py", "old": old, "new": new, "test": test}


MUTANTS = [
    mutant("x * 2", "x / 2"),
    mutant("y = 0", "y = 1"),
    mutant("x * 3", "x / 3"),
    mutant("x * 2", "x ** 2", "tests/test_gone.py"),
    mutant("# not used", "# unused"),
]


@pytest.fixture
def repository(tmp_path):
    files = {"pcb/__init__.py": "", "pcb/area.py": MODULE, "tests/test_area.py": TESTS}
    equal = {**mutant("# not used", "# unused"), "reason": "a comment"}
    files["tests/manual/mutants.json"] = json.dumps(MUTANTS)
    files["tests/manual/mutants-equivalent.json"] = json.dumps([equal])
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "tests/manual/mutants.py", tmp_path / "tests/manual")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def outcomes(repository) -> tuple[str, list[tuple[str, str | None]]]:
    command = [sys.executable, "tests/manual/mutants.py", "--out", "found.json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # not all are killed
    found = json.loads((repository / "found.json").read_text(encoding="utf-8"))["mutants"]
    return done.stdout, [(entry["status"], entry.get("by")) for entry in found]


def test_a_mutant_is_killed_by_the_test_that_fails(repository):
    printed, found = outcomes(repository)
    killed, survived, broken = ("killed", "tests/test_area.py::test_double"), "survived", "broken"
    kinds = [killed, (survived, None), ("stale", None), (broken, None)]
    assert found == [*kinds, ("equivalent", None)]
    assert "| pcb/area.py | 5 | 1 | 1 | 1 | 50 % |" in printed
    assert (repository / "pcb/area.py").read_text(encoding="utf-8") == MODULE
    # A second run keeps what was killed, and tries survivors again.
    constants = (
        "\ndef test_constants():\n    assert double(1) and 1 not in double.__code__.co_consts\n"
    )
    (repository / "tests/test_area.py").write_text(TESTS + constants, encoding="utf-8")
    printed, found = outcomes(repository)
    assert found[:2] == [killed, ("killed", "tests/test_area.py::test_constants")]
