"""Binary masks as polygons along pixel edges, as LVIS stores segmentations.

The polygons have integer corners, so COCO's rasterisation gives back exactly the pixels that they
enclose. Holes are filled, as in LVIS's own annotations.
"""

from __future__ import annotations

import numpy as np

# Clockwise on the screen (y downwards): right, down, left, up. The mask is on the right-hand side.
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
TURNS = (1, 0, 3)  # right first: where two pixels touch at a corner, stay with the current one

Corner = tuple[int, int]  # x, y


def mask_to_polygons(mask: np.ndarray, min_share: float = 0.02) -> tuple[list[list[int]], int]:
    """Return the outer boundaries of a mask and the area that they enclose.

    Pixels that only touch at a corner belong to separate polygons.

    Args:
        mask: (H, W) bool.
        min_share: Polygons with less than this share of the largest one's area are dropped:
            they are specks that an occluder left.

    Returns:
        Polygons `[x0, y0, x1, y1, …]` in pixels (none for an empty mask), and their area in pixels.
    """
    loops = [(loop, area) for loop in _boundary_loops(mask) if (area := _signed_area(loop)) > 0]
    min_area = min_share * max((area for _, area in loops), default=0)
    loops = [(loop, area) for loop, area in loops if area >= min_area]
    polygons = [[value for corner in loop for value in corner] for loop, _ in loops]
    return polygons, sum(area for _, area in loops)


def _boundary_loops(mask: np.ndarray) -> list[list[Corner]]:
    """Closed chains of corners; outer boundaries run clockwise, holes counter-clockwise."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return []
    left, top = int(columns[0]), int(rows[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    above, below = padded[:-2, 1:-1], padded[2:, 1:-1]
    before, after = padded[1:-1, :-2], padded[1:-1, 2:]
    # By direction of the edge: the neighbour on its other side, and where the edge starts.
    sides = (
        (above, left, top),
        (after, left + 1, top),
        (below, left + 1, top + 1),
        (before, left, top + 1),
    )
    edges: dict[tuple[int, int, int], None] = {}  # an ordered set of (x, y, direction)
    for direction, (neighbour, dx, dy) in enumerate(sides):
        ys, xs = np.nonzero(inside & ~neighbour)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            edges[x + dx, y + dy, direction] = None
    loops = []
    while edges:
        loops.append(_take_loop(edges))
    return loops


def _take_loop(edges: dict[tuple[int, int, int], None]) -> list[Corner]:
    """Remove one closed chain of edges and return the corners where it turns."""
    x, y, direction = next(iter(edges))
    loop: list[Corner] = []
    while (x, y, direction) in edges:
        del edges[x, y, direction]
        x, y = x + DIRECTIONS[direction][0], y + DIRECTIONS[direction][1]
        for turn in TURNS:
            if (x, y, (direction + turn) % 4) in edges:
                if turn:
                    loop.append((x, y))
                direction = (direction + turn) % 4
                break
    if (x, y) not in loop:
        loop.append((x, y))  # the corner at which the chain started
    return loop


def _signed_area(loop: list[Corner]) -> int:
    """Area in pixels; positive for a chain that runs clockwise on the screen."""
    corners = zip(loop, loop[1:] + loop[:1], strict=True)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in corners) // 2
