"""The confusion matrix: one update and the soft targets of a step, over the number of classes C.

256 positives, of two images (6 classes present) or each of an independently drawn class, on one CPU
thread, in CPU time. Ours works on the rows and columns of the classes present, the reference
(benchmarks/naive.py) on all C² entries.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from harness import Figure, by_turns, main
from losses import POSITIVES, draw
from naive import NaiveMatrix
from torch import Tensor

from pcb.confusion import ConfusionMatrix

SIZES = (300, 1203, 5000)


def update_and_read(matrix: ConfusionMatrix | NaiveMatrix, probs: Tensor, labels: Tensor) -> None:
    """Update a matrix and read the soft targets of the same positives."""
    matrix.update(probs, labels)
    matrix.columns(labels)


def measure(quick: bool) -> list[Figure]:
    """Time both for every number of classes."""
    torch.set_num_threads(1)
    figures = []
    for classes in SIZES[:2] if quick else SIZES:
        ours, naive = ConfusionMatrix(classes), NaiveMatrix(classes)
        for two_images in (True, False):
            g = torch.Generator().manual_seed(0)
            labels = draw(two_images, classes, g)
            probs = torch.randn(POSITIVES, classes, generator=g).softmax(dim=1)
            seconds = by_turns(
                5 if quick else 40,
                time.process_time,
                ours=partial(update_and_read, ours, probs, labels),
                naive=partial(update_and_read, naive, probs, labels),
            )
            what = f"update and targets, C={classes}, {len(labels.unique())} classes present"
            ours_ms, naive_ms = 1e3 * seconds["ours"], 1e3 * seconds["naive"]
            figures.append(Figure(what, ours_ms, naive_ms, "ms", 1))
    return figures


if __name__ == "__main__":
    main("confusion", measure)
