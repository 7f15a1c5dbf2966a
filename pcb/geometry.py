"""IoU of boxes, for code without torch. On tensors, use mmdet's `bbox_overlaps`."""

from __future__ import annotations

import numpy as np

# When boxes are taken for corners: more than this share of them end beyond the image by more than
# this factor of its side.
CORNERS, BEYOND = 0.1, 1.1


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


def far_outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes end far outside their images.

    Args:
        boxes: (n, 4) x, y, width, height in pixels.
        sizes: (n, 2) width and height of each box's image.

    Returns:
        (n,) bool.
    """
    return np.any(boxes[:, :2] + boxes[:, 2:] > BEYOND * sizes, axis=1)


def seem_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes seem to be x0, y0, x1, y1, where x, y, width, height are meant.

    Args:
        boxes: (n, 4) four numbers each, in pixels.
        sizes: (n, 2) width and height of each box's image.
    """
    corners = (boxes[:, 2:] >= boxes[:, :2]).all(1) & (boxes[:, 2:] <= sizes + 1).all(1)
    return len(boxes) > 0 and bool(far_outside(boxes, sizes).mean() > CORNERS and corners.all())
