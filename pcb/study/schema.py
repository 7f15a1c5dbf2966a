"""Validation of the YAML files against workflow/schemas/.

What the registry knows (losses, paradigms, variants, constructor arguments) and the metrics are
not spelled in the schema files: they are added to their `$defs` here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.import_stubs import blocked
from pcb.registry import ARGUMENTS, SHIPPED, Registry
from pcb.study.study import METRICS

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

SCHEMAS = ROOT / "workflow/schemas"


def definitions(losses: tuple[str, ...]) -> dict:
    """Schemas that follow from the registry, for the `$defs` of a schema file."""
    metric = "|".join(METRICS)
    return {
        "loss": {"enum": list(losses)},
        "paradigm": {"enum": list(SHIPPED.paradigms)},
        "variant": {"enum": ["plain", "step1", "step2", *SHIPPED.calibrations]},
        "argument": {"enum": list(ARGUMENTS)},
        "metric": {"enum": list(METRICS)},
        "quantity": {"type": "string", "pattern": f"^({metric})(-({metric}))?$"},
    }


def read_schema(name: str) -> dict:
    """`workflow/schemas/<name>.schema.json`; that of an overlay shares definitions of the paper."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    if name == "overlay":
        shared = read_schema("paper")["$defs"]
        after = {"after": shared["slug"]}
        row = {**shared["row"], "properties": {**shared["row"]["properties"], **after}}
        schema["$defs"] = {**shared, "row": row}
    return schema


@lru_cache
def validator(name: str, losses: tuple[str, ...] = tuple(SHIPPED.losses)) -> Validator:
    """Validator of `workflow/schemas/<name>.schema.json`, for the losses that a study knows."""
    # Imported here: a job reads a study that has been checked. jsonschema imports the grammar of
    # IRIs where Jupyter installed it: seconds, and no schema here needs it. Tried with 4.26.
    with blocked("rfc3987_syntax"):
        from jsonschema import Draft202012Validator

    schema = read_schema(name)
    schema["$defs"] = {**schema.get("$defs", {}), **definitions(losses)}
    return Draft202012Validator(schema)


def validate(value: dict, name: str, source: str | Path, registry: Registry | None = None) -> None:
    """Check `value`, read from `source`, against the schema called `name`.

    Raises:
        UserError: With one line for every fault found.
    """
    checker = validator(name, tuple((registry or SHIPPED).losses))
    faults = sorted(checker.iter_errors(value), key=lambda e: list(map(str, e.absolute_path)))
    if faults:
        lines = [line for fault in faults for line in explain(fault)]
        raise UserError(
            f"{source}:\n  " + "\n  ".join(lines),
            f"see workflow/schemas/{name}.schema.json for what is allowed",
        )


def explain(fault: ValidationError) -> Iterator[str]:
    """One line per mistake: the full path of the key, what is wrong, and a likely fix."""
    from jsonschema.exceptions import best_match

    where = ".".join(map(str, fault.absolute_path))
    if fault.validator == "additionalProperties" and isinstance(fault.instance, dict):
        schema = fault.schema if isinstance(fault.schema, dict) else {}
        known = list(schema.get("properties", {}))
        patterns = list(schema.get("patternProperties", {}))
        for key in (k for k in map(str, fault.instance) if k not in known):
            if any(re.search(pattern, key) for pattern in patterns):
                continue
            near = get_close_matches(key, known, n=1)
            hint = fault.message
            if near:
                hint = f"did you mean {near[0]!r}?"
            elif known:
                hint = f"known keys: {', '.join(known)}"
            elif patterns:
                hint = f"keys have the form {' or '.join(patterns)}"
            yield f"{where}.{key}: unknown key; {hint}".lstrip(".")
        return
    if fault.validator in ("oneOf", "anyOf") and fault.context:
        fault = best_match(fault.context) or fault
    message = fault.message
    if fault.validator == "type" and is_number(fault.instance):
        value = float(fault.instance)
        message += f" (YAML reads {fault.instance} as text; write it as {value!r} or like 1.0e-3)"
    yield f"{where or '(top level)'}: {message}"


def is_number(value: object) -> bool:
    """Whether a text reads as a number."""
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False
