"""The files that `pcb bias` reads, checked: ground truth and detections of any detector.

    truth = read_truth("lvis_v1_val.json", "bbox")
    detections = read_detections("detections.json", truth, "bbox")

COCO and LVIS JSON as any tool may have written it. What cannot be measured is refused with the file
and the entries; nothing is corrected silently. Needs numpy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcb.data.lvis.segmentation import mask_fault
from pcb.errors import UserError
from pcb.formatting import examples
from pcb.frequency import GROUPS, THRESHOLDS, group
from pcb.geometry import seem_corners

BOX, MASK = "bbox", "segmentation"
MAX = 1e12  # of a coordinate or score; NaN and infinity are not below it
TRUTH_FIX = "correct these entries; ids are whole numbers, bbox is x, y, width, height in pixels"
DETECTIONS_FIX = (
    "give what COCO's or LVIS's evaluation reads: [{image_id, category_id, bbox, score}, …]"
)
# When category ids are taken for labels from 0: objects with a detection that there must be, and
# the shares of them whose class is right as a label (at least) and as an id (at most).
LABELS_MATCHES, LABELS_SHARE, IDS_SHARE = 3, 0.5, 0.1


@dataclass(frozen=True)
class Truth:
    """Ground truth.

    Attributes:
        path: The file.
        categories: Entries, sorted by id.
        images: Image id -> entry.
        objects: Annotations that count: neither `iscrowd` nor `ignore`.
        annotations: All annotations.
    """

    path: Path
    categories: list[dict]
    images: dict[int, dict]
    objects: list[dict]
    annotations: list[dict]

    @property
    def labels(self) -> dict[int, int]:
        """Category id -> position in `categories`."""
        return {category["id"]: k for k, category in enumerate(self.categories)}


def read_truth(path: str | Path, shape: str) -> Truth:
    """Read ground truth in COCO or LVIS format.

    Args:
        path: The file.
        shape: `bbox` or `segmentation`, which every object must have.

    Raises:
        UserError: It cannot be measured; all kinds of faults are listed.
    """
    content = read_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise UserError(
            f"{path} has no images, annotations and categories",
            "give the ground truth in COCO or LVIS format as --gt",
        )
    needed = {
        "images": ("id", "height", "width") if shape == MASK else ("id",),
        "annotations": ("image_id", "category_id"),
        "categories": ("id",),
    }
    faults = []
    for section, names in needed.items():
        entries = content[section]
        for name in names:
            lacking = [k for k, entry in enumerate(entries) if not _is_whole(entry, name)]
            if lacking:
                places = f"{section}: `{name}` is no whole number in the entries"
                faults.append(f"{places} {examples(lacking)}, counted from 0")
    _refuse(path, faults, TRUTH_FIX)
    images, annotations, categories = (content[key] for key in keys)
    for section, entries in (("images", images), ("categories", categories)):
        counts = Counter(entry["id"] for entry in entries)
        if repeated := [number for number, count in counts.items() if count > 1]:
            faults.append(f"{section}: ids that occur more than once: {examples(repeated)}")
    by_id = {image["id"]: image for image in images}
    for name, known in (("image", by_id), ("category", {c["id"] for c in categories})):
        dangling = _named(annotations, lambda a, n=name, ids=known: a[f"{n}_id"] not in ids)
        if dangling:
            faults.append(f"annotations that name a missing {name}: {examples(dangling)}")
    _refuse(path, faults, TRUTH_FIX)
    objects = [a for a in annotations if not (a.get("iscrowd") or a.get("ignore"))]
    _refuse(path, _shape_faults("annotations", objects, by_id, shape), TRUTH_FIX)
    categories = sorted(categories, key=lambda category: category["id"])
    return Truth(Path(path), categories, by_id, objects, annotations)


def read_detections(path: str | Path, truth: Truth, shape: str) -> list[dict]:
    """Read detections on the images of some ground truth.

    Args:
        path: The file, a list of {image_id, category_id, bbox, score[, segmentation]}.
        truth: The ground truth.
        shape: `bbox` or `segmentation`, which every detection must have.

    Raises:
        UserError: They do not fit the ground truth; the first faults of a kind are named.
    """
    detections = read_json(path)
    if not isinstance(detections, list) or not all(isinstance(d, dict) for d in detections):
        raise UserError(f"{path} is not a list of detections", DETECTIONS_FIX)
    for name in ("image_id", "category_id", "score", shape):
        if lacking := [k for k, d in enumerate(detections) if name not in d]:
            fix = "give a file that has it, or another --iou" if name == shape else DETECTIONS_FIX
            raise UserError(f"{path}: detections without {name}: {examples(lacking)}", fix)
    for what, known in (("image", truth.images), ("category", truth.labels)):
        key = f"{what}_id"
        wrong = [k for k, d in enumerate(detections) if type(d[key]) is not int]
        if wrong:
            raise UserError(
                f"{path}: {key} is no whole number in the detections {examples(wrong)}: "
                f"{detections[wrong[0]][key]!r}",
                f"write the ids of {truth.path} as they are there, without quotes",
            )
        unknown = [k for k, d in enumerate(detections) if d[key] not in known]
        if unknown:
            raise UserError(
                f"{path}: detections of {what} {detections[unknown[0]][key]}, which {truth.path} "
                f"does not have: {examples(unknown)}",
                "give detections on these images; category ids are those of the annotation file, "
                "not labels from 0 on",
            )
    wrong = [k for k, d in enumerate(detections) if not _is_number(d["score"], 0)]
    if wrong:
        raise UserError(
            f"{path}: scores that are not finite numbers from 0 on, in the detections "
            f"{examples(wrong)}: {detections[wrong[0]]['score']!r}",
            "write probabilities, such as the softmax or sigmoid of logits",
        )
    faults = _shape_faults("detections", detections, truth.images, shape)
    _refuse(path, faults, "write bbox as x, y, width, height; masks as COCO's results have them")
    if shape == BOX:
        _refuse_corners(path, detections, truth)
    return detections


def refuse_labels(path: str | Path, truth: Truth, best: np.ndarray) -> None:
    """Raise `UserError` where the detections' category ids are labels from 0 on.

    Args:
        path: The file of detections.
        truth: The ground truth.
        best: (C, C) objects by class and by class of their best detection, read as an id.
    """
    ids = np.array([category["id"] for category in truth.categories])
    places = np.flatnonzero((ids >= 0) & (ids < len(ids)))  # read as a label, the class `ids[k]`
    matches, as_ids, as_labels = best.sum(), best.trace(), best[ids[places], places].sum()
    enough = matches >= LABELS_MATCHES
    if enough and as_labels > LABELS_SHARE * matches and as_ids < IDS_SHARE * matches:
        raise UserError(
            f"{path}: category ids are labels from 0 on: of {matches} objects with a detection "
            f"{as_ids} have its class by id, {as_labels} by its place in the list of classes",
            f"write the category ids of {truth.path}, not the places of its classes",
        )


def class_groups(
    truth: Truth, train: str | Path | None, thresholds: Sequence[int] = THRESHOLDS
) -> tuple[str, str]:
    """`r`, `c` or `f` of each class as one string, and what it follows from.

    Args:
        truth: The ground truth.
        train: Annotations whose images decide; None: `frequency` of the ground truth's classes,
            else their `image_count`, else the images of the ground truth.
        thresholds: Largest number of images of a rare and of a common class.

    Raises:
        UserError: No class would be common; some classes have no `frequency`, or another value; or
            the file of training annotations is none.
    """
    if not thresholds[0] < thresholds[1]:
        raise UserError(
            f"no class would be common: {thresholds[0]} is not below {thresholds[1]}",
            "give the most images of a rare class, then those of a common one",
        )
    if train is not None:
        return _by_images(truth, _training_annotations(train), thresholds), "training images"
    for key in ("frequency", "image_count"):
        values = {category["id"]: category.get(key) for category in truth.categories}
        if all(value is None for value in values.values()):
            continue
        of_class = {i: _group_of(key, value, thresholds) for i, value in values.items()}
        if wrong := [i for i, found in of_class.items() if found is None]:
            expected = "r, c or f" if key == "frequency" else "a number of images"
            raise UserError(
                f"{truth.path}: `{key}` is not {expected} in the categories {examples(wrong)}: "
                f"{values[wrong[0]]!r}",
                "correct it in all categories, or count images with --train TRAIN.json",
            )
        return "".join(map(str, of_class.values())), f"{key} in the ground truth"
    source = "images of the ground truth itself; --train counts those of training"
    return _by_images(truth, truth.objects, thresholds), source


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises `UserError` where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "give the path of a readable JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", "write the file again") from error


def _group_of(key: str, value: object, thresholds: Sequence[int]) -> str | None:
    """The group that a category's `frequency` or `image_count` stands for; None for no such one."""
    if key == "frequency":
        return value if isinstance(value, str) and value in list(GROUPS) else None
    return group(value, thresholds) if type(value) is int and value >= 0 else None


def _training_annotations(path: str | Path) -> list[dict]:
    content = read_json(path)
    entries = content.get("annotations") if isinstance(content, dict) else None
    keys = ("image_id", "category_id")
    if not isinstance(entries, list) or not all(_is_whole(a, k) for a in entries for k in keys):
        raise UserError(
            f"{path} has no annotations with image_id and category_id",
            "give the training annotations in COCO or LVIS format as --train",
        )
    return [a for a in entries if not (a.get("iscrowd") or a.get("ignore"))]


def _by_images(truth: Truth, annotations: Iterable[Mapping], thresholds: Sequence[int]) -> str:
    shown = {(a["category_id"], a["image_id"]) for a in annotations}
    counts = Counter(category for category, _ in shown)
    return "".join(group(counts[category["id"]], thresholds) for category in truth.categories)


def _shape_faults(section: str, entries: list[dict], images: dict, shape: str) -> list[str]:
    """What is wrong with the boxes or masks of annotations or detections, by kind."""
    found: dict[str, list] = {}
    for k, entry in enumerate(entries):
        if shape == BOX:
            fault = _box_fault(entry.get(BOX))
        else:
            image, detected = images[entry["image_id"]], section == "detections"
            segmentation = entry.get(MASK)
            fault = mask_fault(segmentation, image["height"], image["width"], detected)
        if fault:
            found.setdefault(fault, []).append(entry.get("id", k))
    return [f"{section} with {fault}: {examples(which)}" for fault, which in found.items()]


def _refuse_corners(path: str | Path, detections: list[dict], truth: Truth) -> None:
    """Raise `UserError` where the detections' boxes are x0, y0, x1, y1."""
    sizes = {
        number: (image["width"], image["height"])
        for number, image in truth.images.items()
        if _is_whole(image, "width") and _is_whole(image, "height")
    }
    known = [d for d in detections if d["image_id"] in sizes]
    boxes = np.array([d[BOX] for d in known], float).reshape(-1, 4)
    if seem_corners(boxes, np.array([sizes[d["image_id"]] for d in known], float).reshape(-1, 2)):
        raise UserError(
            f"{path}: bbox seems to be the corners x0, y0, x1, y1: as x, y, width, height, many "
            "boxes end outside their images",
            "write bbox as x, y, width, height in pixels",
        )


def _box_fault(box: object) -> str | None:
    if box is None:
        return "no bbox"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return "a bbox that is not four finite numbers"
    return "a bbox of negative size" if min(box[2:]) < 0 else None


def _is_number(value: object, least: float = -MAX) -> bool:
    """Whether a value is a finite number, `least` or more."""
    return isinstance(value, (int, float)) and type(value) is not bool and least <= value <= MAX


def _is_whole(entry: object, key: str) -> bool:
    return isinstance(entry, dict) and type(entry.get(key)) is int


def _named(entries: list[dict], wrong: Callable[[dict], bool]) -> list:
    """The ids of the entries that are wrong, or their places where they have none."""
    return [entry.get("id", k) for k, entry in enumerate(entries) if wrong(entry)]


def _refuse(path: str | Path, faults: list[str], fix: str) -> None:
    if faults:
        raise UserError(f"{path}: " + "\n  ".join(faults), fix)
