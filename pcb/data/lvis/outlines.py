"""Outlines of binary masks as polygons along pixel edges, as LVIS stores segmentations.

`outlines(mask)` follows the edges between set and unset pixels. The polygons have integer corners, so COCO's
rasterisation gives back exactly the pixels they enclose. Holes are filled, as LVIS's annotators do.
"""

from __future__ import annotations

import numpy as np

# Directions clockwise on the screen (y downwards): right, down, left, up. The mask lies on the right-hand side.
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def outlines(mask: np.ndarray, keep: float = 0.02) -> tuple[list[list[int]], int]:
    """Outer boundaries of a boolean mask (H, W): polygons [x0, y0, x1, y1, …] in pixels, and the area they enclose.

    Pixels that only touch at a corner belong to separate polygons. Polygons smaller than `keep` of the largest one
    (specks that an occluder left over) are dropped. An empty mask gives no polygon.
    """
    loops = [(loop, area) for loop in _loops(mask) if (area := _area(loop)) > 0]
    least = keep * max((area for _, area in loops), default=0)
    kept = [(loop, area) for loop, area in loops if area >= least]
    return [[value for corner in loop for value in corner] for loop, _ in kept], sum(
        area for _, area in kept
    )


def _loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed chains of corners; outer boundaries run clockwise, holes the other way round."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return []
    left, top = int(columns[0]), int(rows[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (
        padded[:-2, 1:-1],
        padded[1:-1, 2:],
        padded[2:, 1:-1],
        padded[1:-1, :-2],
    )  # above, right, below, left
    starts = (
        (left, top),
        (left + 1, top),
        (left + 1, top + 1),
        (left, top + 1),
    )  # of a pixel's upper, right, lower, left edge
    edges: dict[tuple[int, int, int], None] = {}  # an ordered set of (x, y, direction)
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        ys, xs = np.nonzero(inside & ~neighbour)
        edges.update(
            ((x + dx, y + dy, direction), None)
            for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        )
    loops = []
    while edges:
        x, y, direction = next(iter(edges))
        loop = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + STEPS[direction][0], y + STEPS[direction][1]
            for turn in (
                1,
                0,
                3,
            ):  # right first: at a corner where two pixels touch, stay with this one
                if (x, y, (direction + turn) % 4) in edges:
                    if turn:
                        loop.append((x, y))
                    direction = (direction + turn) % 4
                    break
        if (x, y) not in loop:
            loop.append((x, y))  # the corner at which the chain started
        loops.append(loop)
    return loops


def _area(loop: list[tuple[int, int]]) -> int:
    """Signed area: positive for a chain that runs clockwise on the screen."""
    return (
        sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True))
        // 2
    )
