"""Repeat factor sampling (RFS): how often each training image is shown in an epoch.

    f(c) = share of the training images that show class c
    r(c) = max(1, sqrt(t / f(c)))          r(I) = max of r(c) over the classes of image I
    image I is shown ceil(r(I)) times in an epoch

Source: LVIS (Gupta et al., CVPR 2019). Training uses mmengine's `ClassBalancedDataset`; this module
computes the same numbers for checks and reports. Images without a usable annotation are not
training images: they do not count in f(c).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RepeatFactors:
    """Repeat factors of a training split.

    Attributes:
        threshold: t above.
        classes: r(c) of each class that occurs, by label.
        images: r(I) of each training image, in the order of the data set.
    """

    threshold: float
    classes: dict[int, float]
    images: list[float]

    @property
    def repeats(self) -> list[int]:
        """How often each training image is shown in an epoch."""
        return [math.ceil(factor) for factor in self.images]

    def summary(self) -> dict:
        """Return the numbers for a report: images of the split and of an epoch, largest factor."""
        return {
            "threshold": self.threshold,
            "images": len(self.images),
            "epoch": sum(self.repeats),
            "classes_repeated": sum(factor > 1 for factor in self.classes.values()),
            "largest": max(self.images, default=1.0),
        }


def repeat_factors(labels: Sequence[Collection[int]], threshold: float) -> RepeatFactors:
    """Compute the repeat factors of a split.

    Args:
        labels: Labels of each image (`LVISIndex.labels`). Images without labels are ignored.
        threshold: t above; 0 repeats no image.
    """
    images = [set(image) for image in labels if image]
    counts = Counter(label for image in images for label in image)
    classes = {
        label: max(1.0, math.sqrt(threshold * len(images) / count))
        for label, count in sorted(counts.items())
    }
    by_image = [max(classes[label] for label in image) for image in images]
    return RepeatFactors(threshold, classes, by_image)
