"""Statistics of a file's federated labels, beside those measured on LVIS.

An image of LVIS is annotated for a few classes only: those in it, and some that were verified to be
absent, its negative categories. A detection of any other class is ignored in scoring. So the
number of negative categories decides how many false positives count.

    federated_statistics(LVISIndex("results/mini/data/v05/val.json")), LVIS_SAMPLE
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pcb.data.lvis.index import LVISIndex
from pcb.frequency import GROUPS

# `federated_statistics` of 100 images of LVIS v0.5 val, a file of the LVIS API's repository
# (github.com/lvis-dataset/lvis-api, data/lvis_val_100.json). The look-alikes are those of
# emoji-LVIS's 188 class names: 2 of 172 negative categories are in the cluster of a class that the
# image shows (1.2 %). If absence were independent of what an image shows, 3.0 % would be.
LVIS_SAMPLE = {
    "images": 100,
    "classes": 1230,
    "present": 2.99,
    "negative": 9.42,
    "negative_deviation": 3.72,
    "not_exhaustive": 0.16,
    "negative_share": {"r": 0.00355, "c": 0.00957, "f": 0.01079},
    "lookalikes": 0.012,
}


def federated_statistics(
    index: LVISIndex,
    cluster: Mapping[str, str] | None = None,
    groups: Sequence[str] | None = None,
) -> dict:
    """Count what the images of an annotation file are labelled for.

    Args:
        index: The annotation file.
        cluster: Class name -> cluster of look-alikes; classes that are in none may be missing.
        groups: `r`, `c` or `f` of each class; None: what the file says of itself.

    Returns:
        Of the file: `images`, `classes`. Means over images of the number of classes with a usable
        annotation (`present`), of negative categories (`negative`; `negative_deviation` is their
        standard deviation) and of those not labelled exhaustively (`not_exhaustive`).
        `negative_share`: for each frequency group, the mean share of images of which a class is a
        negative category. With `cluster` also `lookalikes`: among negative categories in any
        cluster, the share whose cluster the image shows.
    """
    negative = index.listed_categories("neg_category_ids")
    partial = index.listed_categories("not_exhaustive_category_ids")
    present = index.labels
    of_class = np.array(groups or index.frequency())
    labels = np.array([i - 1 for ids in negative for i in ids], int)
    counts = np.bincount(labels, minlength=len(of_class))
    sizes = list(map(len, negative))
    statistics: dict = {
        "images": len(index),
        "classes": len(of_class),
        "present": float(np.mean(list(map(len, present)))),
        "negative": float(np.mean(sizes)),
        "negative_deviation": float(np.std(sizes)),
        "not_exhaustive": float(np.mean(list(map(len, partial)))),
        "negative_share": {
            group: float(counts[of_class == group].mean() / len(index))
            if group in of_class
            else None
            for group in GROUPS
        },
    }
    if cluster is not None:
        of_label = [cluster.get(name) for name in index.classes]
        is_lookalike = [
            of_label[i - 1] in {of_label[label] for label in shown}
            for ids, shown in zip(negative, present, strict=True)
            for i in ids
            if of_label[i - 1] is not None
        ]
        statistics["lookalikes"] = float(np.mean(is_lookalike)) if is_lookalike else 0.0
    return statistics
