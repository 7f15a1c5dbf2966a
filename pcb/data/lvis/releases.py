"""What the LVIS releases contain: classes, frequency groups, images and annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """Counts of one LVIS release.

    Attributes:
        groups: Number of rare ('r'), common ('c') and frequent ('f') classes.
        sizes: Number of images and of annotations of each split.
    """

    groups: dict[str, int]
    sizes: dict[str, tuple[int, int]]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return sum(self.groups.values())


RELEASES = {
    "v0.5": Release(
        groups={"r": 454, "c": 461, "f": 315},
        sizes={"train": (57_263, 693_958), "val": (5_000, 50_763)},
    ),
    "v1.0": Release(
        groups={"r": 337, "c": 461, "f": 405},
        sizes={"train": (100_170, 1_270_141), "val": (19_809, 244_707)},
    ),
}


def version_by_classes(classes: int) -> str | None:
    """Return the release that has this number of classes, None if no release has."""
    return next((v for v, release in RELEASES.items() if release.classes == classes), None)


def matching_release(version: str, splits: Mapping[str, Mapping]) -> str | None:
    """Return `version` if the counts of train and val are those of the release, else None.

    Only results on such data are comparable with the paper.

    Args:
        version: Version of the annotation files: 'v0.5' or 'v1.0'.
        splits: `images`, `annotations` and `groups` of each split, as in the report of
            `pcb check-data`. Splits other than train and val are ignored.
    """
    release = RELEASES.get(version)
    if release is None:
        return None
    for split, size in release.sizes.items():
        counts = splits.get(split)
        if counts is None or (counts["images"], counts["annotations"]) != size:
            return None
        if counts["groups"] != release.groups:
            return None
    return version
