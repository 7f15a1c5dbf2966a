"""Repeat factor sampling (RFS): how often each image is shown in an epoch, as `ClassBalancedDataset` does it.

    f(c) = share of the training images that contain class c
    r(c) = max(1, sqrt(t / f(c)))          r(I) = max of r(c) over the classes of image I
    image I is shown ceil(r(I)) times in an epoch

Training itself uses mmengine's `ClassBalancedDataset`; this module gives the numbers to reports and checks.
Images without a usable annotation are not training images: they neither count in f(c) nor shift any factor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RepeatFactors:
    """classes: r(c) of each class that occurs.   images: r(I) of each training image, in the data set's order."""

    threshold: float
    classes: dict[int, float]
    images: list[float]

    @property
    def repeats(self) -> list[int]:
        return [math.ceil(factor) for factor in self.images]

    def summary(self) -> dict:
        """What a run's record tells: how many images an epoch has, and how strongly classes are repeated."""
        above = sum(factor > 1 for factor in self.classes.values())
        return {
            "threshold": self.threshold,
            "images": len(self.images),
            "epoch": sum(self.repeats),
            "classes_repeated": above,
            "largest": max(self.images, default=1.0),
        }


def repeat_factors(labels: Sequence[Collection[int]], threshold: float) -> RepeatFactors:
    """Factors of images with the given labels (`LVISIndex.labels`); images without labels are left out first."""
    kept = [set(image) for image in labels if image]
    counts = Counter(label for image in kept for label in image)
    classes = {
        label: max(1.0, math.sqrt(threshold * len(kept) / count))
        for label, count in sorted(counts.items())
    }
    return RepeatFactors(
        threshold, classes, [max(classes[label] for label in image) for image in kept]
    )
