"""For tests of the scorer: perturbed detections, and lvis-api, whose metrics ours must equal."""

from __future__ import annotations

import copy
import logging
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pycocotools.mask as coco_mask

from pcb.evaluation.shards import Rows

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/lvis_v0.5_sample/lvis_val_100.json"


def rle(annotation: dict, image: dict) -> bytes:
    """COCO's compressed counts of an annotation's polygons."""
    polygons = coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
    return coco_mask.merge(polygons)["counts"]


def federated_set(seed: int, negatives: int = 2) -> dict:
    """12 images, 9 classes, polygons, and every rule of a federated data set.

    The first image is empty, half of the images have a class that is not exhaustively annotated,
    and class 9 (rare) has no ground truth.

    Args:
        seed: Seed.
        negatives: Verified absent classes of an image, of five.
    """
    rng = np.random.default_rng(seed)
    truth: dict = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": k, "name": f"class{k}", "frequency": "r" if k == 9 else "rcf"[k % 3]}
            for k in range(1, 10)
        ],
    }
    for i in range(12):
        shown = rng.choice(np.arange(1, 9), 4, replace=False).tolist()
        others = [k for k in range(1, 10) if k not in shown]
        truth["images"].append(
            {
                "id": 100 + 7 * i,
                "file_name": f"{i}.jpg",
                "height": 80,
                "width": 100,
                "not_exhaustive_category_ids": shown[:1] if i % 2 else [],
                "neg_category_ids": rng.choice(others, negatives, replace=False).tolist(),
            }
        )
        for category in shown * 2 if i else []:
            x, y = rng.uniform(0, 60), rng.uniform(0, 45)
            w, h = rng.uniform(8, 38, 2)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 100 + 7 * i,
                    "category_id": category,
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": w * h / 2,
                    "segmentation": [[x, y, x + w, y, x + w / 2, y + h]],
                }
            )
    return truth


def flagged(truth: dict, seed: int, flag: str) -> dict:
    """The same with a third of the objects marked, and every image annotated exhaustively."""
    rng = np.random.default_rng(seed)
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation[flag] = int(rng.random() < 1 / 3)
    shown = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    for image in truth["images"]:
        absent = [c["id"] for c in truth["categories"] if (image["id"], c["id"]) not in shown]
        image.update(neg_category_ids=absent, not_exhaustive_category_ids=[])
    return truth


def perturbed(truth: dict, seed: int, per_object: int = 3) -> list[Rows]:
    """Detections around the ground truth, four images a shard, not in the file's order.

    Boxes are jittered, masks may be those of other objects, classes may be wrong (negative or
    unlisted), and scores have one decimal, so ties are common.
    """
    rng = np.random.default_rng(seed)
    categories = [c["id"] for c in truth["categories"]]
    of = {
        image["id"]: [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for image in truth["images"]
    }
    images = [truth["images"][i] for i in rng.permutation(len(truth["images"]))]
    found = []
    for start in range(0, len(images), 4):
        shard, rows = images[start : start + 4], []
        for image in shard:
            for annotation in of[image["id"]] * per_object:
                box = np.array(annotation["bbox"])
                box = box + rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
                category, kind = annotation["category_id"], rng.random()
                if kind > 0.85:
                    category = int(rng.choice(categories))
                elif kind > 0.7 and image["neg_category_ids"]:
                    category = int(rng.choice(image["neg_category_ids"]))
                other = (
                    of[image["id"]][rng.integers(len(of[image["id"]]))]
                    if rng.random() < 0.3
                    else annotation
                )
                rows.append(
                    (
                        image["id"],
                        category,
                        np.maximum(box, [-1e9, -1e9, 1, 1]),
                        round(rng.random(), 1),
                        (image["height"], image["width"]),
                        rle(other, image),
                    )
                )
        columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
        found.append(
            Rows(
                [image["id"] for image in shard],
                np.array(columns[0], np.int64),
                np.array(columns[1], np.int32),
                np.array(columns[2], np.float32).reshape(-1, 4),
                np.array(columns[3], np.float32),
                np.array(columns[4], np.int32).reshape(-1, 2),
                pa.array(columns[5], pa.binary()),
            )
        )
    return found


def as_json(detections: list[Rows]) -> list[dict]:
    """Detections as COCO's and LVIS's evaluation reads them."""
    return [
        {
            "image_id": int(rows.image_id[k]),
            "category_id": int(rows.category_id[k]),
            "score": float(rows.score[k]),
            "bbox": rows.box[k].astype(float).tolist(),
            "segmentation": {"size": rows.size[k].tolist(), "counts": rows.rle[k].as_py()},
        }
        for rows in detections
        for k in range(len(rows))
    ]


def pycocotools_ap(path: Path, detections: list[Rows], iou_type: str) -> float:
    """AP by pycocotools, in points."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(None):
        truth = COCO(str(path))
        reference = COCOeval(truth, truth.loadRes(as_json(detections)), iou_type)
        reference.params.maxDets = [300]
        reference.evaluate()
        reference.accumulate()
    precision = reference.eval["precision"][:, :, :, 0, 0]
    return precision[precision > -1].mean() * 100


def lvis_api(path: Path, detections: list[Rows], iou_type: str) -> tuple[dict, dict, dict]:
    """The 13 metrics and AP of each category id by lvis-api, in points, None where it has -1.

    Also (101,) precision of each category at IoU 0.5, 0 to 1.
    """
    np.float = float  # lvis 0.5.3 was written for numpy < 1.24
    logging.disable(logging.WARNING)
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS(str(path))
    reference = LVISEval(truth, LVISResults(truth, as_json(detections)), iou_type)
    reference.run()
    metrics = {
        name: None if value == -1 else value * 100
        for name, value in reference.get_results().items()
    }
    precision = reference.eval["precision"][..., 0]  # IoU, recall, class
    classes = {}
    for k, category in enumerate(reference.params.cat_ids):
        values = precision[:, :, k][precision[:, :, k] > -1]
        classes[category] = values.mean() * 100 if values.size else None
    curves = dict(zip(reference.params.cat_ids, precision[0].T, strict=True))
    return metrics, classes, curves
