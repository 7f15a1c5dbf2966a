"""The frequency groups of a data set of a study, which are those of its training images."""

from __future__ import annotations

from pcb.data.lvis.index import LVISIndex
from pcb.study import Study


def class_groups(study: Study, dataset: str) -> list[str]:
    """The group of each class, 'r', 'c' or 'f', for every split of a data set.

    It follows from the training images by the scale's `thresholds`; without these it is what the
    training file says (`LVISIndex.frequency`).
    """
    entry = study.scale["datasets"][dataset]
    return LVISIndex(entry["train"], cache=study.paths.indices).frequency(entry.get("thresholds"))
