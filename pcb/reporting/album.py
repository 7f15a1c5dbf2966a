"""A gathered page of pictures, as its notebook loads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pcb.errors import UserError
from pcb.reporting import tables


@dataclass(frozen=True)
class Album:
    """What `pcb gather` wrote for a page of pictures, and where it lies."""

    about: dict
    path: Path


def load(gathered: str | Path) -> Album:
    """Read a page's gathered JSON. Raises `UserError` when there is none, or when it cannot be read."""
    path = tables.located(gathered)
    try:
        return Album(json.loads(path.read_text()), path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist", f"make it with `snakemake --cores all {path.stem}`"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read: {error}",
            f"delete it and run `snakemake --cores all {path.stem}`",
        ) from error
