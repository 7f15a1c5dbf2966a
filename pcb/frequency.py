"""Frequency groups of LVIS: rare, common and frequent classes, by number of training images."""

from __future__ import annotations

from collections.abc import Sequence

GROUPS = "rcf"
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
THRESHOLDS = (10, 100)  # rare <= 10 < common <= 100 < frequent


def group(images: int, thresholds: Sequence[int] = THRESHOLDS) -> str:
    """Return the group of a class: 'r' (rare), 'c' (common) or 'f' (frequent).

    Args:
        images: Number of training images that show the class.
        thresholds: Largest number of images of a rare and of a common class.
    """
    return "r" if images <= thresholds[0] else "c" if images <= thresholds[1] else "f"
