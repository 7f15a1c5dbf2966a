"""The one reader of the JSON records of jobs: run.json, trunk.json, detections.json, metrics.json.

    write_record(path, {"fingerprint": …, …})
    require_record(path, fingerprint, "pcb train RUN")

A record holds the `fingerprint` of the training behind it, and a digest of its own content. A
record of another configuration, or without a digest, is ignored: results of an older study are
never mistaken for those of the current one. A record that changed since it was written is an error.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT, write_json

DIGEST = "digest"  # its key in a record
REMAKE = "delete it; `snakemake --cores all` makes it again"


def write_record(path: Path, record: dict) -> None:
    """Write a record with the digest that its readers verify."""
    write_json(path, {**record, DIGEST: digest_of(record)})


def digest_of(record: dict) -> str:
    """SHA-256 of a record's values as JSON, without its own digest; 16 hexadecimal digits."""
    values = json.loads(json.dumps(record))  # as a reader sees them: every key is text
    values.pop(DIGEST, None)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(path: Path, fix: str = REMAKE) -> dict | None:
    """Read a record of any configuration, without its digest.

    Args:
        path: The record.
        fix: What the user can do about a broken one.

    Returns:
        The record, or None where the file does not exist or was not written by `write_record`.

    Raises:
        UserError: The file cannot be read, is not a JSON object or was changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", fix) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} cannot be read: it is not a JSON object", fix)
    if DIGEST not in record:
        return None
    if record.pop(DIGEST) != digest_of(record):
        raise UserError(f"{path} cannot be read: it was changed after it was written", fix)
    return record


def current_record(path: Path, fingerprint: str) -> dict | None:
    """Read a record of the configuration `fingerprint`.

    Returns:
        The record, or None where it does not exist or is of another configuration.

    Raises:
        UserError: The file cannot be read, is not a JSON object or was changed.
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
    record = read_record(path, f"run `{command}` again")
    if record is None and not path.exists():
        raise UserError(f"{path} does not exist", f"run `{command}` first")
    found = (record or {}).get("fingerprint")
    if record is None or found != fingerprint:
        raise UserError(
            f"{path} is of another configuration: fingerprint {found}, not {fingerprint}",
            f"run `{command}` again",
        )
    return record


def git() -> dict | None:
    """The commit of this code, and whether tracked files outside results/ differ from it.

    None outside of a git checkout, also of a copy that lies in another repository's.
    """

    def output(*arguments: str) -> str:
        # Without the lock `git status` leaves the user's index as it is.
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        if Path(output("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None
        changed = output("status", "--porcelain", "--untracked-files=no", "--", ":!results")
        return {"commit": output("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
