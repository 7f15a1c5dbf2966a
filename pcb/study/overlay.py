"""Overlays: a YAML file with your own study, laid over configs/paper.yaml, which stays unchanged.

It adds losses, experiments, rows, tables and claims; see docs/adding-a-row.md.
"""

from __future__ import annotations

import ast
import hashlib
from importlib.util import find_spec
from pathlib import Path

from pcb.errors import UserError, choose
from pcb.registry import SHIPPED, Loss, Option, Registry

KEYS = ("losses", "experiments", "tables", "claims")


def check_names(overlay: dict, source: Path) -> None:
    """An overlay has the keys of `KEYS`, and its losses have names of their own.

    Raises:
        UserError: Naming the first that is not so.
    """
    for key in overlay:
        if key not in KEYS:
            raise UserError(
                f"{source}: {key}: an overlay cannot change this", f"use {', '.join(KEYS)}"
            )
    for name in overlay.get("losses", {}):
        if name in SHIPPED.losses:
            raise UserError(
                f"{source}: losses: {name!r} is one of the shipped losses", "choose another name"
            )


def extend(paper: dict, overlay: dict, source: Path) -> dict:
    """Lay the study in `overlay`, read from the file `source`, over the shipped `paper`.

    Returns:
        The paper's mapping with what the overlay adds. Classes of losses are resolved to absolute
        paths and carry the digest of their file, so that an edit of the code trains again.

    Raises:
        UserError: An experiment is already shipped, a row follows an unknown row, or the file of a
            loss is missing or does not define its class.
    """
    out = dict(paper)
    out["losses"] = {k: resolve(v, k, source) for k, v in overlay.get("losses", {}).items()}
    out["experiments"] = dict(paper["experiments"])
    for key, spec in overlay.get("experiments", {}).items():
        if key in paper["experiments"]:
            raise UserError(
                f"{source}: experiments.{key}: this experiment is shipped",
                "leave it out: rows may name it as it is",
            )
        out["experiments"][key] = spec
    out["tables"] = dict(paper["tables"])
    for key, spec in overlay.get("tables", {}).items():
        shipped = paper["tables"].get(key)
        where = f"{source}: tables.{key}"
        out["tables"][key] = add_rows(shipped, spec, where) if shipped else new_table(spec, where)
    out["claims"] = [*paper.get("claims", []), *overlay.get("claims", [])]
    return out


def add_rows(table: dict, changes: dict, where: str) -> dict:
    """Add the rows of `changes` to a shipped table, each at the end or `after` the row it names."""
    if set(changes) != {"rows"}:
        raise UserError(
            f"{where}: an overlay can only add `rows` to a shipped table", "give `rows`"
        )
    rows = list(table["rows"])
    for row in changes["rows"]:
        row = dict(row)
        after = row.pop("after", rows[-1]["id"])
        ids = [other["id"] for other in rows]
        if after not in ids:
            raise UserError(f"{where}: no row {after!r}", choose(after, ids))
        rows.insert(ids.index(after) + 1, row)
    return {**table, "rows": rows}


def new_table(table: dict, where: str) -> dict:
    """A table of the overlay's own, whose rows are in the order in which they are written."""
    for number, row in enumerate(table.get("rows", [])):
        if "after" in row:
            raise UserError(
                f"{where}.rows.{number}: `after` places a row in a shipped table; this table is "
                "new",
                "leave out `after` and write the rows in their order",
            )
    return table


def module_file(name: str) -> Path | None:
    """The file of a module, found without importing it or its packages; None where it is none."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    for folder in map(Path, spec.submodule_search_locations):
        stem = folder.joinpath(*rest)
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if path.is_file():
                return path
    return None


def resolve(spec: dict, name: str, source: Path) -> dict:
    """Make the file of a loss's class absolute, and add the digest of its file or module.

    The file is parsed, not imported, so that a slip in it is found before anything runs.
    """
    file, _, cls = spec["class"].rpartition(":")
    where = f"{source}: losses.{name}.class:"
    fix = "write it as file.py:Class, with the path of the file from this YAML file"
    if not file.endswith(".py"):
        path = module_file(file)
        if path is None:
            raise UserError(f"{where} there is no module {file!r}", f"install it, or {fix}")
        code = path.read_bytes()
        names = top_level_names(ast.parse(code, str(path)))
        if cls not in names and "*" not in names:
            raise UserError(f"{where} {path} has no class {cls!r}", "correct the name of the class")
        return {**spec, "sha256": hashlib.sha256(code).hexdigest()}
    path = (source.parent / file).resolve()
    if not path.is_file():
        raise UserError(f"{where} {path} does not exist", fix)
    code = path.read_bytes()
    try:
        tree = ast.parse(code, str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{where} {path} is not valid Python: {error}", "correct it") from error
    if cls not in top_level_names(tree):
        raise UserError(f"{where} {path} has no class {cls!r}", fix)
    digest = hashlib.sha256(code).hexdigest()
    return {**spec, "class": f"{path}:{cls}", "sha256": digest}


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that a module defines, imports or assigns, also within `if` and `try`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def registry_of(losses: dict) -> Registry:
    """The shipped registry with the losses of an overlay."""
    added = {
        name: Loss(
            spec["class"],
            spec.get("title", name),
            takes=tuple(spec.get("takes", ())),
            options={
                key: Option(tuple(values), from_start=True)
                for key, values in spec.get("options", {}).items()
            },
        )
        for name, spec in losses.items()
    }
    return SHIPPED.with_losses(added)
