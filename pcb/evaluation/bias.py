"""Pairwise bias of anybody's detections: which classes a detector takes for which others, from two COCO or LVIS JSON files.

    bias = measure("lvis_v1_val.json", "detections.json")
    bias.pwb, bias.by_group(), bias.pairs(20)          # PwB, M_rf and the like, the most one-sided pairs

Detections have one score each, no distribution over classes, so a row of M is built from objects, not from proposals:

1. A detection belongs to the object (of any class, crowds left out) that it overlaps most, if their IoU is at least 0.5;
   where two objects tie, to that of its own class.
2. s_g(j) is the highest score among the detections of class j that belong to object g, 0 where there is none.
3. p̂_g = s_g / Σ_j s_g(j), in the place of Eq. 1; M_i is the mean of p̂_g over the objects of class i with any detection (Eq. 3).
4. PwB = ||M - Mᵀ||_F.

What differs from the matrix that `pcb infer` makes of proposals: what fell to the score threshold, to NMS or to the limit of
detections an image counts as 0, so small entries are missing; every object counts once, however many proposals lie on it; an object
without any detection is `missed` and says nothing. Compare such figures with each other, made with the same thresholds and NMS, not with
the PwB of proposals and not with the paper's. Needs numpy, and pycocotools for masks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from pcb.errors import UserError
from pcb.files import write_json, write_text
from pcb.frequency import GROUPS, group

IOU = 0.5
COLUMNS = (
    "i",
    "j",
    "group_i",
    "group_j",
    "objects_i",
    "objects_j",
    "M_ij",
    "M_ji",
    "difference",
)  # of a pair


@dataclass(frozen=True)
class Bias:
    """A measured matrix and what it is of.

    matrix: (C, C) M, row = true class, rows of classes without a matched object are zero. matched, missed: (C,) objects with and
    without a detection. ids, names, groups: of each class, in the order of ids; `groups` are 'r', 'c', 'f', `grouped_by` says from what.
    """

    matrix: np.ndarray
    matched: np.ndarray
    missed: np.ndarray
    ids: tuple[int, ...]
    names: tuple[str, ...]
    groups: str
    grouped_by: str

    @property
    def pwb(self) -> float:
        """||M - Mᵀ||_F (§4.1)."""
        return float(np.linalg.norm(self.matrix - self.matrix.T))

    def by_group(self) -> dict[str, dict[str, float | None]]:
        """`[a][b]`: how much of an object's score goes to classes of group b, mean over the classes of group a that have a matched object.

        `['r']['f']` is the paper's M_rf (§3.1, which does not say how it is aggregated). None where a group has no such class.
        """
        group = np.array(list(self.groups))
        rows = {a: self.matrix[(group == a) & (self.matched > 0)] for a in GROUPS}
        return {
            a: {
                b: float(rows[a][:, group == b].sum(axis=1).mean()) if len(rows[a]) else None
                for b in GROUPS
            }
            for a in GROUPS
        }

    def pairs(self, count: int | None = None, least: int = 1) -> list[dict]:
        """The pairs with the largest M_ij - M_ji > 0, i the class that loses, of classes with at least `least` matched objects."""
        shown = self.matched >= least
        gap = np.where(shown[:, None] & shown[None, :], self.matrix - self.matrix.T, 0)
        i, j = np.nonzero(gap > 0)
        order = np.argsort(-gap[i, j], kind="stable")[:count]
        rows = (
            (
                self.names[a],
                self.names[b],
                self.groups[a],
                self.groups[b],
                int(self.matched[a]),
                int(self.matched[b]),
                float(self.matrix[a, b]),
                float(self.matrix[b, a]),
                float(gap[a, b]),
            )
            for a, b in zip(i[order], j[order], strict=True)
        )
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def as_dict(self, least: int = 1) -> dict:
        """Everything but the matrix, for JSON."""
        classes = [
            {
                "id": i,
                "name": n,
                "group": g,
                "matched": int(m),
                "missed": int(x),
                "self": float(self.matrix[k, k]),
            }
            for k, (i, n, g, m, x) in enumerate(
                zip(self.ids, self.names, self.groups, self.matched, self.missed, strict=True)
            )
        ]
        return {
            "PwB": self.pwb,
            "by_group": self.by_group(),
            "grouped_by": self.grouped_by,
            "classes": classes,
            "pairs": self.pairs(None, least),
        }


def measure(
    gt: str | Path, dt: str | Path, iou: str = "bbox", train: str | Path | None = None
) -> Bias:
    """Measure the detections in `dt` (a list of {image_id, category_id, bbox, score[, segmentation]}) against the ground truth in `gt`.

    iou: 'bbox', or 'segm' for the IoU of masks. train: annotations whose image counts decide r, c and f; without it the categories'
    own `frequency`, else their `image_count`, else the images in `gt`. Raises `UserError` where the files do not fit together.
    """
    truth, found = read(gt), read(dt)
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= truth.keys():
        raise UserError(
            f"{gt} has no images, annotations and categories",
            "give the ground truth in COCO or LVIS format as --gt",
        )
    if not isinstance(found, list):
        raise UserError(
            f"{dt} is no list of detections",
            "give what COCO's or LVIS's evaluation reads: [{image_id, category_id, bbox, score}, …]",
        )
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    label = {c["id"]: k for k, c in enumerate(categories)}
    images = {image["id"]: image for image in truth["images"]}
    check(found, images, label, dt, gt, {"bbox": "bbox", "segm": "segmentation"}[iou])
    objects: dict[int, list[dict]] = {}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects.setdefault(annotation["image_id"], []).append(annotation)
    detections: dict[int, list[dict]] = {}
    for detection in found:
        detections.setdefault(detection["image_id"], []).append(detection)

    classes = len(categories)
    sums, matched, missed = (
        np.zeros((classes, classes)),
        np.zeros(classes, np.int64),
        np.zeros(classes, np.int64),
    )
    for image, own in objects.items():
        labels = np.array([label[a["category_id"]] for a in own])
        guesses = detections.get(image, [])
        of = np.array([label[d["category_id"]] for d in guesses], np.int64)
        overlaps = box_iou(guesses, own) if iou == "bbox" else mask_iou(guesses, own, images[image])
        scores = best_scores(
            overlaps, of, np.array([d["score"] for d in guesses], float), labels, classes
        )
        total = scores.sum(axis=1)
        seen = total > 0
        np.add.at(sums, labels[seen], scores[seen] / total[seen, None])
        np.add.at(matched, labels[seen], 1)
        np.add.at(missed, labels[~seen], 1)
    groups, grouped_by = frequency(categories, truth, read(train) if train else None)
    names = tuple(c.get("name", str(c["id"])) for c in categories)
    return Bias(
        sums / np.maximum(matched, 1)[:, None],
        matched,
        missed,
        tuple(label),
        names,
        groups,
        grouped_by,
    )


def best_scores(
    overlaps: np.ndarray, of: np.ndarray, score: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """s_g(j), (G, C), from IoU (D, G), the class and score (D,) of each detection, and the class (G,) of each object."""
    out = np.zeros((len(labels), classes))
    if overlaps.size:
        which = (overlaps + 1e-9 * (of[:, None] == labels)).argmax(axis=1)
        near = overlaps[np.arange(len(of)), which] >= IOU
        np.maximum.at(out, (which[near], of[near]), score[near])
    return out


def box_iou(a: Sequence[dict], b: Sequence[dict]) -> np.ndarray:
    """IoU (len(a), len(b)) of boxes x, y, width, height."""
    a, b = (
        np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4) for entries in (a, b)
    )
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    return common / np.maximum(
        a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1) - common, 1e-12
    )


def mask_iou(a: Sequence[dict], b: Sequence[dict], image: dict) -> np.ndarray:
    """IoU (len(a), len(b)) of masks."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "--iou segm needs pycocotools", "pip install pycocotools, or use --iou bbox"
        ) from error

    def rle(segmentation):
        if isinstance(segmentation, list):
            return mask.merge(mask.frPyObjects(segmentation, image["height"], image["width"]))
        return (
            segmentation
            if isinstance(segmentation["counts"], str | bytes)
            else mask.frPyObjects(segmentation, *segmentation["size"])
        )

    a, b = ([rle(entry["segmentation"]) for entry in entries] for entries in (a, b))
    return np.asarray(mask.iou(a, b, [0] * len(b))).reshape(len(a), len(b))


def frequency(categories: list[dict], truth: dict, train: dict | None) -> tuple[str, str]:
    """'r', 'c' or 'f' of each class, as one string, and from what it was told."""
    if train is None and all("frequency" in c for c in categories):
        return "".join(c["frequency"] for c in categories), "frequency in the ground truth"
    if train is None and all("image_count" in c for c in categories):
        counts, source = (
            {c["id"]: c["image_count"] for c in categories},
            "image_count in the ground truth",
        )
    else:
        shown = {(a["category_id"], a["image_id"]) for a in (train or truth)["annotations"]}
        counts, source = (
            {},
            "training images"
            if train
            else "images of the ground truth itself; --train counts those of training",
        )
        for category, _ in shown:
            counts[category] = counts.get(category, 0) + 1
    counts = [counts.get(c["id"], 0) for c in categories]
    return "".join(map(group, counts)), source


def check(
    found: list, images: dict, label: dict, dt: str | Path, gt: str | Path, shape: str
) -> None:
    """Raises `UserError` at the first detection that does not fit the ground truth."""
    for k, detection in enumerate(found):
        lacking = [
            key for key in ("image_id", "category_id", "score", shape) if key not in detection
        ]
        if lacking:
            fix = (
                "add it"
                if shape not in lacking
                else "give the file that has it, or the other kind of --iou"
            )
            raise UserError(f"{dt}: detection {k} has no {', '.join(lacking)}", fix)
        if detection["image_id"] not in images or detection["category_id"] not in label:
            what = "image" if detection["image_id"] not in images else "category"
            raise UserError(
                f"{dt}: detection {k} is of {what} {detection[what + '_id']}, which {gt} does not have",
                "give detections on these images; category ids are those of the annotation file, not 0-based labels",
            )


def read(path: str | Path):
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "give the path of a readable JSON file"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "write it anew") from error


def write(bias: Bias, path: str | Path, least: int = 1) -> None:
    """Everything as JSON, or all pairs as CSV, by the name's ending. Raises `UserError` for another ending."""
    if Path(path).suffix == ".json":
        write_json(path, bias.as_dict(least))
    elif Path(path).suffix == ".csv":
        text = StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(bias.pairs(None, least))
        write_text(path, text.getvalue())
    else:
        raise UserError(f"{path}: neither JSON nor CSV", "let its name end in .json or .csv")


def report(bias: Bias, count: int = 20, least: int = 1) -> str:
    """What `pcb bias` prints, 100 columns wide."""
    group, pairs = bias.by_group(), bias.pairs(count, least)
    share = [
        f"M_{a}{b} " + ("-" if group[a][b] is None else f"{group[a][b]:.3f}")
        for a, b in ("rf", "fr", "rc", "cr", "cf", "fc")
    ]
    seen = int((bias.matched > 0).sum())
    lines = [
        f"PwB {bias.pwb:.2f}, {seen} of {len(bias.ids)} classes: {bias.matched.sum()} objects, {bias.missed.sum()} more without any",
        "   ".join(share),
        f"groups from {bias.grouped_by}",
        "",
        f"{'class i':<28}{'taken for class j':<28}{'objects':>11}{'M_ij':>9}{'M_ji':>9}{'difference':>13}",
    ]
    lines += [
        f"{clip(p['i'], p['group_i']):<28}{clip(p['j'], p['group_j']):<28}{p['objects_i']:>5}{p['objects_j']:>6}"
        f"{p['M_ij']:>9.3f}{p['M_ji']:>9.3f}{p['difference']:>13.3f}"
        for p in pairs
    ]
    nothing = (
        f"no pair of classes with {least} or more matched objects each is confused one-sidedly"
    )
    return "\n".join(lines if pairs else [*lines[:4], nothing])


def clip(name: str, group: str) -> str:
    return f"{name if len(name) < 24 else name[:22] + '…'} ({group})"
