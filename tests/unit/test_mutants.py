"""Generated mutants change one operator or constant of a line and leave valid Python."""

import ast
import sys

from pcb.files import ROOT

sys.path.insert(0, str(ROOT / "tests/manual"))
import mutants  # a script, not a module of a package

SOURCE = '''"""Text with 1 < 2."""
def choose(a, b=2):
    return "ä" if a <= b and True else f"{a + 1}" + str(a * (b))
'''


def test_each_mutant_changes_one_operator_or_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    found = list(mutants.mutants_of("a.py", "tests"))
    last = SOURCE.splitlines()[2]
    expected = {
        "def choose(a, b=3):",
        last.replace("<=", "<"),
        last.replace("and", "or"),
        last.replace("True", "False"),
        last.replace('" + str', '" - str'),
        last.replace("a * (b)", "a / (b)"),
    }
    assert {mutant.new for mutant in found} == expected and len(found) == len(expected)
    for mutant in found:
        changed = mutant.apply(SOURCE)
        ast.parse(changed)
        differing = zip(changed.splitlines(), SOURCE.splitlines(), strict=True)
        assert sum(a != b for a, b in differing) == 1


def test_modules_and_tests_of_every_area_exist():
    for module, tests in mutants.AREAS.items():
        assert (ROOT / module).is_file() and (ROOT / tests).is_file(), module
    assert mutants.generated(30, 1) == mutants.generated(30, 1)
    assert len({mutant.file for mutant in mutants.generated(len(mutants.AREAS), 1)}) == 20
