"""What an annotation's `segmentation` must be so that a mask can be drawn of it.

    mask_fault([[10, 10, 30, 10, 30, 30]], height=80, width=100)   # None: it can
    mask_fault([[10, 10]], height=80, width=100)                   # why it cannot

The one rule for training, scoring and `pcb bias`. Polygons need three points, as in MMDetection;
others beside a valid one are left out. A run-length encoding must be of the image's size and cover
it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

NO_SEGMENTATION, NO_POLYGON = "no segmentation", "no polygon"
MAX_SIDE = 10**6  # pixels of an image, and of a coordinate


def mask_fault(
    segmentation: object, height: int, width: int, may_be_empty: bool = False
) -> str | None:
    """Return why no mask can be drawn of a segmentation; None where one can.

    Args:
        segmentation: The parsed JSON value: polygons, or a run-length encoding.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        may_be_empty: Accept a run-length encoding without a pixel, as detectors write them.
    """
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width, may_be_empty)
    if segmentation is None:
        return NO_SEGMENTATION
    if not isinstance(segmentation, list):
        return "a segmentation that is neither polygons nor a run-length encoding"
    if not segmentation:
        return NO_POLYGON
    if not all(isinstance(polygon, list) for polygon in segmentation):
        return "a list of numbers in place of a list of polygons"
    polygons = [polygon for polygon in segmentation if encloses(polygon)]
    if not polygons:
        return "no polygon of three points"
    try:
        # A sum that equals itself: no value is NaN.
        if not all(
            min(p) >= -MAX_SIDE and max(p) <= MAX_SIDE and sum(p) == sum(p) for p in polygons
        ):
            return f"a polygon with a coordinate beyond {MAX_SIDE} pixels"
    except TypeError:
        return "a polygon with a value that is not a number"
    if not any(_overlaps_image(polygon, height, width) for polygon in polygons):
        return "polygons outside the image"
    return None


def encloses(polygon: Sequence[float]) -> bool:
    """Whether a polygon `[x0, y0, x1, …]` has at least three points, each with two numbers."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _overlaps_image(polygon: Sequence[float], height: int, width: int) -> bool:
    if 0 < polygon[0] < width and 0 < polygon[1] < height:
        return True
    xs, ys = polygon[0::2], polygon[1::2]
    return min(xs) < width and max(xs) > 0 and min(ys) < height and max(ys) > 0


def _rle_fault(rle: dict, height: int, width: int, may_be_empty: bool) -> str | None:
    for key in ("size", "counts"):
        if rle.get(key) is None:
            return f"a run-length encoding without `{key}`"
    size, counts = rle["size"], rle["counts"]
    if size != [height, width]:
        return "a run-length encoding whose size is not the image's"
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if not (
        isinstance(runs, list)
        and all(type(run) is int and run >= 0 for run in runs)
        and sum(runs) == height * width
    ):
        return "a run-length encoding that does not cover the image exactly"
    if not may_be_empty and not sum(runs[1::2]):
        return "a run-length encoding without a pixel"
    return None


def decode_counts(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed counts; None for text that is none.

    Source: `rleFrString` of pycocotools, which reads beyond the end of a broken text.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    return None if shift else runs
