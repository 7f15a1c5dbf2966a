"""Pairwise bias of any detector's detections, from two COCO or LVIS JSON files.

    bias = measure("lvis_v1_val.json", "detections.json")
    bias.pwb, bias.by_group(), bias.pairs(20)    # PwB, M_rf and the like, the most one-sided pairs

Detections have one score each, no distribution over classes, so a row of M is built from objects
instead of proposals:

1. A detection belongs to the object (of any class, except `iscrowd` and `ignore`) that it overlaps
   most, if their IoU is at least 0.5; where two objects tie, to that of its own class.
2. s_g(j) is the highest score among the detections of class j that belong to object g, else 0.
3. p̂_g = s_g / Σ_j s_g(j), in place of Eq. 1; M_i is the mean of p̂_g over the objects of class i
   with any detection (Eq. 3).
4. PwB = ||M - Mᵀ||_F (§4.1).

This differs from the matrix that `pcb infer` measures on proposals. What the score threshold, NMS
or the limit of detections an image removed counts as 0, so small entries are missing; every object
counts once, however many proposals lie on it; an object without any detection is `missed` and does
not count. Compare such figures with each other, made with the same thresholds and NMS, but not with
the PwB of proposals and not with the paper's. Needs numpy, and pycocotools for masks.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from pcb.data.lvis.segmentation import encloses
from pcb.errors import UserError
from pcb.evaluation.bias_inputs import (
    BOX,
    MASK,
    class_groups,
    read_detections,
    read_truth,
    refuse_labels,
)
from pcb.evaluation.confusion_metrics import group_means, most_one_sided
from pcb.files import write_json, write_text
from pcb.frequency import GROUP_NAMES, GROUPS, THRESHOLDS
from pcb.geometry import box_iou

IOU_THRESHOLD = 0.5
PAIR_COLUMNS = (
    "i",
    "j",
    "group_i",
    "group_j",
    "objects_i",
    "objects_j",
    "M_ij",
    "M_ji",
    "difference",
)


@dataclass(frozen=True)
class Bias:
    """A measured matrix and its C classes, in the order of their ids.

    Attributes:
        matrix: (C, C) M, row = true class; a class without a matched object has zeros.
        matched: (C,) objects with a detection.
        missed: (C,) objects without one.
        ids: Category ids.
        names: Class names.
        groups: `r`, `c` or `f` of each class, as one string.
        grouped_by: The source of the groups, as text.
    """

    matrix: np.ndarray
    matched: np.ndarray
    missed: np.ndarray
    ids: tuple[int, ...]
    names: tuple[str, ...]
    groups: str
    grouped_by: str

    @property
    def pwb(self) -> float | None:
        """PwB, ||M - Mᵀ||_F (§4.1); None where no object has a detection."""
        if not self.matched.any():
            return None
        return float(np.linalg.norm(self.matrix - self.matrix.T))

    def by_group(self) -> dict[str, dict[str, float | None]]:
        """How much of an object's score goes to the classes of each group.

        Returns:
            `[a][b]`, the mean over the classes of group a with a matched object, of the score that
            goes to group b; None where a has no such class, or b no class at all. `["r"]["f"]` is
            the paper's M_rf.
        """
        matched = self.matched > 0
        means = group_means(self.matrix, matched, self.groups).tolist()
        measured = {g for g, seen in zip(self.groups, matched, strict=True) if seen}
        return {
            a: {
                b: share if a in measured and b in self.groups else None
                for b, share in zip(GROUPS, row, strict=True)
            }
            for a, row in zip(GROUPS, means, strict=True)
        }

    def pairs(self, count: int | None = None, least: int = 1) -> list[dict]:
        """The pairs of classes with the largest M_ij - M_ji > 0; i is the class that loses.

        Args:
            count: How many; None means all.
            least: Matched objects that both classes must have.

        Returns:
            `PAIR_COLUMNS` of each.
        """
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
                float(self.matrix[a, b] - self.matrix[b, a]),
            )
            for a, b in most_one_sided(self.matrix, self.matched >= least, count)
        )
        return [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in rows]

    def as_dict(self, least: int = 1) -> dict:
        """All but the matrix, as JSON values; pairs of classes with `least` matched objects."""
        classes = [
            {
                "id": self.ids[k],
                "name": self.names[k],
                "group": self.groups[k],
                "matched": int(self.matched[k]),
                "missed": int(self.missed[k]),
                "self": float(self.matrix[k, k]),
            }
            for k in range(len(self.ids))
        ]
        return {
            "PwB": self.pwb,
            "by_group": self.by_group(),
            "grouped_by": self.grouped_by,
            "classes": classes,
            "pairs": self.pairs(None, least),
        }


def measure(
    gt: str | Path,
    dt: str | Path,
    iou: str = "bbox",
    train: str | Path | None = None,
    thresholds: Sequence[int] = THRESHOLDS,
) -> Bias:
    """Measure the pairwise bias of detections against ground truth.

    Args:
        gt: Ground truth in COCO or LVIS format.
        dt: Detections, a list of {image_id, category_id, bbox, score[, segmentation]}.
        iou: `bbox`, or `segm` for the IoU of masks.
        train: Annotations whose image counts decide r, c and f. Without it the categories' own
            `frequency` does, else their `image_count`, else the images in `gt`.
        thresholds: Largest number of images of a rare and of a common class.

    Raises:
        UserError: A file is broken, or they do not fit together.
    """
    shape = {"bbox": BOX, "segm": MASK}[iou]
    truth = read_truth(gt, shape)
    detections = read_detections(dt, truth, shape)
    groups, grouped_by = class_groups(truth, train, thresholds)
    label, objects, detected = truth.labels, by_image(truth.objects), by_image(detections)

    classes = len(truth.categories)
    sums = np.zeros((classes, classes))
    matched, missed = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    best = np.zeros((classes, classes), np.int64)  # objects by class and best class
    for image, truths in objects.items():
        labels = np.array([label[a["category_id"]] for a in truths])
        candidates = detected.get(image, [])
        detection_labels = np.array([label[d["category_id"]] for d in candidates], np.int64)
        overlaps = (
            box_iou(boxes(candidates), boxes(truths))
            if iou == "bbox"
            else mask_iou(candidates, truths, truth.images[image])
        )
        detection_scores = np.array([d["score"] for d in candidates], float)
        scores = best_scores(overlaps, detection_labels, detection_scores, labels, classes)
        total = scores.sum(axis=1)
        seen = total > 0
        np.add.at(sums, labels[seen], scores[seen] / total[seen, None])
        np.add.at(best, (labels[seen], scores[seen].argmax(axis=1)), 1)
        np.add.at(matched, labels[seen], 1)
        np.add.at(missed, labels[~seen], 1)
    refuse_labels(dt, truth, best)
    names = tuple(str(c.get("name", c["id"])) for c in truth.categories)
    matrix = sums / np.maximum(matched, 1)[:, None]
    return Bias(matrix, matched, missed, tuple(label), names, groups, grouped_by)


def by_image(entries) -> dict[int, list[dict]]:
    """Annotations or detections by the id of their image."""
    out = defaultdict(list)
    for entry in entries:
        out[entry["image_id"]].append(entry)
    return out


def boxes(entries: Sequence[dict]) -> np.ndarray:
    """(n, 4) float64 x, y, width, height of annotations or detections."""
    return np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)


def best_scores(
    overlaps: np.ndarray,
    detection_labels: np.ndarray,
    detection_scores: np.ndarray,
    labels: np.ndarray,
    classes: int,
) -> np.ndarray:
    """s_g(j): the best score of each class among the detections that belong to each object.

    Args:
        overlaps: (D, G) IoU of detections and objects.
        detection_labels: (D,) class of each detection.
        detection_scores: (D,) score of each detection.
        labels: (G,) class of each object.
        classes: C.

    Returns:
        (G, C), 0 where no detection of a class belongs to an object.
    """
    out = np.zeros((len(labels), classes))
    if overlaps.size:
        which = (overlaps + 1e-9 * (detection_labels[:, None] == labels)).argmax(axis=1)
        near = overlaps[np.arange(len(detection_labels)), which] >= IOU_THRESHOLD
        np.maximum.at(out, (which[near], detection_labels[near]), detection_scores[near])
    return out


def mask_iou(a: Sequence[dict], b: Sequence[dict], image: dict) -> np.ndarray:
    """IoU (len(a), len(b)) of the masks of annotations or detections in one image."""
    try:
        from pycocotools import mask  # optional: the IoU of boxes needs no compiled package
    except ImportError as error:
        raise UserError(
            "--iou segm needs pycocotools", "pip install pycocotools, or use --iou bbox"
        ) from error

    def rle(segmentation):
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if encloses(polygon)]
            return mask.merge(mask.frPyObjects(polygons, image["height"], image["width"]))
        if isinstance(segmentation["counts"], str | bytes):
            return segmentation
        return mask.frPyObjects(segmentation, *segmentation["size"])

    one, other = ([rle(entry["segmentation"]) for entry in entries] for entries in (a, b))
    return np.asarray(mask.iou(one, other, [0] * len(other))).reshape(len(a), len(b))


def write(bias: Bias, path: str | Path, least: int = 1) -> None:
    """Write all as JSON, or the pairs as CSV, by the name's ending.

    Args:
        bias: What was measured.
        path: Ends in `.json` or `.csv`.
        least: Matched objects that both classes of a pair must have.

    Raises:
        UserError: The name has another ending.
    """
    if Path(path).suffix == ".json":
        write_json(path, bias.as_dict(least))
    elif Path(path).suffix == ".csv":
        text = StringIO()
        table = csv.DictWriter(text, PAIR_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(bias.pairs(None, least))
        write_text(path, text.getvalue())
    else:
        raise UserError(f"{path}: neither JSON nor CSV", "choose a name that ends in .json or .csv")


def report(bias: Bias, count: int = 20, least: int = 1) -> str:
    """What `pcb bias` prints, 100 columns wide.

    Args:
        bias: What was measured.
        count: Pairs to list.
        least: Matched objects that both classes of a pair must have.
    """
    groups, pairs = bias.by_group(), bias.pairs(count, least)
    shares = []
    for a, b in ("rf", "fr", "rc", "cr", "cf", "fc"):
        share = groups[a][b]
        shares.append(f"M_{a}{b} " + ("–" if share is None else f"{share:.3f}"))
    seen = int((bias.matched > 0).sum())
    pwb = "–" if bias.pwb is None else f"{bias.pwb:.2f}"
    lines = [
        f"PwB {pwb}, {seen} of {len(bias.ids)} classes: {bias.matched.sum()} objects, "
        f"{bias.missed.sum()} more without a detection",
        "   ".join(shares),
        *unmeasured(bias),
        f"groups from {bias.grouped_by}",
        "",
    ]
    if not pairs:
        lines.append(
            f"no pair of classes with {least} or more matched objects each is confused one-sidedly"
        )
        return "\n".join(lines)
    lines.append(
        f"{'class i':<28}{'predicted as class j':<28}{'objects':>11}"
        f"{'M_ij':>9}{'M_ji':>9}{'difference':>13}"
    )
    for p in pairs:
        i, j = short_name(p["i"], p["group_i"]), short_name(p["j"], p["group_j"])
        lines.append(
            f"{i:<28}{j:<28}{p['objects_i']:>5}{p['objects_j']:>6}"
            f"{p['M_ij']:>9.3f}{p['M_ji']:>9.3f}{p['difference']:>13.3f}"
        )
    return "\n".join(lines)


def unmeasured(bias: Bias) -> list[str]:
    """Why some of M_rf and the like are –: one line for each group and reason."""
    lines = []
    for g in GROUPS:
        members = np.array([group == g for group in bias.groups])
        if not members.any():
            where = "" if "frequency" in bias.grouped_by else ": --thresholds R C moves the groups"
            lines.append(f"– no class is {GROUP_NAMES[g]}{where}")
        elif not bias.matched[members].any():
            lines.append(f"– no object of a {GROUP_NAMES[g]} class has a detection")
    return lines


def short_name(name: str, group: str) -> str:
    """A class's name, cut to 23 characters, with its group."""
    return f"{name if len(name) < 24 else name[:22] + '…'} ({group})"
