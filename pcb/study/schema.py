"""Validation of the YAML files against workflow/schemas/, with messages that name file, key and reason."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from jsonschema import Draft202012Validator

from pcb.errors import UserError

SCHEMAS = Path(__file__).resolve().parents[2] / "workflow/schemas"


@lru_cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def validate(value: dict, name: str, source: Path) -> None:
    """Check `value`, read from `source`, against the schema called `name`. Raises `UserError` with every fault found."""
    faults = sorted(validator(name).iter_errors(value), key=lambda e: list(map(str, e.absolute_path)))
    if faults:
        lines = [f"{'.'.join(map(str, e.absolute_path)) or '(top level)'}: {e.message}" for e in faults]
        raise UserError(f"{source}:\n  " + "\n  ".join(lines), f"see workflow/schemas/{name}.schema.json for what is allowed")
