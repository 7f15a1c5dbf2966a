"""An annotation file of LVIS, read once: parsed by msgspec, checked, and laid out as Arrow record batches, images as rows.

    content = read(path)             # UserError names the byte at which it breaks off, or all that is wrong
    for batch in batches(path, content): …

Coordinates go straight from the file's text to arrays, so that a file of a gigabyte takes little more than its own size to read.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, Raw, Struct, UnsetType

from pcb.errors import UserError

SHOWN = 5  # examples in a message; the rest is counted
ROWS = 1000  # images in a batch
KEYS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation"),
    "categories": ("id", "name"),
}
AGAIN = "download or generate it again, or mend the path under `datasets` in the scale's YAML"


class Image(Struct, gc=False):
    id: int | UnsetType = UNSET
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    file_name: str | UnsetType = UNSET
    coco_url: str | UnsetType = UNSET
    neg_category_ids: list[int] | UnsetType = UNSET
    not_exhaustive_category_ids: list[int] | UnsetType = UNSET


class Annotation(Struct, gc=False):
    id: int | UnsetType = UNSET
    image_id: int | UnsetType = UNSET
    category_id: int | UnsetType = UNSET
    bbox: list[float] | UnsetType = UNSET
    area: float | UnsetType = UNSET
    segmentation: Raw | UnsetType = UNSET  # its text; polygons, or a run-length encoding
    iscrowd: int | bool = 0
    ignore: int | bool = False


class Content(Struct):
    images: list[Image] | UnsetType = UNSET
    annotations: list[Annotation] | UnsetType = UNSET
    categories: list[dict] | UnsetType = UNSET
    info: dict | None = None
    sha256: str = ""


OUTLINE = msgspec.json.Decoder(list[list[float]] | dict)
ANNOTATION = pa.struct(
    [
        ("id", pa.int64()),
        ("category_id", pa.int32()),
        ("bbox", pa.list_(pa.float64(), 4)),
        ("area", pa.float64()),
        ("usable", pa.uint8()),
        ("iscrowd", pa.uint8()),
        ("polygons", pa.list_(pa.list_(pa.float64()))),
        ("rle", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("file_name", pa.string()),
        ("coco_url", pa.string()),
        ("neg_category_ids", pa.list_(pa.int32())),
        ("not_exhaustive_category_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("annotations", pa.list_(ANNOTATION)),
    ]
)


def read(path: Path) -> Content:
    """Parse and check a file. Raises `UserError`: where it breaks off, which keys it lacks, which references lead nowhere."""
    try:
        with open(path, "rb") as file:
            data = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", AGAIN) from error
    try:
        content = msgspec.json.decode(data, type=Content)
    except UnicodeDecodeError:
        raise not_text(path, data) from None
    except msgspec.ValidationError as error:
        raise not_text(path, data) or UserError(
            f"{path} is no LVIS annotation file: {error}", AGAIN
        ) from error
    except msgspec.DecodeError as error:
        place = re.search(r"^(?:JSON is malformed: )?(.*) \(byte (\d+)\)$", str(error))
        what, byte = place.groups() if place else ("it ends in the middle", len(data))
        raise UserError(
            f"{path} is not valid JSON: {what} at byte {byte} of {len(data)} (a download broken off?)",
            AGAIN,
        ) from error
    check_keys(path, content)
    check_references(path, content)
    image = {i.id: i for i in content.images}
    for annotation in content.annotations:
        annotation.ignore = not usable(annotation, image[annotation.image_id])
    content.categories.sort(key=lambda c: c["id"])
    content.sha256 = hashlib.sha256(data).hexdigest()
    return content


def not_text(path: Path, data: bytes | mmap.mmap) -> UserError | None:
    """The fault of a file that is not UTF-8."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as error:
        return UserError(
            f"{path} is not JSON: byte {error.start} of {len(data)} is not UTF-8 text", AGAIN
        )
    return None


def usable(annotation: Annotation, image: Image) -> bool:
    """Whether MMDetection trains on an annotation: a box of at least 1 pixel each way, inside the image, with an area."""
    x, y, width, height = annotation.bbox
    inside = min(x + width, image.width) > max(x, 0) and min(y + height, image.height) > max(y, 0)
    return inside and width >= 1 and height >= 1 and annotation.area > 0 and not annotation.ignore


def check_keys(path: Path, content: Content) -> None:
    """Raise `UserError` with every list and every key that is missing."""
    absent = [key for key in KEYS if getattr(content, key) is UNSET]
    if absent:
        raise UserError(
            f"{path} is no LVIS annotation file: without a list under {', '.join(absent)}", AGAIN
        )
    faults = []
    for section, keys in KEYS.items():
        entries = getattr(content, section)
        for key in keys:
            values = (
                [entry.get(key, UNSET) for entry in entries]
                if section == "categories"
                else map(attrgetter(key), entries)
            )
            if lacking := [i for i, value in enumerate(values) if value is UNSET]:
                faults.append(f"{section}: `{key}` is missing in {some(lacking)}")
    unnamed = [
        i.id
        for i in content.images
        if i.id is not UNSET and i.file_name is UNSET and i.coco_url is UNSET
    ]
    if unnamed:
        faults.append(
            f"images: neither `file_name` (v0.5) nor `coco_url` (v1.0) in the images {some(unnamed)}"
        )
    if faults:
        raise UserError(f"{path}:\n  " + "\n  ".join(faults), AGAIN)


def check_references(path: Path, content: Content) -> None:
    """Raise `UserError` with every broken reference: ids that are not 1..C, twice, or of nothing."""
    faults, images, annotations = [], content.images, content.annotations
    ids = sorted(
        (c["id"] for c in content.categories),
        key=lambda i: (not isinstance(i, int), i if isinstance(i, int) else 0),
    )
    if ids != list(range(1, len(ids) + 1)):
        wrong = [i for i in ids if not isinstance(i, int) or not 1 <= i <= len(ids)] or [
            i for i, n in Counter(ids).items() if n > 1
        ]
        faults.append(f"category ids are not 1..{len(ids)} each once: {some(wrong)}")
    for name, entries in (("image", images), ("annotation", annotations)):
        if len({e.id for e in entries}) < len(entries):
            faults.append(
                f"{name} ids given twice: {some([i for i, n in Counter(e.id for e in entries).items() if n > 1])}"
            )
    known_images, known = {i.id for i in images}, set(ids)
    for what, lost in (
        ("image", [a.id for a in annotations if a.image_id not in known_images]),
        ("category", [a.id for a in annotations if a.category_id not in known]),
    ):
        if lost:
            faults.append(f"annotations that name a missing {what}: {some(lost)}")
    if boxes := [a.id for a in annotations if len(a.bbox) != 4]:
        faults.append(f"annotations whose bbox is not x, y, width, height: {some(boxes)}")
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if lost := [
            i.id for i in images if (listed := getattr(i, key)) and not known.issuperset(listed)
        ]:
            faults.append(f"images whose {key} name a missing category: {some(lost)}")
    if faults:
        raise UserError(
            f"{path}:\n  " + "\n  ".join(faults),
            "use the file as LVIS released it, or mend the program that wrote it",
        )


def some(things: list) -> str:
    """The first few and the number of all: `3, 7, 9 (3 in all)`."""
    more = ", …" if len(things) > SHOWN else ""
    return f"{', '.join(map(str, things[:SHOWN]))}{more} ({len(things)} in all)"


def batches(path: Path, content: Content) -> Iterator[pa.RecordBatch]:
    """The images in the file's order, `ROWS` at a time, each with its annotations in the file's order."""
    place = {image.id: row for row, image in enumerate(content.images)}
    by_image: list[list[Annotation]] = [[] for _ in content.images]
    for annotation in content.annotations:
        by_image[place[annotation.image_id]].append(annotation)
    for start in range(0, len(by_image), ROWS):
        yield batch(path, content.images[start : start + ROWS], by_image[start : start + ROWS])


def batch(path: Path, images: list[Image], annotations: list[list[Annotation]]) -> pa.RecordBatch:
    flat = [a for some in annotations for a in some]
    outlines = [outline(path, a) for a in flat]
    boxes = np.array([a.bbox for a in flat], np.float64).ravel()
    columns = {
        "id": [a.id for a in flat],
        "category_id": [a.category_id for a in flat],
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4),
        "area": [a.area for a in flat],
        "usable": [int(not a.ignore) for a in flat],
        "iscrowd": [int(bool(a.iscrowd)) for a in flat],
        "polygons": [None if isinstance(o, dict) else o for o in outlines],
        "rle": [msgspec.json.encode(o).decode() if isinstance(o, dict) else None for o in outlines],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, ANNOTATION.field(name).type)
        for name, column in columns.items()
    ]
    offsets = np.cumsum([0, *map(len, annotations)], dtype=np.int32)
    structs = pa.StructArray.from_arrays(arrays, fields=list(ANNOTATION))
    labels = [sorted({a.category_id - 1 for a in some if not a.ignore}) for some in annotations]
    own = [
        pa.array([given(getattr(image, field.name)) for image in images], field.type)
        for field in list(SCHEMA)[:-2]
    ]
    return pa.RecordBatch.from_arrays(
        [
            *own,
            pa.array(labels, SCHEMA.field("labels").type),
            pa.ListArray.from_arrays(pa.array(offsets), structs),
        ],
        schema=SCHEMA,
    )


def given(value):
    return None if value is UNSET else value


def outline(path: Path, annotation: Annotation) -> list[list[float]] | dict:
    try:
        return OUTLINE.decode(annotation.segmentation)
    except msgspec.DecodeError as error:
        raise UserError(
            f"{path}: the segmentation of annotation {annotation.id} is neither polygons nor a run-length encoding: {error}",
            AGAIN,
        ) from error
