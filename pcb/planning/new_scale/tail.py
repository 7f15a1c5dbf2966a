"""The tail of a data set: groups of classes, repeat factor sampling, classes that do not occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from pcb.data.lvis.annotations import examples
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.sampling import repeat_factors
from pcb.errors import UserError
from pcb.formatting import counted
from pcb.frequency import GROUPS, THRESHOLDS, group

BALANCED = 0.1  # LVIS's thresholds are kept where each group has this share of the classes


@dataclass(frozen=True)
class Tail:
    """Groups and repeats.

    Attributes:
        thresholds: Most training images of a rare and of a common class.
        written: Whether the scale states them; otherwise groups come from the train file.
        rfs_threshold: Image share below which repeat factor sampling repeats a class.
        repeats: What repeat factor sampling does at this threshold, as `pcb check-data` reports it.
        frequency: How often a class appears, against LVIS, by the thresholds.
        absent: Whether train lacks a class.
        reasons: Topic -> what was found and decided.
        warnings: What the user should know.
    """

    thresholds: tuple[int, int]
    written: bool
    rfs_threshold: float
    repeats: dict
    frequency: float
    absent: bool
    reasons: dict[str, str]
    warnings: list[str]


def long_tail(train: LVISIndex, val: LVISIndex) -> Tail:
    """Decide on groups and repeats.

    Raises:
        UserError: Train shows fewer than two classes.
    """
    counts = [count for count in train.image_count if count]
    if len(counts) < 2:
        raise UserError(
            f"{train.path} shows {len(counts)} of "
            f"{counted(len(train.classes), 'class', 'classes')}",
            "use data with two classes or more: there is nothing to balance here",
        )
    given = [category.get("frequency") or "" for category in train.categories]
    written = not all(value in tuple(GROUPS) for value in given)
    if written:
        thresholds, why = group_thresholds(counts)
        given = [group(count, thresholds) for count in train.image_count]
        rare, common = thresholds
        why = f"rare <= {rare} < common <= {common} < frequent, in training images: {why}"
    else:
        thresholds = largest_counts(train.image_count, given)
        why = "as `frequency` of the categories in the train file states"
    sizes = {g: given.count(g) for g in GROUPS}
    images = sum(map(bool, train.labels))
    threshold = rfs_threshold(thresholds[1], min(counts), images)
    repeats = repeat_factors(train.labels, threshold).summary()
    repeated = repeats["classes_repeated"]
    reasons = {
        "classes": class_text(train, val),
        "groups": why + "; {r} rare, {c} common, {f} frequent classes".format(**sizes),
        "RFS": (
            f"the threshold {threshold:g} is the image share of a class with "
            f"{counted(thresholds[1], 'training image')}, where frequent classes begin (as 0.001 "
            f"is in LVIS v1.0). It repeats {counted(repeated, 'class', 'classes')}: an epoch has "
            f"{counted(repeats['epoch'], 'image')} instead of {repeats['images']:,}"
        ),
    }
    warnings = []
    if not all(sizes.values()):
        warnings.append(
            f"a group has no class: the classes have {min(counts)} to {max(counts)} training "
            "images, which is hardly a long tail"
        )
    if not repeated:
        warnings.append("repeat factor sampling changes nothing: every image shows every class")
    frequency = sqrt(max(1, thresholds[0]) * max(1, thresholds[1]) / np.prod(THRESHOLDS))
    return Tail(
        thresholds,
        written,
        threshold,
        repeats,
        frequency,
        bool(train.absent_classes),
        reasons,
        warnings,
    )


def largest_counts(counts: Sequence[int], groups: Sequence[str]) -> tuple[int, int]:
    """Return the most training images of a rare class, and of a rare or common one."""
    rows = list(zip(counts, groups, strict=True))
    rare = max((count for count, g in rows if g == "r"), default=0)
    return rare, max((count for count, g in rows if g in "rc"), default=0)


def class_text(train: LVISIndex, val: LVISIndex) -> str:
    """Describe the number of classes, and those that one of the files does not show."""
    absent = [train.classes[label] for label in train.absent_classes]
    unscored = [val.classes[label] for label in val.absent_classes]
    text = f"{len(train.classes)}"
    if absent:
        text += f"; train has no usable object of {examples(absent)}: PCB does not wait for them"
    if unscored:
        text += f"; val has none of {examples(unscored)}: they have no AP"
    return text


def group_thresholds(counts: Sequence[int]) -> tuple[tuple[int, int], str]:
    """Choose the most training images of a rare and of a common class.

    LVIS's where each group gets a tenth of the classes, else those that make the smallest group
    as large as possible.

    Args:
        counts: Training images of the classes that train shows.

    Returns:
        The thresholds, and why.
    """
    sizes = [sum(group(count) == g for count in counts) for g in GROUPS]
    if min(sizes) >= BALANCED * len(counts):
        return THRESHOLDS, "LVIS's thresholds"
    values, numbers = np.unique(counts, return_counts=True)
    if len(values) < 3:
        first = int(values[0])
        return (first, max(int(values[-1]), first + 1)), "the classes have one or two sizes"
    below = np.cumsum(numbers)
    rare, common = np.triu_indices(len(values) - 1, 1)  # values at which rare and common end
    parts = np.stack([below[rare], below[common] - below[rare], below[-1] - below[common]])
    best = np.lexsort((parts.max(axis=0), -parts.min(axis=0)))[0]
    thresholds = int(values[rare[best]]), int(values[common[best]])
    lvis = ", ".join(map(str, sizes))
    why = f"groups of similar size (LVIS's 10 and 100 would give groups of {lvis} classes)"
    return thresholds, why


def rfs_threshold(common: int, fewest: int, images: int) -> float:
    """Choose the image share below which classes are repeated.

    Args:
        common: Most training images of a common class.
        fewest: Training images of the rarest class.
        images: Training images.
    """
    share = rounded(max(common, fewest + 1) / images)
    return min(1.0, share if share > fewest / images else (fewest + 1) / images)


def rounded(value: float) -> float:
    """A positive number with two significant digits."""
    return float(f"{value:.2g}")
