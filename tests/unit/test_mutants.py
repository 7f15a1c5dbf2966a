"""Generated mutants change one thing of a line and leave valid Python."""

import ast
import sys

from pcb.files import ROOT

sys.path.insert(0, str(ROOT / "tests/manual"))
import mutants  # a script, not a module of a package

SOURCE = '''"""Text with 1 < 2."""
def choose(a: dict[str, 1], b=2):
    assert a < 3
    if a.ready:
        a.close()
    return "ä" if a <= b and True else f"{a + 1}" + str(a * (b))
def largest(x):
    return x.max(axis=-1) if not x.empty else max(x, default=0.5)
'''
CLOSE, RETURN, LARGEST = (SOURCE.splitlines()[i] for i in (4, 5, 7))
EXPECTED = {
    "def choose(a: dict[str, 1], b=3):",
    "    if not (a.ready):",
    "        pass",
    RETURN.replace("<=", "<"),
    RETURN.replace("and", "or"),
    RETURN.replace("True", "False"),
    RETURN.replace("if a <= b and True", "if not (a <= b and True)"),
    RETURN.replace('" + str', '" - str'),
    RETURN.replace("a * (b)", "a / (b)"),
    LARGEST.replace("x.max", "x.min"),
    LARGEST.replace("-1", "(1)"),
    LARGEST.replace("-1", "-2"),
    LARGEST.replace("not x.empty", "(x.empty)"),
    LARGEST.replace("not x.empty", "not (not x.empty)"),
    LARGEST.replace("max(x", "min(x"),
    LARGEST.replace("0.5", "1.5"),
}


def test_each_mutant_changes_one_thing(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    found = list(mutants.mutants_of("a.py", "tests"))
    assert {mutant.new for mutant in found} == EXPECTED and len(found) == len(EXPECTED)
    for mutant in found:
        changed = mutant.apply(SOURCE)
        ast.parse(changed)
        differing = zip(changed.splitlines(), SOURCE.splitlines(), strict=True)
        assert sum(a != b for a, b in differing) == 1


def test_every_mutant_of_the_package_is_valid_python():
    for file in mutants.AREAS:
        source = (ROOT / file).read_text(encoding="utf-8")
        for mutant in mutants.mutants_of(file, ""):
            ast.parse(mutant.apply(source))


def test_modules_and_tests_of_every_area_exist():
    for module, tests in mutants.AREAS.items():
        assert (ROOT / module).is_file(), module
        for name in tests.split():
            assert (ROOT / f"tests/unit/test_{name}.py").is_file(), name
    assert mutants.generated(30, 1) == mutants.generated(30, 1)
    areas = len(mutants.AREAS)
    assert len({mutant.file for mutant in mutants.generated(areas, 1)}) == areas
