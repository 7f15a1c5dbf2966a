"""Validation of the YAML files against workflow/schemas/, with messages that name file, key and reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT

# jsonschema imports the grammar of IRIs where Jupyter installed it, which takes seconds in every job; no schema here needs it.
GRAMMAR = "rfc3987_syntax"
blocked = GRAMMAR not in sys.modules
if blocked:
    sys.modules[GRAMMAR] = None
try:
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.exceptions import best_match
finally:
    if blocked:
        del sys.modules[GRAMMAR]

SCHEMAS = ROOT / "workflow/schemas"


@lru_cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def validate(value: dict, name: str, source: str | Path) -> None:
    """Check `value`, read from `source`, against the schema called `name`. Raises `UserError` with every fault found."""
    faults = sorted(
        validator(name).iter_errors(value), key=lambda e: list(map(str, e.absolute_path))
    )
    if faults:
        lines = [line for fault in faults for line in explain(fault)]
        raise UserError(
            f"{source}:\n  " + "\n  ".join(lines),
            f"see workflow/schemas/{name}.schema.json for what is allowed",
        )


def explain(fault: ValidationError) -> Iterator[str]:
    """One line per mistake: the key's full path, what is wrong with it, and the likely cure."""
    where = ".".join(map(str, fault.absolute_path))
    if fault.validator == "additionalProperties" and isinstance(fault.instance, dict):
        known = list(fault.schema.get("properties", {}))
        for key in (k for k in map(str, fault.instance) if k not in known):
            near = get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known keys: {', '.join(known)}"
                if known
                else fault.message
            )
            yield f"{where}.{key}: unknown key; {hint}".lstrip(".")
        return
    if fault.validator in ("oneOf", "anyOf") and fault.context:
        fault = best_match(fault.context) or fault
    message = fault.message
    if fault.validator == "type" and is_number(fault.instance):
        message += f" (YAML reads {fault.instance} as text; write it as {float(fault.instance)!r} or like 1.0e-3)"
    yield f"{where or '(top level)'}: {message}"


def is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False
