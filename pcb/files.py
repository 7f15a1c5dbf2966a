"""Files that several processes share: a result is there whole or not at all, and a folder has one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pcb.errors import UserError

ROOT = (
    Path(__file__).resolve().parents[1]
)  # the repository; of an installed wheel, the folder that holds the package
FULL = {errno.ENOSPC, errno.EDQUOT}
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, *FULL}


def unwritable(error: OSError, path: str | Path | None = None) -> UserError | None:
    """What a user is told of a full disk or a folder without the right to write; None of any other error."""
    if error.errno not in UNWRITABLE:
        return None
    fix = (
        "free disk space; the same command goes on from what is there"
        if error.errno in FULL
        else "make the folder writable, or choose another: --config results=FOLDER"
    )
    return UserError(
        f"{path or error.filename or 'a file'} could not be written: {os.strerror(error.errno)}",
        fix,
    )


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place on success, remove it on failure.

    Raises `UserError` where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if told := unwritable(error, path):
            raise told from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which the kernel gives back however the process ends. Raises `UserError` that names who has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{path.parent}: another process is working on {what}: {lock.read() or 'it does not say who'}",
                "wait for it, end it, or work in another results folder: --config results=FOLDER",
            ) from None
        lock.truncate(0)
        lock.write(
            f"process {os.getpid()} on {platform.node()}, since {datetime.now(UTC).isoformat(timespec='seconds')}"
        )
        lock.flush()
        yield


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
