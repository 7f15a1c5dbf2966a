"""`pcb download`: fetch the public files of a scale to where its YAML expects them.

    download(study)                      # annotations, images and weights that are missing
    fetch(url, path, sha256="0676ba61")  # one file: resumed, checked, written whole or not at all

URLs are in configs/downloads.yaml. An incomplete download stays beside the file as
`.NAME-….part`, so that a killed download resumes. Its name contains a digest of the version that
the server offers, so that two versions never mix.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import yaml
from tqdm import tqdm

from pcb.errors import UserError, combined
from pcb.files import ROOT, atomic, locked
from pcb.study import Study
from pcb.study.own_data import PAPER_DATASETS

if TYPE_CHECKING:
    import requests

DOWNLOADS = "configs/downloads.yaml"
ATTEMPTS = 8  # in a row that bring no new byte
HEAD_ATTEMPTS = 4
FIRST_PAUSE = 2.0  # seconds before the second attempt; doubled each time
LONGEST_PAUSE = 60.0  # seconds
TIMEOUT = 60.0  # seconds without a byte
BLOCK_BYTES = 1 << 16  # written at once; an interruption loses less than that
UNPACKED_SIZE = 3.5  # of annotations, at most, in units of their zip's size; images hardly shrink
V05_BY_HAND = (
    "lvisdataset.org no longer offers LVIS v0.5. Get lvis_v0.5_train.json and lvis_v0.5_val.json"
    " from someone who has them (many groups keep them) and put them there. v1.0 cannot replace"
    " them: it has other classes and other images"
)


def downloads() -> dict[str, dict]:
    """Return the entries of configs/downloads.yaml, by file name."""
    return yaml.safe_load((ROOT / DOWNLOADS).read_text(encoding="utf-8"))["files"]


def missing_file_fix(path: Path) -> str:
    """Return what the user can do about a missing file: the `fix` of a `UserError`."""
    entry = downloads().get(path.name)
    if entry is None:
        return "download or generate it again, or correct its path in the scale's YAML"
    fix = f"run `pcb download {path.name}`, or correct its path in the YAML"
    return f"{fix}. {V05_BY_HAND}" if "withdrawn" in entry else fix


def expected_files(scale: dict) -> dict[str, list[Path]]:
    """Return where a scale expects the files that can be downloaded.

    Returns:
        For each name in configs/downloads.yaml that the scale needs, its paths.
    """
    entries = [
        entry
        for key, entry in scale["datasets"].items()
        if key in PAPER_DATASETS and not scale.get("synthetic")
    ]
    paths = [Path(entry[split]) for entry in entries for split in ("train", "val")]
    folders = [Path(entry["images"]) for entry in entries]
    paths += [folder / name for folder in folders for name in ("train2017", "val2017")]
    paths += [Path(backbone["weights"]) for backbone in scale["backbones"].values()]
    by_name = {
        name: list(dict.fromkeys(path for path in paths if path.name == name))
        for name in downloads()
    }
    return {name: of_name for name, of_name in by_name.items() if of_name}


def download(study: Study, names: list[str] | None = None) -> None:
    """Fetch what is missing; a failure does not stop the other files.

    Args:
        study: The study whose scale names the files.
        names: Names of configs/downloads.yaml; None: all that the scale needs.

    Raises:
        UserError: The scale needs no such file, or some could not be fetched (all are named).
    """
    expected = expected_files(study.scale)
    if not expected:
        raise UserError(
            f"scale {study.scale['name']!r} needs no download",
            "continue without it: weights are in the repository, data is generated or your own",
        )
    if unknown := sorted(set(names or ()) - set(expected)):
        raise UserError(
            f"scale {study.scale['name']!r} needs no download named {', '.join(unknown)}",
            f"choose from: {', '.join(expected)}",
        )
    faults = []
    for name in names or expected:
        for path in expected[name]:
            if path.exists():
                print(f"{path}: exists")
                continue
            try:
                fetch_entry(name, path)
                print(f"{path}: done", flush=True)
            except UserError as error:
                faults.append(error)
                print(f"{path}: failed", flush=True)
    if faults:
        raise combined(faults)


def fetch_entry(name: str, path: Path) -> None:
    """Fetch one entry of configs/downloads.yaml to `path` and unpack it if it is a zip."""
    entry = downloads()[name]
    try:
        if not entry["url"].endswith(".zip"):
            digits = re.search(r"-([0-9a-f]{8})\.pth$", name)
            fetch(entry["url"], path, sha256=digits[1] if digits else "")
            return
        archive = path.with_name(f"{name}.zip")
        if not archive.exists():
            is_json = path.suffix == ".json"
            fetch(entry["url"], archive, extra_space=UNPACKED_SIZE if is_json else 1.0)
        unpack(archive, path)
        archive.unlink()
    except UserError as error:
        if "withdrawn" in entry:
            fix = f"{error.fix}. {V05_BY_HAND} ({path.parent})"
            raise UserError(error.what, fix) from error
        raise


def fetch(
    url: str,
    path: Path,
    sha256: str = "",
    extra_space: float = 0.0,
    attempts: int = ATTEMPTS,
    pause: float = FIRST_PAUSE,
) -> None:
    """Download one file; resume what an earlier, interrupted call left.

    Args:
        url: Where it is.
        path: Where it goes.
        sha256: Its digest, or the first digits.
        extra_space: Disk space needed beyond the file, in units of its size.
        attempts: Failures in a row without a new byte after which it gives up.
        pause: Seconds before the second attempt; doubled each time.

    Raises:
        UserError: No such URL, no connection, no disk space, or wrong content.
    """
    import requests  # here: it takes 0.1 s that no other command should pay

    with requests.Session() as session:
        # Lengths and ranges must be those of the file, not of a compressed stream.
        session.headers["Accept-Encoding"] = "identity"
        size, version = _size_and_version(session, url, path, min(attempts, HEAD_ATTEMPTS), pause)
        partial = path.with_name(f".{path.name}-{version}.part")
        what, fix = f"the download of {path.name}", "wait for it, or end it"
        with locked(partial, what, fix=fix, record_holder=False):
            _check_space(path, size, partial.stat().st_size, extra_space)
            _receive_all(session, url, path, partial, size, attempts, pause)
            _check_content(partial, url, size, sha256)
            partial.replace(path)


def _size_and_version(
    session: requests.Session, url: str, path: Path, attempts: int, pause: float
) -> tuple[int | None, str]:
    """Bytes of the file (None if the server does not give them), and a digest of its version."""
    from requests import RequestException  # here: see `fetch`

    for attempt in range(attempts):
        try:
            response = session.head(url, allow_redirects=True, timeout=TIMEOUT)
            _check_status(response, url, path)
            break
        except RequestException as error:
            _pause_or_give_up(url, error, attempt, attempts, pause)
    size = int(response.headers.get("Content-Length") or -1)
    etag, modified = (response.headers.get(key, "") for key in ("ETag", "Last-Modified"))
    version = hashlib.sha256(f"{url} {etag} {modified} {size}".encode()).hexdigest()[:8]
    return (size if size > 0 else None), version


def _receive_all(
    session: requests.Session,
    url: str,
    path: Path,
    partial: Path,
    size: int | None,
    attempts: int,
    pause: float,
) -> None:
    """Append to `partial` until it is complete, over as many connections as it takes."""
    attempt, received = 0, partial.stat().st_size
    with tqdm(
        total=size, initial=received, unit="B", unit_scale=True, desc=path.name, mininterval=1
    ) as progress:
        while size is None or received < size:
            try:
                _receive(session, url, path, partial, progress)
                if size is None:
                    return
            except OSError as error:  # requests' exceptions are OSErrors
                if partial.stat().st_size > received:
                    attempt = 0
                _pause_or_give_up(url, error, attempt, attempts, pause)
                attempt += 1
            received = partial.stat().st_size


def _receive(
    session: requests.Session, url: str, path: Path, partial: Path, progress: tqdm
) -> None:
    """Append what `partial` lacks; start over if the server cannot resume."""
    received = partial.stat().st_size
    headers = {"Range": f"bytes={received}-"} if received else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # range not satisfiable
            partial.write_bytes(b"")
            raise OSError("the partial download was longer than the file; starting over")
        _check_status(response, url, path)
        resumes = response.status_code == 206
        progress.n = received if resumes else 0
        with open(partial, "ab" if resumes else "wb") as file:
            for block in response.iter_content(BLOCK_BYTES):
                _write(file, block, path)
                progress.update(len(block))


def _write(file: BinaryIO, block: bytes, path: Path) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror}",
            "free disk space; the same command then resumes",
        ) from error


def _check_status(response: requests.Response, url: str, path: Path) -> None:
    """Raise `requests.HTTPError` where another attempt may help, `UserError` where it cannot."""
    status = response.status_code
    if status >= 500 or status in (408, 429):
        response.raise_for_status()
    if status >= 400:
        raise UserError(
            f"{url}: {status} {response.reason}",
            f"the file has moved: correct its URL in {DOWNLOADS},"
            f" or get it elsewhere and put it at {path}",
        )


def _pause_or_give_up(
    url: str, error: Exception, attempt: int, attempts: int, pause: float
) -> None:
    """Wait before the next attempt; raise `UserError` after the last one."""
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None) or error  # requests wraps why a connection failed
    if attempt + 1 >= attempts:
        raise UserError(
            f"{url}: {reason} ({attempts} attempts)",
            "check the network (is there a proxy? set https_proxy);"
            " the same command resumes the download",
        ) from error
    seconds = min(LONGEST_PAUSE, pause * 2**attempt)
    tqdm.write(f"{url}: {reason}; attempt {attempt + 2} of {attempts} in {seconds:.0f} s")
    time.sleep(seconds)


def _check_space(path: Path, size: int | None, received: int, extra_space: float) -> None:
    needed = (size or 0) * (1 + extra_space) - received
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "free disk space, or name another folder in the scale's YAML",
        )


def _check_content(partial: Path, url: str, size: int | None, sha256: str) -> None:
    """Check length and digest; delete wrong content, which no resumption could repair."""
    with open(partial, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    length = partial.stat().st_size
    if size is not None and length != size:
        reason = f"{length} bytes instead of {size}"
    elif not digest.startswith(sha256):
        reason = f"its sha256 is {digest[:12]}…, not {sha256}…"
    else:
        return
    partial.unlink()
    raise UserError(
        f"{url}: the received content is not the file: {reason}",
        "run the command again; if the error repeats, get the file elsewhere",
    )


def unpack(archive: Path, path: Path) -> None:
    """Extract a file, or a folder with all its content, from a zip, whole or not at all.

    Args:
        archive: The zip. It is deleted if it is damaged (each member's CRC is checked).
        path: The file or folder to make; the zip's member has the same name.

    Raises:
        UserError: The zip is damaged or does not contain it.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            if path.suffix:
                _unpack_file(content, members, path)
            else:
                _unpack_folder(content, members, path)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise UserError(
            f"{archive} is damaged: {error}", "run the command again: it repeats the download"
        ) from error


def _unpack_file(content: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path) -> None:
    members = [member for member in members if member.filename.split("/")[-1] == path.name]
    if len(members) != 1:
        raise _not_in_archive(content, path)
    with (
        atomic(path) as temporary,
        content.open(members[0]) as source,
        open(temporary, "wb") as target,
    ):
        shutil.copyfileobj(source, target, BLOCK_BYTES)


def _unpack_folder(content: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path) -> None:
    members = [member for member in members if member.filename.split("/")[0] == path.name]
    if not members:
        raise _not_in_archive(content, path)
    partial = path.with_name(f".{path.name}.part")
    for member in tqdm(members, desc=f"unpack {path.name}", unit="file", mininterval=1):
        target = partial / member.filename
        if not target.is_file() or target.stat().st_size != member.file_size:  # else: resumed
            content.extract(member, partial)
    (partial / path.name).replace(path)
    shutil.rmtree(partial)


def _not_in_archive(content: zipfile.ZipFile, path: Path) -> UserError:
    what = f"{content.filename} does not contain {path.name}"
    return UserError(what, f"delete it and correct its URL in {DOWNLOADS}")
