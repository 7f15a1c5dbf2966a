"""What our modules import, read from their source, imports inside of functions included."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from pcb.files import ROOT


def file_of(module: str) -> Path | None:
    """The file of one of our modules."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.exists()), None)


def names_in(path: Path) -> set[str]:
    """The dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_modules(*modules: str) -> set[Path]:
    """The files of our modules, and of all of ours that these import."""
    found, rest = set(), list(modules)
    while rest:
        path = file_of(rest.pop())
        if path and path not in found:
            found.add(path)
            rest += [name for name in names_in(path) if name.partition(".")[0] == "pcb"]
    return found


def imported_packages(*modules: str) -> set[str]:
    """The packages that our modules import, the standard library and ourselves left out."""
    names = {
        name.partition(".")[0] for path in imported_modules(*modules) for name in names_in(path)
    }
    return names - set(sys.stdlib_module_names) - {"pcb"}
