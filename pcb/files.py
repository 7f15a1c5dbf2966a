"""Files shared by several processes: atomic writes, digests, locks and temporary folders.

A file appears whole and on the disk, or not at all. What a killed process leaves behind is named
`.tmp-…`, so that `sweep` can delete it. All text is UTF-8 in every locale.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pcb.errors import UserError

# The repository or, of an installed wheel, the folder that holds the package.
ROOT = Path(__file__).resolve().parents[1]
TEMPORARY = ".tmp-"  # begins the name of a file that is being written
HASHED = re.compile(r"\.([0-9a-f]{16})\.\w+$")  # ends the name of a file of `save_hashed`
FOLDER = "pcb-tmp-"  # begins the name of a temporary folder
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


def located(path: str | Path) -> Path:
    """A path of a scale: relative to the working directory, or else to the repository."""
    path = Path(path)
    return path if path.is_absolute() or path.exists() else ROOT / path


@contextmanager
def atomic(path: str | Path, durable: bool = True) -> Generator[Path]:
    """Yield a temporary path beside `path`; move it into place on success, remove it on failure.

    Args:
        path: The file. Its folder is created where it is missing.
        durable: Wait until content and name are on the disk, so that a power failure cannot leave
            an empty file under the final name. It takes milliseconds a file, so False is for
            thousands of small files that can be made again and are checked when they are read.

    Raises:
        UserError: The folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made here rather than by its writer: with the user's umask, and only where it is new.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        if for_user := unwritable(error, path):
            raise for_user from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}{path.suffix}")


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path) -> bool:
    """Whether the content of a file of `save_hashed` matches the digest in its name."""
    digits = HASHED.search(path.name)
    return digits is not None and path.is_file() and sha256(path).startswith(digits[1])


def save_hashed(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file whose name carries a digest of its content, in place of any other of `path`.

    Args:
        path: Its name without the digest: `a.npz` becomes `a.<16 digits>.npz`.
        write: Writes the content to the path that it is given.

    Returns:
        The path of the file.
    """
    staged = _temporary_name(path)
    with atomic(staged) as temporary:
        write(temporary)
    hashed = path.with_suffix(f".{sha256(staged)[:16]}{path.suffix}")
    os.replace(staged, hashed)
    _sync(hashed.parent)
    for other in set(hashed_files(path)) - {hashed}:
        other.unlink(missing_ok=True)
    return hashed


def hashed_files(path: Path) -> list[Path]:
    """The files that `save_hashed` wrote for `path`, intact or not; usually one."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}")
    return sorted(file for file in found if HASHED.search(file.name))


def intact_files(path: Path) -> list[Path]:
    """The intact files that `save_hashed` wrote for `path`; a line names each damaged one."""
    files = {file: is_intact(file) for file in hashed_files(path)}
    for file, intact in files.items():
        if not intact:
            print(f"{file} is damaged: it is made again", flush=True)
    return [file for file, intact in files.items() if intact]


def save_npz(path: Path, **arrays: object) -> str:
    """Write arrays as npz; return the SHA-256 of the file."""
    import numpy as np  # here, so that `pcb --help` starts without it

    with atomic(path) as temporary:
        np.savez(temporary, **arrays)  # ty: ignore[invalid-argument-type] (no name is a keyword)
        return sha256(temporary)


def load_npz(path: Path, fix: str, digest: str | None = None) -> dict[str, Any]:
    """Read all arrays of an npz file, which holds a checksum of each.

    Args:
        path: The file.
        fix: What the user can do about a broken one.
        digest: SHA-256 that the file must have, if that was recorded.

    Raises:
        UserError: The file is missing, damaged, or of another digest.
    """
    import numpy as np  # here, so that `pcb --help` starts without it

    try:
        content = path.read_bytes()
        if digest and hashlib.sha256(content).hexdigest() != digest:
            raise UserError(f"{path} is damaged: its content is not what was recorded", fix)
        with np.load(io.BytesIO(content)) as file:
            return {name: file[name] for name in file.files}
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", fix) from None
    except Exception as error:  # zip and array headers that are damaged raise any of a dozen
        raise UserError(f"{path} cannot be read: {error}", fix) from error


@contextmanager
def temporary_folder(parent: str | Path | None = None) -> Generator[Path]:
    """Yield a new folder, removed at the end.

    Those of processes that were killed are removed first: a lock on each lasts as long as its
    process.

    Args:
        parent: Where it is made; None: the system's folder for temporary files.
    """
    parent = Path(parent or tempfile.gettempdir())
    for old in parent.glob(f"{FOLDER}*"):
        _remove_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try_lock(descriptor)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove a temporary folder of this user whose process has ended."""
    try:
        stat = folder.lstat()
        # A process locks its folder right after making it.
        if stat.st_uid != os.getuid() or time.time() - stat.st_ctime < 60:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if try_lock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def sweep(*folders: Path) -> int:
    """Delete the unfinished files that killed processes left below some folders.

    Only for folders in which no job works. A younger file than a minute stays: it may be of a
    command that is no job, such as `pcb plan`.

    Returns:
        Number of deleted files.
    """
    count = 0
    for path in (path for folder in folders for path in folder.rglob(f"{TEMPORARY}*")):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > 60:
                path.unlink()
                count += 1
    return count


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
    descriptor = open_lock(path)
    try:
        if not try_lock(descriptor):
            holder = (read_holder(descriptor) if record_holder else "") or "unknown process"
            busy = f"{path.parent}: another process is working on {what}: {holder}"
            if not wait:
                raise UserError(busy, fix)
            print(f"waiting: {busy}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if record_holder:
            write_holder(descriptor)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """Open a lock file for any user of the machine, under any umask of the one who made it.

    Returns:
        A descriptor, for reading alone where the file is another user's and read-only.

    Raises:
        UserError: The file cannot be created or opened.
    """
    flags = os.O_CLOEXEC
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # Without O_CREAT first: in a folder like /tmp, Linux refuses it for others' files.
            try:
                return os.open(path, os.O_RDWR | flags)
            except PermissionError:
                return os.open(path, os.O_RDONLY | flags)
            except FileNotFoundError:
                pass
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            except FileExistsError:  # another process made it just now
                continue
            os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as error:
        if for_user := unwritable(error, path):
            raise for_user from error
        raise


def read_holder(descriptor: int) -> str:
    """The process that `write_holder` wrote into a lock file; "" for none."""
    return os.pread(descriptor, 1000, 0).decode(errors="replace")


def write_holder(descriptor: int, what: str = "") -> None:
    """Write this process, its host and the time into a lock file that it holds.

    Args:
        descriptor: The lock file; nothing is written where it is open for reading only.
        what: What the process does.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    doing = f"{what}, " if what else ""
    text = f"{doing}process {os.getpid()} on {platform.node()}, since {since}"
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


@contextmanager
def registered(folder: Path, what: str) -> Generator[None]:
    """Register this process in `folder` as one that works, until it ends however it does."""
    path = folder / f"{platform.node()}-{os.getpid()}.lock"
    descriptor = open_lock(path)
    try:
        try_lock(descriptor)
        write_holder(descriptor, what)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def working(folder: Path) -> list[str]:
    """The processes that are registered in `folder` and live; entries of others are deleted."""
    living = []
    for path in sorted(folder.glob("*.lock")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has just ended
            continue
        try:
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
            else:
                living.append(read_holder(descriptor))
        finally:
            os.close(descriptor)
    return living


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
    """Write a whole text file, in UTF-8, or none."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
