"""Image files looked at before a training: present files that cannot be read or do not fit.

    faults = image_faults({Path("images/1.jpg"): (480, 640)})   # path -> why

Only the header and the last bytes of each file are read, in parallel; `deep=True` decodes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

THREADS = 16  # most of the time is waiting for the disk
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # that OpenCV reads too
TAIL = 4096  # last bytes of a file in which its end marker is looked for
END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
ROTATED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height


def image_faults(sizes: Mapping[Path, tuple[int, int]], deep: bool = False) -> dict[Path, str]:
    """Find the image files that a training could not read or would read wrongly.

    Args:
        sizes: Image file -> (height, width) in pixels of its annotation.
        deep: Decode every image, too.

    Returns:
        Faulty file -> what is wrong with it.
    """

    def find(item: tuple[Path, tuple[int, int]]) -> str | None:
        return _fault(*item, deep)

    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(find, sizes.items(), chunksize=64)
        return {path: fault for path, fault in zip(sizes, found, strict=True) if fault}


def _fault(path: Path, size: tuple[int, int], deep: bool) -> str | None:
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return "is empty"
            if deep:
                content = file.read()
                return _header_fault(BytesIO(content), size) or _decoding_fault(content)
            return _header_fault(file, size)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _header_fault(file: BinaryIO, size: tuple[int, int]) -> str | None:
    start = file.read(256)
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            kind, (width, height) = image.format or "", image.size
            # Of a PNG, PIL would decode the whole file to look for it.
            exif = image.getexif() if kind in ("JPEG", "MPO") else {}
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "is a web page, no image" if b"<html" in start.lower() else "is no image"
    rotated = orientation in ROTATED
    if rotated:  # OpenCV applies it
        width, height = height, width
    if (height, width) != size:
        why = f", after the rotation that its EXIF orientation {orientation} asks for"
        return (
            f"has {width}x{height} pixels{why if rotated else ''}, "
            f"but {size[1]}x{size[0]} in the annotation file"
        )
    marker = END_MARKERS.get(kind)
    if marker:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - TAIL))
        if marker not in file.read():
            return "is truncated"
    return None


def _decoding_fault(content: bytes) -> str | None:
    import cv2  # here, since only a deep check needs it, and it takes long to import
    import numpy as np

    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        return "cannot be decoded"
    try:
        Image.open(BytesIO(content)).load()  # OpenCV fills what is missing with grey
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be decoded: {error}"
    return None
