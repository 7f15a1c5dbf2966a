"""Mask probabilities in boxes -> masks of the image, as COCO RLE: mmdet's paste, over a window around each box instead of the image.

    paste(masks, boxes, sizes, threshold)  ->  k compressed COCO counts

mmdet pastes into an array of the image's size and leaves the encoding to others, which read all of it again, column by column.
Here windows of about one size are sampled together, for the boxes of several images, and only where runs of mask pixels begin
and end leaves the device. The pixels are mmdet's, to the bit, as it pastes on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 6  # sizes of windows along each side of an image
PIXELS_AT_ONCE = 2**20


@torch.no_grad()
def paste(masks: Tensor, boxes: Tensor, sizes: Tensor, threshold: float) -> list[bytes]:
    """(k, h, w) probabilities, (k, 4) boxes x1, y1, x2, y2 in pixels of images of (k, 2) height and width -> k RLE counts."""
    corner, extent = windows(boxes, sizes)
    found = [np.zeros((3, 0), np.int64)]
    for group in alike(extent, sizes):
        pixels = sample(masks[group], boxes[group], corner[group], extent[group]) >= threshold
        found.append(runs(pixels, group, corner[group], sizes[group, 0]))
    owner, start, end = np.concatenate(found, axis=1)
    order = owner.argsort(kind="stable")
    return pack(owner[order], start[order], end[order], sizes.prod(dim=1).cpu().numpy())


def windows(boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that mmdet pastes: (k, 2) x and y of the first, (k, 2) columns and rows. A mask is below 1/2 outside its box."""
    corner = (boxes[:, :2].floor() - 1).clamp(min=0)
    beyond = (boxes[:, 2:].ceil() + 1).minimum(sizes.flip(1).to(boxes))
    return corner.long(), (beyond - corner).long().clamp(min=0)


def alike(extent: Tensor, sizes: Tensor) -> Iterator[Tensor]:
    """Indices of windows of about one size, so many that they have at most `PIXELS_AT_ONCE` pixels (one has more where it must)."""
    if not len(extent):
        return
    side = (sizes.amax() + STEPS - 1) // STEPS
    columns, rows = ((extent + side - 1) // side).unbind(1)
    _, which = (columns * (STEPS + 1) + rows).unique(return_inverse=True)
    for group in which.argsort(stable=True).split(which.bincount().tolist()):
        yield from group.split(
            max(1, PIXELS_AT_ONCE // max(1, int(extent[group].amax(dim=0).prod())))
        )


def sample(masks: Tensor, boxes: Tensor, corner: Tensor, extent: Tensor) -> Tensor:
    """(k, h, w) values in (k, 4) boxes -> (k, H, W) at the pixels of the k windows, each of the size of the largest; 0 beyond its own."""
    axes = []
    for axis in (0, 1):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        offset = torch.arange(int(extent[:, axis].amax()), device=boxes.device)
        at = ((corner[:, axis, None] + offset).to(boxes) + 0.5 - low) / (high - low) * 2 - 1
        at[at.isinf()] = 0  # a box without width or height
        axes.append((at, offset < extent[:, axis, None]))
    (x, column), (y, row) = axes
    shape = len(boxes), y.shape[1], x.shape[1]
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    values = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    return values * row[:, :, None] * column[:, None]


def runs(pixels: Tensor, owner: Tensor, corner: Tensor, height: Tensor) -> np.ndarray:
    """(k, H, W) bool windows -> (3, m) int64: owner, start and end of each run, counting pixels of the image column by column."""
    padded = F.pad(pixels.transpose(1, 2), (1, 1))
    k, column, row = (
        (padded[..., 1:] != padded[..., :-1]).nonzero().unbind(1)
    )  # begin, end, begin, end, ...
    position = (corner[k, 0] + column) * height[k] + corner[k, 1] + row
    return torch.stack([owner[k[::2]], position[::2], position[1::2]]).cpu().numpy()


def pack(owner: np.ndarray, start: np.ndarray, end: np.ndarray, pixels: np.ndarray) -> list[bytes]:
    """Runs in order of owner and position, and each owner's number of pixels -> COCO's compressed counts, one for each of `pixels`.

    COCO writes the lengths of runs of zeros and ones in turn, from the fourth on less the length two before, in groups of five bits
    from the lowest, each as a character from '0' on; a sixth bit says that more follow.
    """
    joins = (owner[1:] == owner[:-1]) & (
        start[1:] == end[:-1]
    )  # a run over the end of a column goes on in the next
    first, last = np.r_[True, ~joins][: len(owner)], np.r_[~joins, True][: len(owner)]
    owner, start, end = owner[first], start[first], end[last]

    bounds = (
        2 * np.bincount(owner, minlength=len(pixels)) + 2
    )  # 0, start, end, ..., number of pixels
    begin = np.cumsum(bounds) - bounds
    inner = np.arange(len(owner)) * 2 + 2 * owner + 1
    bound = np.zeros(bounds.sum(), np.int64)
    bound[inner], bound[inner + 1], bound[begin + bounds - 1] = start, end, pixels
    place = np.arange(len(bound)) - np.repeat(begin, bounds)
    length = np.diff(bound, prepend=0)
    length[begin] = 0
    keep = (place > 0) & ~(
        (length == 0) & (place == np.repeat(bounds, bounds) - 1)
    )  # no run of nothing at the end
    mask, place, length = np.repeat(np.arange(len(pixels)), bounds)[keep], place[keep], length[keep]
    value = length.copy()
    later = np.flatnonzero(place > 3)
    value[later] -= length[later - 2]

    characters = []
    more = np.ones(len(value), bool)
    while more.any():
        low, value = value & 31, value >> 5
        ends = value == np.where(low & 16, -1, 0)
        characters.append(np.where(more, low + 32 * ~ends + 48, 0))
        more &= ~ends
    text = np.stack(characters or [value], axis=1)
    written = text > 0
    stops = np.cumsum(np.bincount(mask, written.sum(axis=1), len(pixels))).astype(int)
    blob = text[written].astype(np.uint8).tobytes()
    return (
        [blob[a:b] for a, b in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True)]
        if len(pixels)
        else []
    )
