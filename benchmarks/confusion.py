"""The confusion matrix: one update and the soft targets of a step, ours beside the dense formulation, as the number of classes grows.

256 positives, of two images (6 classes present) or each of a class drawn by itself, on one CPU thread. Ours works on the rows and columns
of the classes present; benchmarks/naive.py on all C². Seconds are of the CPU.
"""

from __future__ import annotations

import time

import torch
from harness import Figure, by_turns, main
from losses import POSITIVES, draw
from naive import NaiveMatrix

from pcb.confusion import ConfusionMatrix

SIZES = (300, 1203, 5000)


def measure(quick: bool) -> list[Figure]:
    torch.set_num_threads(1)
    figures = []
    for classes in SIZES[:2] if quick else SIZES:
        ours, naive = ConfusionMatrix(classes), NaiveMatrix(classes)
        for two_images in (True, False):
            g = torch.Generator().manual_seed(0)
            labels, probs = (
                draw(two_images, classes, g),
                torch.randn(POSITIVES, classes, generator=g).softmax(dim=1),
            )

            def of_ours(ours=ours, labels=labels, probs=probs):
                ours.update(probs, labels)
                ours.columns(labels)

            def of_naive(naive=naive, labels=labels, probs=probs):
                naive.update(probs, labels)
                naive.targets(labels)

            seconds = by_turns(5 if quick else 40, time.process_time, ours=of_ours, naive=of_naive)
            figures.append(
                Figure(
                    f"update and targets, C={classes}, {len(labels.unique())} classes present",
                    1e3 * seconds["ours"],
                    1e3 * seconds["naive"],
                    "ms",
                    1,
                )
            )
    return figures


if __name__ == "__main__":
    main("confusion", measure)
