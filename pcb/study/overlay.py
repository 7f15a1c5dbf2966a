"""A study of one's own: a YAML file laid over configs/paper.yaml, which stays as it is.

It adds losses, experiments, rows, tables and claims. docs/adding-a-row.md shows both uses.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pcb.errors import UserError
from pcb.registry import SHIPPED, Loss, Option, Registry

KEYS = ("losses", "experiments", "tables", "claims")


def extend(paper: dict, overlay: dict, source: Path) -> dict:
    """Lay the study in `overlay`, read from the file `source`, over the shipped `paper`.

    Returns:
        The paper's mapping with what the overlay adds. Classes of losses are resolved to absolute
        paths and carry the digest of their file, so that an edit of the code trains again.

    Raises:
        UserError: A key that an overlay cannot have, a name that is taken, a file that is missing.
    """
    for key in overlay:
        if key not in KEYS:
            raise UserError(
                f"{source}: {key}: an overlay cannot change this", f"use {', '.join(KEYS)}"
            )
    out = dict(paper)
    out["losses"] = {k: resolve(v, k, source) for k, v in (overlay.get("losses") or {}).items()}
    out["experiments"] = dict(paper["experiments"])
    for key, spec in (overlay.get("experiments") or {}).items():
        if key in paper["experiments"]:
            raise UserError(
                f"{source}: experiments.{key}: this experiment is shipped",
                "leave it out: rows may name it as it is",
            )
        out["experiments"][key] = spec
    out["tables"] = dict(paper["tables"])
    for key, spec in (overlay.get("tables") or {}).items():
        shipped = paper["tables"].get(key)
        out["tables"][key] = add_rows(shipped, spec, f"{source}: tables.{key}") if shipped else spec
    out["claims"] = [*paper.get("claims", []), *(overlay.get("claims") or [])]
    return out


def add_rows(table: dict, changes: object, where: str) -> dict:
    """Add the rows of `changes` to a shipped table, each at the end or `after` the row it names."""
    if not isinstance(changes, dict) or set(changes) != {"rows"}:
        raise UserError(f"{where}: of a shipped table only `rows` can be added to", "give `rows`")
    rows = list(table["rows"])
    for row in changes["rows"]:
        row = dict(row)
        after = row.pop("after", rows[-1]["id"])
        ids = [other["id"] for other in rows]
        if after not in ids:
            raise UserError(f"{where}: no row {after!r}", f"choose one of: {', '.join(ids)}")
        rows.insert(ids.index(after) + 1, row)
    return {**table, "rows": rows}


def resolve(spec: object, name: str, source: Path) -> object:
    """Make the file of a loss's class absolute, and add its digest."""
    if not isinstance(spec, dict) or not isinstance(spec.get("class"), str):
        return spec  # for the schema to refuse
    file, _, cls = spec["class"].rpartition(":")
    if not file.endswith(".py"):
        return spec
    path = (source.parent / file).resolve()
    if not path.is_file():
        raise UserError(
            f"{source}: losses.{name}.class: {path} does not exist",
            "write it as file.py:Class, with the path of the file from this YAML file",
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {**spec, "class": f"{path}:{cls}", "sha256": digest}


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
