"""Rare, common, frequent: LVIS's groups of classes, by the number of training images that show one."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLDS = (10, 100)  # rare <= 10 < common <= 100 < frequent


def group(images: int, thresholds: Sequence[int] = THRESHOLDS) -> str:
    """'r', 'c' or 'f' of a class that so many training images show."""
    return "r" if images <= thresholds[0] else "c" if images <= thresholds[1] else "f"
