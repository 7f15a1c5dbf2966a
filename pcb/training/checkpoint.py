"""Checkpoints that a crash cannot corrupt: a file's name carries the digest of its content.

`iter00000400.<sha256>.pth` is written to a temporary file, synced and then renamed.
`Checkpoints.newest` returns the last one whose content matches its name. Files are read with
`weights_only=True`, so that one with code in it is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from pcb.errors import UserError
from pcb.files import atomic, is_intact, sha256

# What a later job reads of a checkpoint; the rest is about the training: times, hardware.
LEFT = ("iter", "state_dict", "optimizer", "schedulers")
NAME = re.compile(r"(\w+)\.([0-9a-f]{16})\.pth")


def save(path: str | Path, state: dict) -> None:
    """Write `state` (tensors and plain values) as a whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(serialise(state).getbuffer())


def serialise(state: dict) -> io.BytesIO:
    """Return `state` in torch's file format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer


def save_hashed(folder: str | Path, stem: str, state: dict) -> Path:
    """Write `state` as `<stem>.<first 16 digits of its sha256>.pth` and return that path."""
    buffer = serialise(state)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    path = Path(folder) / f"{stem}.{digest[:16]}.pth"
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path


def load(path: str | Path, map_location="cpu", fix: str = "") -> dict:
    """Read tensors and plain values, whose checksums are verified.

    Args:
        path: The file.
        map_location: Device of the tensors.
        fix: What the user can do about a damaged file; "": delete it.

    Raises:
        UserError: The file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint",
            "give the path of an existing file, or run the job that writes it",
        )
    error_if_damaged = damaged(path, fix) if fix else damaged(path)
    if not has_valid_checksums(path):
        raise error_if_damaged
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, "
            "so that reading it could run code",
            "use a file that holds a plain state dict",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise error_if_damaged from error
    if not isinstance(state, dict):
        raise UserError(
            f"{path} holds a {type(state).__name__}, not a dictionary of weights",
            "use a file that holds a plain state dict",
        )
    return state


def has_valid_checksums(path: Path) -> bool:
    """Whether each part of a file of torch matches its checksum, which torch does not verify.

    True for a file of torch before 1.6, which has none.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return not file.read(4).startswith(b"PK")
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # a damaged zip raises any of a dozen
        return False


def load_recorded(path: str | Path, digest: str, fix: str) -> dict:
    """Load a file whose sha256 is recorded. Raises `UserError` as `load`, or if it differs."""
    if Path(path).exists() and sha256(path) != digest:
        raise damaged(path, fix)
    return load(path, fix=fix)


def damaged(
    path: str | Path, fix: str = "delete it; the job that wrote it writes a new one"
) -> UserError:
    """Return the error for a file whose content is not what was written."""
    return UserError(f"{path} is damaged: its content is not what was written", fix)


def digest_of(state: dict) -> str:
    """SHA-256 of what a training leaves to others, without its times: equal trainings agree.

    That is the weights and, of a state to resume from, optimiser, schedulers and iteration.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):
                digest.update(f"{key!r}:".encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} values\n".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r}\n".encode())

    add({key: state[key] for key in LEFT if key in state})
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints in a training's work folder.

    The last few are kept for resuming, named ones until they are replaced.

    Args:
        folder: The work folder.
        keep: How many to keep for resuming.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """Return the checkpoints to resume from, oldest first."""
        return sorted(p for p in self.folder.glob("iter*.pth") if NAME.fullmatch(p.name))

    def save(self, state: dict, iteration: int) -> Path:
        """Save the state after `iteration` iterations; delete all but the last `keep`."""
        path = save_hashed(self.folder, f"iter{iteration:08d}", state)
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self, log: Callable[[str], None] = print) -> dict | None:
        """Load the last intact checkpoint; None if there is none.

        Skips damaged ones with a line to `log`, and deletes temporary files of a killed process.
        """
        for path in self.folder.glob(".*.pth"):
            path.unlink(missing_ok=True)
        for path in reversed(self.files()):
            if is_intact(path):
                return load(path)
            log(f"{path} is damaged (an interrupted write?): using the checkpoint before it")
        return None

    def save_named(self, stem: str, state: dict) -> Path:
        """Save `state` as the only checkpoint of that name; delete those to resume from."""
        path = save_hashed(self.folder, stem, state)
        for old in set(self.folder.glob(f"{stem}.*.pth")) - {path}:
            old.unlink(missing_ok=True)
        self.clear()
        return path

    def load_named(self, stem: str, log: Callable[[str], None] = print) -> tuple[Path, dict] | None:
        """Load what `save_named` saved; None, with a line to `log`, if it is damaged.

        Returns:
            Path and content, or None.
        """
        for path in self.folder.glob(f"{stem}.*.pth"):
            if NAME.fullmatch(path.name):
                if is_intact(path):
                    return path, load(path)
                log(f"{path} is damaged: repeating the training that led to it")
        return None

    def clear(self) -> None:
        """Delete the checkpoints to resume from."""
        for path in self.files():
            path.unlink(missing_ok=True)
