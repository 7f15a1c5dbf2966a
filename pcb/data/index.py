"""LVISIndex: one annotation file of LVIS v0.5, v1.0 or emoji-LVIS, checked, counted, every image file found.

    index = LVISIndex("lvis_v0.5_train.json", "data/coco")
    index.classes, index.image_count, index.frequency(), index.labels, index.missing

Class `k` (0..C-1) is the category with id `k + 1` everywhere in this package. Needs neither `lvis` nor torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cached_property
from pathlib import Path

from pcb.errors import UserError

THRESHOLDS = (10, 100)  # LVIS: rare <= 10 < common <= 100 < frequent, in train images
OFFICIAL = {1230: "v0.5", 1203: "v1.0"}  # class counts that only an LVIS release has
SHOWN = 5  # examples in a message; the rest is counted
KEYS = {"images": ("id", "width", "height"), "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation"),
        "categories": ("id", "name")}
SUBFOLDERS = ("train2017", "val2017", "", "train2014", "val2014")


def usable(annotation: dict, image: dict) -> bool:
    """Whether MMDetection trains on an annotation: a box of at least 1 pixel each way, inside the image, with an area."""
    x, y, width, height = annotation["bbox"]
    inside = min(x + width, image["width"]) > max(x, 0) and min(y + height, image["height"]) > max(y, 0)
    return inside and width >= 1 and height >= 1 and annotation["area"] > 0 and not annotation.get("ignore", False)


class LVISIndex:
    """A checked annotation file.

    categories: dicts sorted by id, so that place = id - 1 = label.   images: dicts in the file's order.
    image_count, instance_count: per class, of usable annotations.     labels: per image, its sorted distinct labels.
    annotations: the raw ones, by_image: image id -> usable ones; with `keep=False` they are counted and dropped, which
    for LVIS frees gigabytes.
    Raises `UserError` that lists what is wrong: file missing or damaged, keys missing, references to nothing.
    """

    def __init__(self, annotations: str | Path, images: str | Path | None = None, keep: bool = True):
        self.path = Path(annotations)
        self.folder = Path(images) if images is not None else None
        content = read(self.path)
        self.info: dict = content.get("info") or {}
        self.categories = sorted(content["categories"], key=lambda c: c["id"])
        self.images: list[dict] = content["images"]
        self.annotations: list[dict] = content["annotations"]
        check_references(self.path, self.categories, self.images, self.annotations)
        self.annotation_count = len(self.annotations)
        self.by_image = self._usable()
        self.labels = [tuple(sorted({a["category_id"] - 1 for a in self.by_image[image["id"]]})) for image in self.images]
        counts = Counter(label for labels in self.labels for label in labels)
        self.image_count = [counts[label] for label in range(len(self.categories))]
        counts = Counter(a["category_id"] - 1 for annotations in self.by_image.values() for a in annotations)
        self.instance_count = [counts[label] for label in range(len(self.categories))]
        if not keep:
            del self.annotations, self.by_image

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(c["name"] for c in self.categories)

    @cached_property
    def version(self) -> str:
        """'v0.5' or 'v1.0', from the number of classes, else from whether images name a file or only an address."""
        named = any("file_name" in image for image in self.images)
        return OFFICIAL.get(len(self.categories), "v0.5" if named else "v1.0")

    def _usable(self) -> dict[int, list[dict]]:
        image = {i["id"]: i for i in self.images}
        out: dict[int, list[dict]] = {i: [] for i in image}
        for annotation in self.annotations:
            if usable(annotation, image[annotation["image_id"]]):
                out[annotation["image_id"]].append(annotation)
        return out

    @property
    def absent(self) -> list[int]:
        """Classes without a usable annotation."""
        return [label for label, count in enumerate(self.image_count) if not count]

    def frequency(self, thresholds: tuple[int, int] = THRESHOLDS) -> list[str]:
        """'r', 'c' or 'f' of each class: the file's `frequency`, else from its (train) image count and `thresholds`."""
        counts = [c.get("image_count", n) for c, n in zip(self.categories, self.image_count, strict=True)]
        computed = ["r" if n <= thresholds[0] else "c" if n <= thresholds[1] else "f" for n in counts]
        return [c.get("frequency", group) for c, group in zip(self.categories, computed, strict=True)]

    @property
    def image_paths(self) -> dict[int, Path]:
        """Image id -> file, in whichever known layout it lies; where there is none, the place where it should be."""
        return self._files[0]

    @property
    def missing(self) -> list[Path]:
        """Every image file that is not there."""
        return self._files[1]

    @cached_property
    def _files(self) -> tuple[dict[int, Path], list[Path]]:
        root = self.folder or Path()
        there = {sub: {entry.name for entry in os.scandir(root / sub)} if (root / sub).is_dir() else set() for sub in SUBFOLDERS}
        paths, missing = {}, []
        for image in self.images:
            places = candidates(image)
            found = next(((sub, name) for sub, name in places if name in there.get(sub, ())), None)
            if found is None and (root / image.get("file_name", "")).is_file():
                found = ("", image["file_name"])
            expected = next((place for place in places if there.get(place[0])), places[0])  # in a folder that holds anything
            paths[image["id"]] = root / Path(*(found or expected))
            if found is None:
                missing.append(paths[image["id"]])
        return paths, missing


def candidates(image: dict) -> list[tuple[str, str]]:
    """(subfolder, file) where an image may lie, likeliest first.

    v1.0 names it by the last two parts of `coco_url` (some val images lie in train2017); v0.5 by the last 16 characters
    of `file_name`, which may carry a COCO 2014 prefix. Both are also found in one flat folder.
    """
    out = []
    if "coco_url" in image:
        sub, name = image["coco_url"].split("/")[-2:]
        out += [(sub, name), ("", name)]
    if "file_name" in image:
        name = image["file_name"].split("/")[-1]
        out += [(sub, short) for short in (name[-16:], name) for sub in SUBFOLDERS]
    return out


def read(path: Path) -> dict:
    """Parse an annotation file and check its shape. Raises `UserError` naming the byte at which it breaks off, or the keys it lacks."""
    fix = "download or generate it again, or mend the path under `datasets` in the scale's YAML"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", fix) from error
    try:
        content = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: byte {error.start} of {len(data)} is not UTF-8 text", fix) from error
    except json.JSONDecodeError as error:
        place = len(error.doc[:error.pos].encode())
        raise UserError(f"{path} is not valid JSON: {error.msg} at byte {place} of {len(data)} (a download broken off?)", fix) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not LVIS's object of images, annotations and categories", fix)
    absent = [key for key in KEYS if not isinstance(content.get(key), list)]
    if absent:
        raise UserError(f"{path} is no LVIS annotation file: without a list under {', '.join(absent)}", fix)
    faults = []
    for section, keys in KEYS.items():
        for key in keys:
            lacking = [i for i, entry in enumerate(content[section]) if key not in entry]
            if lacking:
                faults.append(f"{section}: `{key}` is missing in {some(lacking)}")
    unnamed = [i["id"] for i in content["images"] if "id" in i and "file_name" not in i and "coco_url" not in i]
    if unnamed:
        faults.append(f"images: neither `file_name` (v0.5) nor `coco_url` (v1.0) in the images {some(unnamed)}")
    if faults:
        raise UserError(f"{path}:\n  " + "\n  ".join(faults), fix)
    return content


def check_references(path: Path, categories: list[dict], images: list[dict], annotations: list[dict]) -> None:
    """Raise `UserError` with every broken reference: ids that are not 1..C, twice, or of nothing."""
    faults = []
    ids = [c["id"] for c in categories]
    if ids != list(range(1, len(ids) + 1)):
        wrong = [i for i in ids if not isinstance(i, int) or not 1 <= i <= len(ids)] or [i for i, n in Counter(ids).items() if n > 1]
        faults.append(f"category ids are not 1..{len(ids)} each once: {some(wrong)}")
    for name, entries in (("image", images), ("annotation", annotations)):
        twice = [i for i, n in Counter(e["id"] for e in entries).items() if n > 1]
        if twice:
            faults.append(f"{name} ids given twice: {some(twice)}")
    known_images, known = {i["id"] for i in images}, set(ids)
    for what, key, valid in (("image", "image_id", known_images), ("category", "category_id", known)):
        lost = [a["id"] for a in annotations if a[key] not in valid]
        if lost:
            faults.append(f"annotations that name a missing {what}: {some(lost)}")
    boxes = [a["id"] for a in annotations if len(a["bbox"]) != 4]
    if boxes:
        faults.append(f"annotations whose bbox is not x, y, width, height: {some(boxes)}")
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lost = [i["id"] for i in images if not known.issuperset(i.get(key, ()))]
        if lost:
            faults.append(f"images whose {key} name a missing category: {some(lost)}")
    if faults:
        raise UserError(f"{path}:\n  " + "\n  ".join(faults), "use the file as LVIS released it, or mend the program that wrote it")


def some(things: list) -> str:
    """The first few and the number of all: `3, 7, 9 (3 in all)`."""
    more = ", …" if len(things) > SHOWN else ""
    return f"{', '.join(map(str, things[:SHOWN]))}{more} ({len(things)} in all)"
