"""Files shared by several processes: atomic writes and locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pcb.errors import UserError

# The repository or, of an installed wheel, the folder that holds the package.
ROOT = Path(__file__).resolve().parents[1]
FULL = {errno.ENOSPC, errno.EDQUOT}
ELSEWHERE = (
    "use another results folder: `pcb … --results FOLDER`, `snakemake … --config results=FOLDER`"
)
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, *FULL}


def unwritable(error: OSError, path: str | Path | None = None) -> UserError | None:
    """Translate a full disk or a missing write permission for the user; None for other errors."""
    if error.errno not in UNWRITABLE:
        return None
    fix = (
        "free disk space; the same command resumes from what is there"
        if error.errno in FULL
        else f"make the folder writable, or {ELSEWHERE}"
    )
    return UserError(
        f"{path or error.filename or 'a file'} could not be written: {os.strerror(error.errno)}",
        fix,
    )


@contextmanager
def atomic(path: str | Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; move it into place on success, remove it on failure.

    Raises:
        UserError: The folder cannot be written or the disk is full.
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
        if for_user := unwritable(error, path):
            raise for_user from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(
    path: Path,
    what: str,
    wait: bool = False,
    fix: str = f"wait for it, end it, or {ELSEWHERE}",
    record_holder: bool = True,
) -> Generator[None]:
    """Hold an exclusive lock on a file, which the kernel releases however the process ends.

    Args:
        path: The lock file. It and its folder are created where they are missing.
        what: Name of what is locked, for messages.
        wait: Wait for the holder, after one line on stderr, instead of raising.
        fix: What the user can do if another process holds the lock.
        record_holder: Write this process and host into the file, for the messages of others. False
            if the file itself holds data.

    Raises:
        UserError: Another process holds the lock, or the file cannot be created.
    """
    with _open_lock(path) as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            holder = (file.read() if record_holder else "") or "unknown process"
            busy = f"{path.parent}: another process is working on {what}: {holder}"
            if not wait:
                raise UserError(busy, fix)
            print(f"waiting: {busy}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        if record_holder:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}, since {since}")
            file.flush()
        yield


def _open_lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")
    except OSError as error:
        if for_user := unwritable(error, path):
            raise for_user from error
        raise


def try_lock(descriptor: int) -> bool:
    """Lock an open file exclusively, without waiting; return whether it was free.

    The lock lasts until the descriptor and its inherited copies are closed.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file or none."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
