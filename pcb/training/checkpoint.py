"""Checkpoints that a crash cannot spoil: the name carries the sha256 of the content.

`iter00000400.<sha256>.pth` is written beside its place, synced, then moved there; `Checkpoints.newest` is the last one
whose content is what its name says. Everything is read with `weights_only=True`: a file that holds code is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from pathlib import Path

import torch

from pcb.errors import UserError
from pcb.files import atomic

NAME = re.compile(r"(\w+)\.([0-9a-f]{16})\.pth")


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: str | Path, content: bytes | memoryview) -> None:
    """Write a whole file or none, on the disk before its name is."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def save(path: str | Path, state: dict) -> None:
    """Write `state` (tensors and plain values), whole or not at all."""
    write(path, packed(state).getbuffer())


def packed(state: dict) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer


def store(folder: str | Path, stem: str, state: dict) -> Path:
    """Write `state` (tensors and plain values) as `<stem>.<sha256>.pth`; the name has the digest's first 16 digits."""
    buffer = packed(state)
    path = Path(folder) / f"{stem}.{hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]}.pth"
    write(path, buffer.getbuffer())
    return path


def good(path: Path) -> bool:
    """Whether the content of a file that `store` wrote is what its name says."""
    return sha256(path).startswith(NAME.fullmatch(path.name)[2])


def load(path: str | Path, map_location="cpu") -> dict:
    """Read tensors and plain values. Raises `UserError` where the file is missing, damaged, or holds anything else."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint",
            "give the path of an existing file, or run the job that writes it",
        )
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, so that reading it could run code",
            "use a file that holds a plain state dict",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise damaged(path) from error
    if not isinstance(state, dict):
        raise UserError(
            f"{path} holds a {type(state).__name__}, not a dictionary of weights",
            "use a file that holds a plain state dict",
        )
    return state


def load_recorded(path: str | Path, digest: str) -> dict:
    """As `load`, of a file whose sha256 is on record."""
    if Path(path).exists() and sha256(path) != digest:
        raise damaged(path)
    return load(path)


def damaged(path: str | Path) -> UserError:
    return UserError(
        f"{path} is damaged: its content is not what was written",
        "delete it; the job that wrote it makes it anew",
    )


class Checkpoints:
    """The checkpoints in one training's work folder: the last `keep` to go on from, and named ones that stay."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """What `save` wrote and still keeps, oldest first."""
        return sorted(p for p in self.folder.glob("iter*.pth") if NAME.fullmatch(p.name))

    def save(self, state: dict, iteration: int) -> Path:
        """Write the state after so many iterations, then drop all but the last `keep`."""
        path = store(self.folder, f"iter{iteration:08d}", state)
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self, say=print) -> dict | None:
        """The last good checkpoint, or None. A torn one is named through `say` and passed over; what a killed process was writing goes."""
        for path in self.folder.glob(".*.pth"):
            path.unlink(missing_ok=True)
        for path in reversed(self.files()):
            if good(path):
                return load(path)
            say(
                f"{path} is damaged (an interrupted write?): falling back to the checkpoint before it"
            )
        return None

    def keep_as(self, stem: str, state: dict) -> Path:
        """Store `state` as the one checkpoint of that name, and drop what `save` keeps: this stretch of training is over."""
        path = store(self.folder, stem, state)
        for old in set(self.folder.glob(f"{stem}.*.pth")) - {path}:
            old.unlink(missing_ok=True)
        self.clear()
        return path

    def kept(self, stem: str, say=print) -> tuple[Path, dict] | None:
        """(path, content) of what `keep_as` stored under that name, or None where there is nothing good; a damaged one is named."""
        for path in self.folder.glob(f"{stem}.*.pth"):
            if NAME.fullmatch(path.name):
                if good(path):
                    return path, load(path)
                say(f"{path} is damaged: what led to it is done anew")
        return None

    def clear(self) -> None:
        """Drop what `save` keeps."""
        for path in self.files():
            path.unlink(missing_ok=True)
