"""Images and masks small enough for a page: JPEG data URIs, and outlines as SVG paths."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import hotcoco
import numpy as np
from PIL import Image

from pcb.data.lvis.image_files import read_picture
from pcb.data.lvis.polygons import mask_to_polygons

IMAGE_SIDE = 360  # longest side of a whole image in pixels; smaller ones are not enlarged
CROP_SIDE = 112  # longest side of a crop
CROP_MARGIN = 0.2  # around a crop, as a share of its box's longer side
OUTLINE_SIDE = 180  # longest side of the grid on which a mask's outline is traced
JPEG_QUALITY = 82


def thumbnail(path: Path) -> str:
    """A whole image as a data URI. Raises `UserError` where it cannot be read."""
    return _jpeg(read_picture(path), IMAGE_SIDE)


def crop(path: Path, box: list[float]) -> str:
    """The square around a box, clipped to the image, as a data URI.

    Args:
        path: The image.
        box: x, y, width, height in pixels.

    Raises:
        UserError: The image cannot be read.
    """
    image = read_picture(path)
    x, y, width, height = box
    half = max(width, height) * (0.5 + CROP_MARGIN)
    corners = (
        max(0, x + width / 2 - half),
        max(0, y + height / 2 - half),
        min(image.width, x + width / 2 + half),
        min(image.height, y + height / 2 + half),
    )
    left, top, right, bottom = map(round, corners)
    return _jpeg(image.crop((left, top, right, bottom)), CROP_SIDE)


def _jpeg(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def mask_of_detection(counts: bytes, height: int, width: int) -> np.ndarray:
    """(height, width) bool, from the compressed RLE counts of a detection."""
    return hotcoco.mask.decode({"size": [height, width], "counts": counts}).astype(bool)


def mask_of_annotation(
    segmentation: list[np.ndarray] | dict, height: int, width: int
) -> np.ndarray:
    """(height, width) bool, from the polygons (x, y, x, y, …) or the RLE of an annotation."""
    if isinstance(segmentation, dict):
        rle = hotcoco.mask.fr_py_objects(segmentation, height, width)
    else:
        polygons = [polygon.tolist() for polygon in segmentation]
        rle = hotcoco.mask.merge(hotcoco.mask.fr_py_objects(polygons, height, width))
    return hotcoco.mask.decode(rle).astype(bool)


def outline(mask: np.ndarray) -> str:
    """The outline of a mask as an SVG path, in the mask's pixels.

    Args:
        mask: (height, width) bool; of a large one only every k-th pixel is used.
    """
    step = -(-max(mask.shape) // OUTLINE_SIDE)
    polygons, _ = mask_to_polygons(mask[step // 2 :: step, step // 2 :: step])
    return "".join(_closed_path(np.reshape(polygon, (-1, 2)) * step) for polygon in polygons)


def _closed_path(corners: np.ndarray) -> str:
    """(n, 2) corners, joined by horizontal and vertical lines, as an SVG path."""
    commands = [f"M{corners[0, 0]} {corners[0, 1]}"]
    for dx, dy in np.diff(corners, axis=0).tolist():
        commands.append(f"h{dx}" if dx else f"v{dy}")
    return "".join(commands) + "z"
