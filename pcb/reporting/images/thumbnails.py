"""Photographs and masks small enough to live in a page: `photo`, `crop` as JPEG data URIs, `outline` as an SVG path."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import hotcoco
import numpy as np
from PIL import Image

from pcb.data.lvis.polygons import mask_to_polygons
from pcb.errors import UserError

SIDE = 360  # longest side of a photo, pixels; smaller ones stay as they are
CROP = 112  # longest side of a crop
MARGIN = 0.2  # of the box's longer side, around a crop
GRID = 180  # longest side of the grid on which a mask's outline is followed
QUALITY = 82


def photo(path: Path) -> str:
    return jpeg(opened(path), SIDE)


def crop(path: Path, box: list[float]) -> str:
    """The part of a photo around a box (x, y, w, h), a square as far as the photo reaches."""
    image = opened(path)
    x, y, w, h = box
    half = max(w, h) * (0.5 + MARGIN)
    part = (
        max(0, x + w / 2 - half),
        max(0, y + h / 2 - half),
        min(image.width, x + w / 2 + half),
        min(image.height, y + h / 2 + half),
    )
    return jpeg(image.crop(tuple(map(round, part))), CROP)


def opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error}",
            "run `pcb check-data`: it lists every image that is missing",
        ) from error


def jpeg(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def unpacked(counts: bytes, height: int, width: int) -> np.ndarray:
    """A mask (height, width) from a detection's compressed counts."""
    return hotcoco.mask.decode({"size": [height, width], "counts": counts}).astype(bool)


def drawn(segmentation: list[np.ndarray] | dict, height: int, width: int) -> np.ndarray:
    """A mask (height, width) from an annotation's polygons, or from its RLE."""
    polygons = (
        segmentation
        if isinstance(segmentation, dict)
        else [polygon.tolist() for polygon in segmentation]
    )
    rle = hotcoco.mask.fr_py_objects(polygons, height, width)
    return hotcoco.mask.decode(hotcoco.mask.merge(rle) if isinstance(rle, list) else rle).astype(
        bool
    )


def outline(mask: np.ndarray) -> str:
    """The outline of a mask as an SVG path in its pixels; of a large mask on a coarser grid."""
    step = -(-max(mask.shape) // GRID)
    polygons, _ = mask_to_polygons(mask[step // 2 :: step, step // 2 :: step])
    return "".join(closed(np.reshape(polygon, (-1, 2)) * step) for polygon in polygons)


def closed(corners: np.ndarray) -> str:
    """Corners joined by horizontal and vertical lines, relative to each other."""
    parts = [f"M{corners[0, 0]} {corners[0, 1]}"]
    for dx, dy in np.diff(corners, axis=0).tolist():
        parts.append(f"h{dx}" if dx else f"v{dy}")
    return "".join(parts) + "z"
