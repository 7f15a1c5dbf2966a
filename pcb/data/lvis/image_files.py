"""Image files looked at before a training: files that cannot be read or do not fit, and copies.

    files = look_at({Path("images/1.jpg"): (480, 640)})
    files.faults                                   # path -> why
    same_pictures(files.marks, train, val)         # pairs of files with the same content

Only the first and the last bytes of each file are read, in parallel; `deep=True` decodes it.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image

from pcb.errors import UserError

THREADS = 16  # most of the time is waiting for the disk
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # that OpenCV reads too
START = 256  # first bytes of a file, in which a web page is recognised
TAIL = 4096  # last bytes of a file in which its end marker is looked for
END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}  # by how a file starts: JPEG, PNG
ROTATED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height


COPY = "download, copy or generate these files again"
SIZES = (
    "use the images that were annotated; or write the size of these into `width` and `height`, and "
    "scale boxes and masks with it"
)
UPRIGHT = (
    "the annotations are of the pixels as stored: remove the orientation from these files "
    "(`exiftool -Orientation= FILE`)"
)


class Fault(NamedTuple):
    """What is wrong with an image file, as the end of a sentence, and the fix."""

    what: str
    fix: str = COPY


class ImageFiles(NamedTuple):
    """What `look_at` found.

    Attributes:
        faults: File -> what is wrong with it.
        marks: File -> its size in bytes and its first and last bytes, digested. Files with the same
            content have the same; few others do.
    """

    faults: dict[Path, Fault]
    marks: dict[Path, bytes]


def look_at(sizes: Mapping[Path, tuple[int, int]], deep: bool = False) -> ImageFiles:
    """Find the image files that a training could not read or would read wrongly.

    Args:
        sizes: Image file -> (height, width) in pixels of its annotation.
        deep: Decode every image, too.
    """

    def look(item: tuple[Path, tuple[int, int]]) -> tuple[Fault | None, bytes]:
        return _look(*item, deep)

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(look, sizes.items(), chunksize=64))
    return ImageFiles(
        {path: fault for path, (fault, _) in zip(sizes, found, strict=True) if fault},
        {path: mark for path, (_, mark) in zip(sizes, found, strict=True) if mark},
    )


def whole_file_fault(path: Path) -> Fault | None:
    """Return why a file is missing, empty or truncated, None if it is not; for every loading.

    OpenCV fills what is missing of a JPEG with grey, without an error.
    """
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = file.read(START)
            file.seek(max(0, length - TAIL))
            return _end_fault(start, file.read())
    except OSError as error:
        return Fault(f"cannot be read: {error.strerror or error}")


def same_pictures(
    marks: Mapping[Path, bytes], one: Iterable[Path], other: Iterable[Path]
) -> list[tuple[Path, Path]]:
    """Find files of two sets with the same content, or that are the same file.

    Args:
        marks: The marks of all files. Only files of the same mark are read and compared.
        one: Files.
        other: Files.

    Returns:
        A file of `one` and one of `other` that equals it.
    """
    by_mark: dict[bytes, list[Path]] = {}
    for path in one:
        if path in marks:
            by_mark.setdefault(marks[path], []).append(path)
    pairs = []
    for path in other:
        for twin in by_mark.get(marks.get(path, b""), ()):
            if twin == path or filecmp.cmp(twin, path, shallow=False):
                pairs.append((twin, path))
                break
    return pairs


def read_picture(path: Path) -> Image.Image:
    """Read an image for a page, in RGB.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}",
            "run `pcb check-data --deep`: it lists every image that is missing or damaged",
        ) from error


def _look(path: Path, size: tuple[int, int], deep: bool) -> tuple[Fault | None, bytes]:
    """What is wrong with a file, if anything, and its mark; none for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = file.read(START)
            file.seek(max(0, length - TAIL))
            end = file.read()
            if not start:
                return _end_fault(start, end), b""
            mark = hashlib.blake2b(b"%d " % length + start + end, digest_size=16).digest()
            if deep:
                file.seek(0)
                content = file.read()
                fault = _header_fault(BytesIO(content), size, start, end)
                return fault or _decoding_fault(content), mark
            return _header_fault(file, size, start, end), mark
    except OSError as error:
        return Fault(f"cannot be read: {error.strerror or error}"), b""


def _header_fault(file: BinaryIO, size: tuple[int, int], start: bytes, end: bytes) -> Fault | None:
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            kind, (width, height) = image.format or "", image.size
            # Of a PNG, PIL would decode the whole file to look for it.
            exif = image.getexif() if kind in ("JPEG", "MPO") else {}
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return Fault("is a web page, no image" if b"<html" in start.lower() else "is no image")
    rotated = orientation in ROTATED
    if rotated:  # OpenCV applies it
        width, height = height, width
    if (height, width) != size:
        exchanged, found = (width, height) == size, f"has {width}x{height} pixels"
        annotated = f"but {size[1]}x{size[0]} in the annotation file"
        if rotated:
            why = f"after the rotation that its EXIF orientation {orientation} asks for"
            return Fault(f"{found}, {why}, {annotated}", UPRIGHT if exchanged else SIZES)
        if exchanged:
            fix = "exchange `width` and `height` in the annotation file, if the boxes fit then"
            return Fault(f"{found}, {annotated}: width and height are exchanged", fix)
        return Fault(f"{found}, {annotated}", SIZES)
    return _end_fault(start, end)


def _end_fault(start: bytes, end: bytes) -> Fault | None:
    if not start:
        return Fault("is empty")
    markers = [mark for magic, mark in END_MARKERS.items() if start.startswith(magic)]
    return Fault("is truncated") if any(mark not in end for mark in markers) else None


def _decoding_fault(content: bytes) -> Fault | None:
    import cv2  # here, since only a deep check needs it, and it takes long to import
    import numpy as np

    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        return Fault("cannot be decoded")
    try:
        Image.open(BytesIO(content)).load()  # OpenCV fills what is missing with grey
    except (OSError, SyntaxError, ValueError) as error:
        return Fault(f"cannot be decoded: {error}")
    return None
