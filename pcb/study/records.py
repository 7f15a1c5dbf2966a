"""The one reader of the JSON records of jobs: run.json, trunk.json, detections.json, metrics.json.

A record holds the `fingerprint` of the training behind it. A record of another configuration is
ignored: results of an older study are never mistaken for those of the current one.
"""

from __future__ import annotations

import json
from pathlib import Path

from pcb.errors import UserError


def read_record(path: Path) -> dict | None:
    """Read a record of any configuration.

    Returns:
        The record, or None where the file does not exist.

    Raises:
        UserError: The file cannot be read or is not a JSON object.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(record, dict):
        raise _broken(path, f"it holds a {type(record).__name__}, not an object")
    return record


def current_record(path: Path, fingerprint: str) -> dict | None:
    """Read a record of the configuration `fingerprint`.

    Returns:
        The record, or None where it does not exist or is of another configuration.

    Raises:
        UserError: The file cannot be read or is not a JSON object.
    """
    record = read_record(path)
    return record if record and record.get("fingerprint") == fingerprint else None


def require_record(path: Path, fingerprint: str, command: str) -> dict:
    """Read a record of the configuration `fingerprint` that a job requires.

    Args:
        path: The record.
        fingerprint: Fingerprint of the training, `study.fingerprint(run, seed)`.
        command: The command that writes the record, for the error's fix.

    Raises:
        UserError: The record does not exist, is of another configuration or cannot be read.
    """
    record = read_record(path)
    if record is None:
        raise UserError(f"{path} does not exist", f"run `{command}` first")
    if record.get("fingerprint") != fingerprint:
        raise UserError(
            f"{path} is of another configuration: fingerprint {record.get('fingerprint')}, "
            f"not {fingerprint}",
            f"run `{command}` again",
        )
    return record


def _broken(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} cannot be read: {why}", "delete it; the next run of the workflow remakes it"
    )
