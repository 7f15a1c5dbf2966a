"""What the user says about the data, and where the files go."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study.load import SCALES

DETECTORS = ROOT / "configs/mmdet"
MARK = "Written by `pcb new-scale`"  # in each file, so that --force replaces no other


@dataclass(frozen=True)
class Own:
    """What the user says about the data.

    Attributes:
        train, val, images: Annotation files and image folder.
        dev: Annotation file of the split on which NorCal's γ is chosen.
        name: Name of the scale and of the data set.
        title: Its name on pages; "": `name`.
        format: `coco` or `lvis`; None: as the files show.
        device: `cpu` or `cuda`.
        gpus: GPUs of a training on cuda.
        epochs: Epochs; None: by the size of the data.
        weights: ImageNet weights of ResNet-50 on cuda.
        out: The YAML file to write; None: NAME.yaml under configs/scale/.
    """

    train: str
    val: str
    images: str
    dev: str | None = None
    name: str = "mine"
    title: str = ""
    format: str | None = None
    device: str = "cpu"
    gpus: int = 1
    epochs: int | None = None
    weights: str = "data/weights/resnet50-0676ba61.pth"
    out: str | None = None

    @property
    def dataset(self) -> str:
        """The key of the data set, which is part of the names of its experiments."""
        return re.sub("[^a-z0-9]", "", self.name)

    @property
    def scale_file(self) -> Path:
        """The YAML file to write."""
        return Path(self.out).expanduser() if self.out else SCALES / f"{self.name}.yaml"

    @property
    def scale_option(self) -> str:
        """The scale as `--scale` takes it."""
        return self.out or self.name

    @property
    def files(self) -> dict[str, str]:
        """The files of the data set, as its entry in the scale names them."""
        paths = {"train": self.train, "val": self.val, "dev": self.dev, "images": self.images}
        return {key: path for key, path in paths.items() if path is not None}

    @property
    def entry(self) -> dict[str, str | None]:
        """The data set's entry in the scale, without groups."""
        return {**self.files, "format": self.format, "title": self.title or self.name}


def check_name(own: Own) -> None:
    """Raise `UserError` where the scale or its data set cannot have the name.

    Nor may it be the name of a shipped scale or detector, also where --out names another folder:
    results are in a folder of the scale's name.
    """
    if not re.fullmatch("[a-z][a-z0-9_-]*", own.name) or own.dataset in ("pretrain", "v05", "v1"):
        raise UserError(
            f"{own.name!r} cannot be the name of a scale",
            "use small letters, digits, - and _, beginning with a letter (not v05, v1, pretrain)",
        )
    for path in (SCALES / f"{own.name}.yaml", DETECTORS / f"{own.name}.py"):
        if path.exists() and not is_written_here(path):
            raise UserError(
                f"{own.name!r} cannot be the name of a scale: {path} exists and was not written by "
                "`pcb new-scale`",
                "choose another --name",
            )
    if own.out and not own.out.endswith((".yaml", ".yml")):
        raise UserError(f"{own.out} is not the name of a YAML file", "let it end with .yaml")


def refuse_existing(own: Own, paths: Iterable[Path], force: bool) -> None:
    """Check that files may be written.

    Args:
        own: What the user said.
        paths: The files.
        force: Whether files that `pcb new-scale` wrote may be replaced.

    Raises:
        UserError: A file exists.
    """
    option = "--out" if own.out else "--name"
    for path in paths:
        if not path.exists():
            continue
        other = f"choose another {option}"
        if not is_written_here(path):
            raise UserError(f"{path} exists and was not written by `pcb new-scale`", other)
        if not force:
            raise UserError(f"{path} exists", f"{other}, or add --force to replace it")


def is_written_here(path: Path) -> bool:
    """Whether a file that exists was written by `pcb new-scale`."""
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")
