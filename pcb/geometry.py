"""IoU of boxes, for code without torch. On tensors, use mmdet's `bbox_overlaps`."""

from __future__ import annotations

import numpy as np


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of `a` with every box of `b`.

    Args:
        a: (n, 4) x, y, width, height in pixels.
        b: (m, 4) likewise.

    Returns:
        (n, m); 0 for a pair of boxes without area.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    intersection = (high - low).clip(min=0).prod(axis=2)
    union = a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1)[None] - intersection
    return intersection / np.maximum(union, 1e-12)
