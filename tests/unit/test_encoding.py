"""Text is UTF-8 in every locale."""

import ast
import os
import subprocess
import sys

import pytest

from pcb.files import ROOT

FOLDERS = ("pcb", "workflow", "tools", "benchmarks", "configs")
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def opens_text_without_encoding(call):
    """Whether a call reads or writes text in the encoding of the locale."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":  # of a Path; ours takes a path and a text
        return isinstance(call.func, ast.Attribute) and len(call.args) == 1
    if name in ("open", "fdopen") and isinstance(call.func, ast.Name):
        mode = call.args[1] if len(call.args) > 1 else named.get("mode", ast.Constant("r"))
        return "b" not in ast.unparse(mode)
    return ast.unparse(named.get("text", ast.Constant(False))) == "True"


def test_every_text_file_and_process_has_an_encoding():
    found = []
    for path in [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens_text_without_encoding(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    "command",
    [
        ["pcb", "--help"],
        ["pcb", "plan", "table05"],
        ["pcb", "gather", "table05"],
        ["pcb", "site"],
        ["snakemake", "-n", "table05"],
    ],
    ids=" ".join,
)
def test_a_command_works_in_a_locale_that_is_ascii_only(command, tmp_path):
    scale = {
        "pcb": ["--scale", "smoke", "--results", str(tmp_path / "größe")],
        "snakemake": ["--config", "scale=smoke", f"results={tmp_path}"],
    }
    options = [] if "--help" in command else scale[command[0]]
    result = subprocess.run(
        [sys.executable, "-m", *command, *options],
        cwd=ROOT,
        env={**os.environ, **LOCALE},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
