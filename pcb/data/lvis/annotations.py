"""An annotation file of LVIS or COCO: parsed by msgspec, checked, converted to Arrow batches.

    file = read_annotation_file(path)
    for batch in record_batches(file): …            # images as rows

Categories have any distinct ids in the file and 1..C, in the order of these, in everything that
this package hands on: label k is category k + 1. A key that is null counts as absent.

Coordinates go straight from the file's text to arrays: reading a file of 1 GB takes little more
memory than its own size.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, Raw, Struct

from pcb.data.lvis.segmentation import MAX_SIDE, encloses, mask_fault
from pcb.errors import UserError
from pcb.formatting import examples
from pcb.frequency import GROUPS

BATCH_IMAGES = 1000
REQUIRED_KEYS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation"),
    "categories": ("id", "name"),
}
CORRECT_PATH = "correct its path under `datasets` in the scale's YAML"
FIX = f"download or generate it again, or {CORRECT_PATH}"
MASKS_FIX = (
    "the detectors learn masks, so every annotation needs a `segmentation`; with boxes alone, "
    "train docs/plugin/faster_rcnn_coco.py in MMDetection"
)
# Default of a required key. msgspec would stop at the first missing key, `check_keys` lists all.
REQUIRED: Any = UNSET


class Image(Struct, gc=False):
    """An entry of `images`."""

    id: int = REQUIRED
    width: int = REQUIRED
    height: int = REQUIRED
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class Annotation(Struct, gc=False):
    """An entry of `annotations`."""

    id: int = REQUIRED
    image_id: int = REQUIRED
    category_id: int = REQUIRED
    bbox: list[float] = REQUIRED  # x, y, width, height in pixels
    area: float = REQUIRED
    segmentation: Raw = REQUIRED  # JSON text of polygons or of a run-length encoding
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = False


class AnnotationFile(Struct):
    """The content of an annotation file.

    `categories` are sorted by their ids in the file, `original_ids`, and have the ids 1..C.
    `sha256` is the file's digest, `unusable` are the annotations that training cannot use: id ->
    reason.
    """

    images: list[Image] = REQUIRED
    annotations: list[Annotation] = REQUIRED
    categories: list[dict] = REQUIRED
    info: dict | None = None
    sha256: str = ""
    original_ids: list[int] = []
    unusable: dict[int, str] = {}


MIN_SIDE = 32  # pixels; MMDetection's LVIS configs train on no image with a smaller side
CROWD, IGNORED, OUTSIDE = "`iscrowd`", "`ignore`", "a box outside the image"
TOO_SMALL = "a side below 1 pixel, or no area"
SMALL_IMAGE = f"an image with a side below {MIN_SIDE} pixels"
# Reasons that are no faults: scoring has a rule for such objects.
EXPECTED = {CROWD, IGNORED, TOO_SMALL, SMALL_IMAGE}
BOM = b"\xef\xbb\xbf"  # some editors begin a file of UTF-8 with it
MAX_ID = 2**63 - 1  # the largest of Arrow's and numpy's int64
SEGMENTATION_DECODER = msgspec.json.Decoder(list[list[float]] | dict)
ANNOTATION_TYPE = pa.struct(
    [
        ("id", pa.int64()),
        ("category_id", pa.int32()),
        ("bbox", pa.list_(pa.float64(), 4)),
        ("area", pa.float64()),
        ("usable", pa.uint8()),
        ("iscrowd", pa.uint8()),
        ("ignore", pa.uint8()),
        ("polygons", pa.list_(pa.list_(pa.float64()))),
        ("rle", pa.string()),
    ]
)
IMAGE_FIELDS = [
    ("id", pa.int64()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("file_name", pa.string()),
    ("coco_url", pa.string()),
    ("neg_category_ids", pa.list_(pa.int32())),
    ("not_exhaustive_category_ids", pa.list_(pa.int32())),
]
SCHEMA = pa.schema(
    [
        *IMAGE_FIELDS,
        ("labels", pa.list_(pa.int32())),
        ("annotations", pa.list_(ANNOTATION_TYPE)),
    ]
)


def read_annotation_file(path: Path) -> AnnotationFile:
    """Parse and check an annotation file.

    Raises:
        UserError: The file cannot be read, is not valid JSON (the message names the byte), lacks
            keys, or has impossible values or dangling references (the message lists all of them).
    """
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", FIX) from error
    content = _parse(path, data)
    check_keys(path, content)
    check_values(path, content)
    check_references(path, content)
    number_categories(content)
    images = {image.id: image for image in content.images}
    content.unusable = {}
    for annotation in content.annotations:
        image = images[annotation.image_id]
        if reason := unusable_reason(annotation, _segmentation(annotation), image):
            content.unusable[annotation.id] = reason
    content.sha256 = hashlib.sha256(data).hexdigest()
    return content


def number_categories(content: AnnotationFile) -> None:
    """Give the categories the ids 1..C in the order of those that they have in the file."""
    content.categories = [
        {key: value for key, value in category.items() if value is not None}
        for category in sorted(content.categories, key=lambda category: category["id"])
    ]
    content.original_ids = [category["id"] for category in content.categories]
    number = {old: new for new, old in enumerate(content.original_ids, 1)}
    if all(old == new for old, new in number.items()):
        return
    for category in content.categories:
        category["id"] = number[category["id"]]
    for annotation in content.annotations:
        annotation.category_id = number[annotation.category_id]
    for image in content.images:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if listed := getattr(image, key):
                setattr(image, key, [number[old] for old in listed])


def _parse(path: Path, data: bytes | mmap.mmap) -> AnnotationFile:
    text = memoryview(data)[len(BOM) :] if data[: len(BOM)] == BOM else data
    try:
        return msgspec.json.decode(text, type=AnnotationFile)
    except msgspec.ValidationError as error:
        raise _utf8_fault(path, data) or UserError(
            f"{path} is not an annotation file of LVIS or COCO: {error}", FIX
        ) from error
    except msgspec.DecodeError as error:
        match = re.search(r"^(?:JSON is malformed: )?(.*) \(byte (\d+)\)$", str(error))
        reason, byte = match.groups() if match else ("it is truncated", len(data))
        if match and (word := re.match(rb"NaN|Infinity", text[int(byte) : int(byte) + 8])):
            raise UserError(
                f"{path} is not valid JSON: {word[0].decode()} at byte {byte}, which JSON lacks",
                "write a number in its place; Python's `json.dump(…, allow_nan=False)` names such "
                "values when the file is written",
            ) from error
        raise UserError(
            f"{path} is not valid JSON: {reason} at byte {byte} of {len(data)}"
            " (an incomplete download?)",
            FIX,
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{path} is no annotation file: its JSON is nested too deeply", FIX
        ) from error
    except UnicodeDecodeError as error:
        raise _utf8_fault(path, data) or UserError(f"{path} is not JSON: {error}", FIX) from None


def _utf8_fault(path: Path, data: bytes | mmap.mmap) -> UserError | None:
    """The error for a file that is not UTF-8; None if it is."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} of {len(data)}"
        return UserError(f"{path} is not JSON: {where} is not UTF-8 text", FIX)
    return None


def unusable_reason(annotation: Annotation, segmentation: object, image: Image) -> str | None:
    """Why training cannot use an annotation; None if it can.

    The one rule for what is trained on, image counts, repeat factors and absent classes. It is
    MMDetection's, which drops boxes below 1 pixel or outside the image, and `ignore`; here also
    crowds, which have no box of a single object, and images that MMDetection leaves out whole.
    """
    if fault := mask_fault(segmentation, image.height, image.width):
        return fault
    x, y, width, height = annotation.bbox
    if min(x + width, image.width) <= max(x, 0) or min(y + height, image.height) <= max(y, 0):
        return TOO_SMALL if min(width, height) == 0 else OUTSIDE
    if annotation.iscrowd:
        return CROWD
    if annotation.ignore:
        return IGNORED
    if width < 1 or height < 1 or annotation.area <= 0:
        return TOO_SMALL
    return SMALL_IMAGE if min(image.width, image.height) < MIN_SIDE else None


def check_keys(path: Path, content: AnnotationFile) -> None:
    """Raise `UserError` that lists every missing section and key."""
    absent = [section for section in REQUIRED_KEYS if getattr(content, section) is UNSET]
    if absent:
        raise UserError(
            f"{path} is not an annotation file of LVIS or COCO: no list under {', '.join(absent)}",
            FIX,
        )
    faults = []
    for section, keys in REQUIRED_KEYS.items():
        entries = getattr(content, section)
        for key in keys:
            if section == "categories":
                values = (entry.get(key, UNSET) for entry in entries)
            else:
                values = map(attrgetter(key), entries)
            if lacking := [i for i, value in enumerate(values) if value is UNSET]:
                faults.append(f"{section}: `{key}` is missing in {examples(lacking)}")
    unnamed = [
        image.id
        for image in content.images
        if image.id is not UNSET and image.file_name is None and image.coco_url is None
    ]
    if unnamed:
        faults.append(
            "images: neither `file_name` (v0.5) nor `coco_url` (v1.0) in the images "
            + examples(unnamed)
        )
    if faults:
        fix = "write these keys, as LVIS's and COCO's formats have them"
        if any(a.segmentation is UNSET for a in content.annotations):
            fix += f"; {MASKS_FIX}"
        raise UserError(f"{path}:\n  " + "\n  ".join(faults), fix)


def check_values(path: Path, content: AnnotationFile) -> None:
    """Raise `UserError` that lists every value that no data set can have."""
    images, annotations = content.images, content.annotations
    boxes = [a for a in annotations if len(a.bbox) == 4]  # others are listed with the references
    values = np.array([a.bbox for a in boxes], np.float64).reshape(-1, 4)
    wrong = ~(np.abs(values) <= MAX_SIDE).all(axis=1) | (values[:, 2:] < 0).any(axis=1)
    categories = content.categories
    rules = (
        (
            f"images: width or height is not 1 to {MAX_SIDE} pixels in the images",
            [i.id for i in images if not (0 < i.width <= MAX_SIDE and 0 < i.height <= MAX_SIDE)],
            "write the size of each image in pixels",
        ),
        (
            f"ids outside 0 to 2^63 - 1 ({MAX_ID}), the largest that can be scored",
            [entry.id for entry in (*images, *annotations) if not 0 <= entry.id <= MAX_ID],
            "number images and annotations anew, from 1",
        ),
        (
            "images: `file_name` or `coco_url` names no file inside the image folder in the images",
            [
                i.id
                for i in images
                if not (_is_inside(i.file_name) and _is_inside(_end_of(i.coco_url), subfolder=True))
            ],
            "write `file_name` relative to the image folder, without `..`",
        ),
        (
            "annotations: bbox is not finite, or negative in size, in the annotations",
            [boxes[k].id for k in np.flatnonzero(wrong)],
            "write bbox as x, y, width, height in pixels",
        ),
        (
            "categories: `name` is empty or not text in the categories",
            [c["id"] for c in categories if not (isinstance(c["name"], str) and c["name"])],
            "name every category",
        ),
        (
            f"categories: `frequency` is none of {', '.join(GROUPS)} in the categories",
            [c["id"] for c in categories if c.get("frequency") not in [None, *GROUPS]],
            "write r, c or f (rare, common, frequent), or delete `frequency` from all categories: "
            "groups then follow from the training images",
        ),
        (
            "categories: `image_count` is not a whole number in the categories",
            [c["id"] for c in categories if not _is_count(c.get("image_count") or 0)],
            "write numbers of training images, or delete `image_count` from all categories",
        ),
    )
    faults = [(f"{what} {examples(ids)}", fix) for what, ids, fix in rules if ids]
    if faults:
        reasons, fixes = zip(*faults, strict=True)
        raise UserError(f"{path}:\n  " + "\n  ".join(reasons), "; ".join(fixes))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _end_of(url: str | None) -> str | None:
    """The last two parts of a URL: subfolder and file of an image."""
    return None if url is None else "/".join(url.split("/")[-2:])


def _is_inside(name: str | None, subfolder: bool = False) -> bool:
    """Whether a name, if there is one, is of a file inside a folder, or inside a subfolder."""
    if name is None:
        return True
    parts = name.split("/")
    safe = not any(part in ("", ".", "..") or "\0" in part for part in parts)
    return safe and (len(parts) > 1 or not subfolder)


def check_references(path: Path, content: AnnotationFile) -> None:
    """Raise `UserError` that lists every id that is wrong, repeated or dangling."""
    faults, images, annotations = [], content.images, content.annotations
    ids = [category["id"] for category in content.categories]
    if wrong := [i for i in ids if type(i) is not int]:
        faults.append(f"category ids that are not whole numbers: {examples(wrong)}")
        ids = [i for i in ids if type(i) is int]
    if repeated := [i for i, n in Counter(ids).items() if n > 1]:
        faults.append(f"repeated category ids: {examples(repeated)}")
    for name, entries in (("image", images), ("annotation", annotations)):
        if len({entry.id for entry in entries}) < len(entries):
            counts = Counter(entry.id for entry in entries)
            repeated = [i for i, n in counts.items() if n > 1]
            faults.append(f"repeated {name} ids: {examples(repeated)}")
    known_images, known = {image.id for image in images}, set(ids)
    for name, dangling in (
        ("image", [a.id for a in annotations if a.image_id not in known_images]),
        ("category", [a.id for a in annotations if a.category_id not in known]),
    ):
        if dangling:
            faults.append(f"annotations that name a missing {name}: {examples(dangling)}")
    if boxes := [a.id for a in annotations if len(a.bbox) != 4]:
        faults.append(f"annotations whose bbox is not x, y, width, height: {examples(boxes)}")
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        listed = ((image.id, getattr(image, key)) for image in images)
        if dangling := [
            i for i, categories in listed if categories and not known.issuperset(categories)
        ]:
            faults.append(f"images whose {key} name a missing category: {examples(dangling)}")
    if faults:
        raise UserError(
            f"{path}:\n  " + "\n  ".join(faults),
            "correct these entries: ids are distinct whole numbers, and every entry names images "
            "and categories that the file lists",
        )


def record_batches(content: AnnotationFile) -> Iterator[pa.RecordBatch]:
    """Yield the images as record batches of `SCHEMA`, each with its annotations.

    Images and the annotations of an image keep the file's order. A batch has `BATCH_IMAGES` rows.
    """
    row_of = {image.id: row for row, image in enumerate(content.images)}
    by_image: list[list[Annotation]] = [[] for _ in content.images]
    for annotation in content.annotations:
        by_image[row_of[annotation.image_id]].append(annotation)
    for start in range(0, len(by_image), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        yield _record_batch(content.images[rows], by_image[rows], content.unusable)


def _record_batch(
    images: list[Image],
    annotations: list[list[Annotation]],
    unusable: Mapping[int, str],
) -> pa.RecordBatch:
    flat = [annotation for of_image in annotations for annotation in of_image]
    segmentations = [_drawable(a, unusable.get(a.id)) for a in flat]
    boxes = np.array([a.bbox for a in flat], np.float64).ravel()
    columns = {
        "id": [a.id for a in flat],
        "category_id": [a.category_id for a in flat],
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4),
        "area": [a.area for a in flat],
        "usable": [int(unusable.get(a.id, SMALL_IMAGE) == SMALL_IMAGE) for a in flat],
        "iscrowd": [int(bool(a.iscrowd)) for a in flat],
        "ignore": [int(bool(a.ignore)) for a in flat],
        "polygons": [None if isinstance(s, dict) else s for s in segmentations],
        "rle": [
            msgspec.json.encode(s).decode() if isinstance(s, dict) else None for s in segmentations
        ],
    }
    arrays = [
        column
        if isinstance(column, pa.Array)
        else pa.array(column, ANNOTATION_TYPE.field(name).type)
        for name, column in columns.items()
    ]
    structs = pa.StructArray.from_arrays(arrays, fields=list(ANNOTATION_TYPE))
    offsets = pa.array(np.cumsum([0, *map(len, annotations)], dtype=np.int32))
    labels = [
        sorted({a.category_id - 1 for a in of_image if a.id not in unusable})
        for of_image in annotations
    ]
    image_columns = [
        pa.array([getattr(image, name) for image in images], dtype) for name, dtype in IMAGE_FIELDS
    ]
    return pa.RecordBatch.from_arrays(
        [
            *image_columns,
            pa.array(labels, SCHEMA.field("labels").type),
            pa.ListArray.from_arrays(offsets, structs),
        ],
        schema=SCHEMA,
    )


def _segmentation(annotation: Annotation) -> Any:
    """The JSON value, typed where it is one of the forms that can be drawn."""
    try:
        return SEGMENTATION_DECODER.decode(annotation.segmentation)
    except (msgspec.ValidationError, RecursionError):
        text = bytes(annotation.segmentation)
        return None if text == b"null" else text  # neither polygons nor a run-length encoding


def _drawable(annotation: Annotation, reason: str | None) -> list[list[float]] | dict:
    """A segmentation without the polygons that enclose nothing; empty if none can be drawn."""
    if reason not in (None, *EXPECTED):
        return []
    segmentation = _segmentation(annotation)
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if encloses(polygon)]
