"""`pcb download`: the files of a scale that the public offers, put where the scale's YAML expects them.

    download(study)                     # what is missing of annotations, images and weights; what is there stays
    fetch(url, path, sha256="0676ba61") # one file: resumed after a break, checked, in place whole or not at all

Addresses are in configs/downloads.yaml. A part that was loaded stays beside the file (`.NAME-….part`), so a killed download goes on
where it stopped; the part is named by the server's own mark of the version, so that two versions never mix.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import zipfile
from pathlib import Path

import yaml
from tqdm import tqdm

from pcb.errors import UserError
from pcb.files import ROOT, atomic, locked
from pcb.study import Study

ADDRESSES = "configs/downloads.yaml"
ATTEMPTS = 8  # in a row that bring nothing new
WAIT = 2.0  # seconds before the second attempt; doubled each time, at most a minute
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 16  # bytes at once; a break loses less than that
UNPACKED = 3.5  # of a zip's size, at most, for annotations; images hardly shrink
BY_HAND = (
    "LVIS v0.5 is withdrawn from lvisdataset.org. Take lvis_v0.5_train.json and lvis_v0.5_val.json from somebody who has them (many "
    "groups keep them) and put them there. v1.0 cannot stand in for them: other classes, other images"
)


def addresses() -> dict[str, dict]:
    return yaml.safe_load((ROOT / ADDRESSES).read_text())["files"]


def how_to_get(path: Path) -> str:
    """What a user does about a missing file of this name."""
    known = addresses().get(path.name)
    if known is None:
        return "download or generate it again, or mend the path in the scale's YAML"
    by_hand = f". {BY_HAND}" if "withdrawn" in known else ""
    return (
        f"run `pcb download {path.name}` with your --scale, or mend the path in its YAML{by_hand}"
    )


def wanted(scale: dict) -> dict[str, list[Path]]:
    """Names of configs/downloads.yaml -> the places where this scale expects them."""
    entries = [] if scale.get("synthetic") else scale["datasets"].values()
    places = [Path(entry[split]) for entry in entries for split in ("train", "val")]
    places += [
        Path(entry["images"]) / folder for entry in entries for folder in ("train2017", "val2017")
    ]
    places += [Path(backbone["weights"]) for backbone in scale["backbones"].values()]
    known = addresses()
    return {
        name: found
        for name in known
        if (found := list(dict.fromkeys(p for p in places if p.name == name)))
    }


def download(study: Study, names: list[str] | None = None) -> None:
    """Fetch what is missing (or those of `names` alone), the others even where one fails. Raises `UserError` that names all that failed."""
    places = wanted(study.scale)
    unknown = sorted(set(names or ()) - set(places))
    if unknown or not places:
        what = f"scale {study.scale['name']!r} needs no download" + (
            f" named {', '.join(unknown)}" if unknown else ""
        )
        raise UserError(
            what,
            f"choose of: {', '.join(places)}"
            if places
            else "its data is generated, and its weights are here",
        )
    faults = []
    for name in names or places:
        for path in places[name]:
            if path.exists():
                print(f"{path}: there already")
                continue
            try:
                provide(name, path)
                print(f"{path}: done", flush=True)
            except UserError as error:
                faults.append(error)
                print(f"{path}: failed", flush=True)
    if faults:
        raise UserError(
            "\n".join(fault.what for fault in faults),
            "\n".join(dict.fromkeys(fault.fix for fault in faults)),
        )


def provide(name: str, path: Path) -> None:
    """Fetch one entry of configs/downloads.yaml to `path`, unpacked if its address is a zip."""
    about = addresses()[name]
    digits = re.search(r"-([0-9a-f]{8})\.pth$", name)
    try:
        if not about["url"].endswith(".zip"):
            fetch(about["url"], path, sha256=digits[1] if digits else "")
            return
        archive = path.with_name(f"{name}.zip")
        if not archive.exists():
            fetch(about["url"], archive, more_space=UNPACKED if path.suffix == ".json" else 1.0)
        unpack(archive, path)
    except UserError as error:
        if "withdrawn" in about:
            raise UserError(error.what, f"{error.fix}. {BY_HAND} ({path.parent})") from error
        raise
    archive.unlink()


def fetch(
    url: str,
    path: Path,
    sha256: str = "",
    more_space: float = 0.0,
    attempts: int = ATTEMPTS,
    wait: float = WAIT,
) -> None:
    """Load `url` to `path`; go on with what an earlier, broken call left. `sha256`: the digest's first digits, or all of them.

    A connection that breaks is tried again, ever later, until `attempts` in a row brought no byte. `more_space`: what will be needed
    beyond the file, in units of its size. Raises `UserError`: no such address, no connection, no space, wrong content.
    """
    import requests  # takes a tenth of a second that no other verb should pay

    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # lengths and ranges are those of the file
        for attempt in range(first := min(attempts, 4)):
            try:
                answer = session.head(url, allow_redirects=True, timeout=TIMEOUT)
                check_status(answer, url, path)
                break
            except requests.RequestException as error:
                failed(url, error, attempt, first, wait)
        size = int(answer.headers.get("Content-Length") or -1)
        mark = hashlib.sha256(
            f"{url} {answer.headers.get('ETag', '')} {answer.headers.get('Last-Modified', '')} {size}".encode()
        )
        part = path.with_name(f".{path.name}-{mark.hexdigest()[:8]}.part")
        with locked(
            part, f"the download of {path.name}", fix="wait for it, or end it", record_holder=False
        ):
            there = part.stat().st_size
            check_space(path, size, there, more_space)
            attempt = 0
            total = size if size > 0 else None
            with tqdm(
                total=total, initial=there, unit="B", unit_scale=True, desc=path.name, mininterval=1
            ) as progress:
                while not (size > 0 and there >= size):
                    try:
                        finished = load(session, url, path, part, progress)
                    except (requests.RequestException, OSError) as error:
                        finished = False
                        attempt = 0 if part.stat().st_size > there else attempt
                        failed(url, error, attempt, attempts, wait)
                        attempt += 1
                    there = part.stat().st_size
                    if finished and size < 0:
                        break
            check_content(part, url, size, sha256)
            part.replace(path)


def load(session, url: str, path: Path, part: Path, progress: tqdm) -> bool:
    """Append to `part` what it lacks; from the start where the server cannot go on from there. True at the end of the content."""
    there = part.stat().st_size
    with session.get(
        url, headers={"Range": f"bytes={there}-"} if there else {}, stream=True, timeout=TIMEOUT
    ) as answer:
        if answer.status_code == 416:  # nothing beyond: the part is no part of this
            part.write_bytes(b"")
            raise OSError("what was loaded before is longer than the file; beginning again")
        check_status(answer, url, path)
        resumed = answer.status_code == 206
        progress.n = there if resumed else 0
        with open(part, "ab" if resumed else "wb") as file:
            for block in answer.iter_content(BLOCK):
                write(file, block, path)
                progress.update(len(block))
    return True


def write(file, block: bytes, path: Path) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror}",
            "free disk space; the same command then goes on",
        ) from error


def check_status(answer, url: str, path: Path) -> None:
    """A status that another attempt may mend raises `requests.HTTPError`; one that it cannot, `UserError`."""
    if answer.status_code >= 500 or answer.status_code in (408, 429):
        answer.raise_for_status()
    if answer.status_code >= 400:
        raise UserError(
            f"{url}: {answer.status_code} {answer.reason}",
            f"the file has moved: mend its address in {ADDRESSES}, or get it elsewhere and put it at {path}",
        )


def failed(url: str, error: Exception, attempt: int, attempts: int, wait: float) -> None:
    """Wait before the next attempt, or give up."""
    error = (
        getattr(error.args[0] if error.args else None, "reason", None) or error
    )  # of a failed connection
    if attempt + 1 >= attempts:
        raise UserError(
            f"{url}: {error} ({attempts} attempts)",
            "look at the network (a proxy? set https_proxy); what was loaded is kept, and the same command goes on",
        )
    pause = min(60.0, wait * 2**attempt)
    tqdm.write(f"{url}: {error}; attempt {attempt + 2} of {attempts} in {pause:.0f} s")
    time.sleep(pause)


def check_space(path: Path, size: int, there: int, more: float) -> None:
    needed, free = max(0, size) * (1 + more) - there, shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            "free disk space, or name another folder in the scale's YAML",
        )


def check_content(part: Path, url: str, size: int, sha256: str) -> None:
    """Length and digest; what is wrong is deleted, for it would never become right."""
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    length = part.stat().st_size
    if (size > 0 and length != size) or not digest.startswith(sha256):
        part.unlink()
        why = (
            f"{length} bytes in the place of {size}"
            if size > 0 and length != size
            else f"its sha256 is {digest[:12]}…, not {sha256}…"
        )
        raise UserError(
            f"{url}: what came is not the file: {why}",
            "run the command again; if it comes again, get the file elsewhere",
        )


def unpack(archive: Path, path: Path) -> None:
    """Take `path` (a file, or a folder with all that is in it) out of a zip, each member's CRC checked; in place whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as content:
            files = [m for m in content.infolist() if not m.is_dir()]
            if not path.suffix:
                return unpack_folder(
                    content, [m for m in files if m.filename.split("/")[0] == path.name], path
                )
            members = [m for m in files if m.filename.split("/")[-1] == path.name]
            if len(members) != 1:
                raise UserError(
                    f"{archive} holds no {path.name}",
                    f"delete it and mend its address in {ADDRESSES}",
                )
            with (
                atomic(path) as temporary,
                content.open(members[0]) as source,
                open(temporary, "wb") as target,
            ):
                shutil.copyfileobj(source, target, BLOCK)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise UserError(
            f"{archive} is damaged: {error}", "run the command again: it loads the file anew"
        ) from error


def unpack_folder(content: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path) -> None:
    if not members:
        raise UserError(
            f"{content.filename} holds no folder {path.name}",
            f"delete it and mend its address in {ADDRESSES}",
        )
    aside = path.with_name(f".{path.name}.part")
    for member in tqdm(members, desc=f"unpack {path.name}", unit="file", mininterval=1):
        target = aside / member.filename
        if not (
            target.is_file() and target.stat().st_size == member.file_size
        ):  # there from a call that was cut off
            content.extract(member, aside)
    (aside / path.name).replace(path)
    shutil.rmtree(aside)
