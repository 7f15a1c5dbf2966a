"""The plug-in with torch and numpy alone, and on the oldest Python that the package allows."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imported import imported_modules

import pcb.__main__
from pcb.files import ROOT

HELPERS = ROOT / "tests/helpers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = PROJECT["tool"]["ruff"]["per-file-target-version"]


def run_with_torch_alone(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", HELPERS / "blocked.py", *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_three_losses_train_in_a_plain_loop():
    done = run_with_torch_alone(HELPERS / "torch_only.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PCB acts") == 3


def test_without_mmdetection_its_registration_says_what_is_missing(tmp_path):
    (tmp_path / "program.py").write_text("import pcb.mmdet", encoding="utf-8")
    done = run_with_torch_alone(tmp_path / "program.py")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: pcb.mmdet needs MMDetection 3.x: install it")


@pytest.mark.parametrize(
    ("verb", "package"),
    [
        (["plan"], "yaml"),
        (["status"], "yaml"),
        (["doctor"], "yaml"),
        (["reproduce"], "yaml"),
        (["train", "v05-base"], "yaml"),
        (["score", "v05-base"], "hotcoco"),
    ],
)
def test_the_command_names_a_missing_package(verb, package):
    done = run_with_torch_alone("pcb", *verb)
    error, fix = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout
    assert error.startswith(f"error: `pcb {verb[0]}` needs the package {package}, which is not")
    assert fix.startswith("fix: run `make setup` in a clone of the repository")


def test_help_needs_no_package():
    done = run_with_torch_alone("pcb", "--help")
    assert done.returncode == 0 and "check-data" in done.stdout


def test_a_bug_is_not_mistaken_for_a_missing_package():
    from pcb.cli.errors import not_installed

    assert not_installed(ImportError("cannot import name 'x' from 'numpy'"), "plan") is None
    assert not_installed(ModuleNotFoundError(name="pcb.study.typo"), "plan") is None
    assert not_installed(ModuleNotFoundError(name="numpy.typo"), "plan") is None


def test_on_an_older_python_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert pcb.__main__.main() == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error == "error: the command `pcb` needs Python 3.11 or newer, this is 3.9"
    assert fix.startswith("fix: ")


def plug_in_files() -> list[Path]:
    """The modules that the plug-in imports, and the command, which must start to say so."""
    modules = imported_modules("pcb.mmdet", "pcb.heads", "pcb.losses", "pcb.calibration")
    return sorted({*modules, ROOT / "pcb/__init__.py", ROOT / "pcb/__main__.py"})


def test_the_plug_in_keeps_to_the_oldest_python():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    files = plug_in_files()
    listed = {
        path for pattern in TARGETS for path in map(Path, expand(pattern)) if path.suffix == ".py"
    }
    assert listed == {path.relative_to(ROOT) for path in files}
    assert set(TARGETS.values()) == {f"py{oldest.replace('.', '')}"}
    ty = Path(sys.executable).with_name("ty")
    command = [ty, "check", "--python", sys.prefix, "--python-version", oldest, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout


def expand(pattern: str) -> list[str]:
    """The files of a glob with one pair of braces, relative to the repository."""
    start, _, rest = pattern.partition("{")
    inside, _, end = rest.partition("}")
    patterns = [start + name + end for name in inside.split(",")] if rest else [pattern]
    return [str(path.relative_to(ROOT)) for one in patterns for path in ROOT.glob(one)]


def test_old_syntax_that_the_type_checker_does_not_know():
    """`strict=` of zip came with 3.10, an alias such as `int | None` outside annotations too."""
    import ast

    for path in plug_in_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
                assert not node.keywords, f"{path}:{node.lineno}"
