"""Scoring at LVIS size: from shards on disk to AP, against lvis-api, on random detections.

3,000 images for ours and lvis-api's, 2,000 and 19,809 (LVIS v1 val) for ours; with `--quick` only
100. 300 detections an image, 1,203 classes. Every figure is of a process of its own: seconds from
the start of reading to the metrics, and peak memory. Ours uses all cores, as `pcb score` does;
lvis-api uses one. Both read the same shards and the same annotation file; lvis-api also has to turn
them into the list of dicts that it takes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
from harness import Figure, main

from pcb.evaluation.score import evaluate
from pcb.evaluation.shards import Shards, ShardWriter, plan_shards

CLASSES, DETECTIONS, HEIGHT, WIDTH = 1203, 300, 480, 640
LVIS_V1_VAL = 19809
SHAPES, JITTERS = 400, 12  # families of masks: a true one and its distorted copies


def shapes(rng: np.random.Generator) -> tuple[list, np.ndarray, np.ndarray]:
    """Draw blobs of 40 corners, each with `JITTERS` distorted copies; copy 0 is the true one.

    Returns:
        The true polygons; boxes (SHAPES, JITTERS + 1, 4) and RLE counts (SHAPES, JITTERS + 1) of
        all copies.
    """
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    polygons = []
    boxes = np.zeros((SHAPES, JITTERS + 1, 4))
    rles = np.empty((SHAPES, JITTERS + 1), object)
    for s in range(SHAPES):
        centre = rng.uniform([60, 60], [WIDTH - 60, HEIGHT - 60])
        radius = np.exp(rng.uniform(np.log(8), np.log(120), 2))
        blob = centre + radius * circle * rng.uniform(0.7, 1, (40, 1))
        for j in range(JITTERS + 1):
            spread = 0.12 * j / JITTERS
            copy = (
                centre
                + (blob - centre) * np.exp(rng.normal(0, spread, 2))
                + radius * rng.normal(0, spread, 2)
            )
            copy = copy.clip(0, [WIDTH, HEIGHT])
            rle = coco_mask.frPyObjects([copy.ravel().tolist()], HEIGHT, WIDTH)[0]
            boxes[s, j], rles[s, j] = coco_mask.toBbox(rle), rle["counts"]
        polygons.append(blob.clip(0, [WIDTH, HEIGHT]).round(2).ravel().tolist())
    return polygons, boxes, rles


def make(folder: Path, images: int, seed: int = 0) -> None:
    """Write gt.json, shards and manifest.json.

    12 objects and 300 detections an image, classes by a power law, and LVIS's federated fields.
    """
    rng = np.random.default_rng(seed)
    polygons, boxes, rles = shapes(rng)
    weight = 1 / np.arange(1, CLASSES + 1) ** 0.9
    draw = np.cumsum(weight / weight.sum())
    truth = {
        "images": [],
        "annotations": [],
        "categories": [
            {
                "id": c,
                "name": f"class{c}",
                "frequency": "f" if c <= 405 else "c" if c <= 866 else "r",
            }
            for c in range(1, CLASSES + 1)
        ],
    }
    writer = ShardWriter(folder / "shards", "benchmark", ["plain"])
    shards = plan_shards(range(1, images + 1))
    for image_ids in shards:
        columns = {k: [] for k in ("image_id", "category_id", "box", "score:plain", "rle")}
        for image in image_ids:
            objects = rng.poisson(12)
            shown = 1 + np.searchsorted(draw, rng.random(objects))
            shape = rng.integers(SHAPES, size=objects)
            others = np.setdiff1d(1 + np.searchsorted(draw, rng.random(11)), shown)
            truth["images"].append(
                {
                    "id": image,
                    "file_name": f"{image:012d}.jpg",
                    "height": HEIGHT,
                    "width": WIDTH,
                    "neg_category_ids": others.tolist(),
                    "not_exhaustive_category_ids": np.unique(
                        shown[rng.random(objects) < 0.05]
                    ).tolist(),
                }
            )
            for c, s in zip(shown.tolist(), shape.tolist(), strict=True):
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]) + 1,
                        "image_id": image,
                        "category_id": c,
                        "iscrowd": 0,
                        "bbox": boxes[s, 0].tolist(),
                        "area": float(boxes[s, 0, 2:].prod() * 0.6),
                        "segmentation": [polygons[s]],
                    }
                )
            if objects:
                which = rng.integers(objects, size=DETECTIONS)
                jitter = rng.integers(1, JITTERS + 1, size=DETECTIONS)
                right = rng.random(DETECTIONS) < 0.4
                columns["image_id"].append(np.full(DETECTIONS, image))
                columns["category_id"].append(
                    np.where(right, shown[which], 1 + np.searchsorted(draw, rng.random(DETECTIONS)))
                )
                columns["box"].append(boxes[shape[which], jitter])
                columns["score:plain"].append(
                    rng.beta(1.2, 3, DETECTIONS) * np.where(right, 1, 0.6)
                )
                columns["rle"].append(rles[shape[which], jitter])
        rows = {k: np.concatenate(v) for k, v in columns.items()}
        size = {
            "height": np.full(len(rows["rle"]), HEIGHT),
            "width": np.full(len(rows["rle"]), WIDTH),
        }
        writer.write(image_ids, rows | size | dict(zip("xywh", rows["box"].T, strict=True)))
    (folder / "gt.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(writer.finish(shards)), encoding="utf-8")


def made_shards(folder: Path) -> Shards:
    """The shards that `make` wrote."""
    return Shards(
        folder / "shards", json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    )


def ours(folder: Path, iou_type: str) -> dict:
    """The metrics by `pcb.evaluation.score`."""
    metrics = evaluate(folder / "gt.json", made_shards(folder), "plain", iou_type)
    return {k: v for k, v in metrics.items() if k != "classes"}


def lvis_api(folder: Path, iou_type: str) -> dict:
    """The metrics by lvis-api, imported here alone, for the memory of the other side."""
    import logging

    np.float = float  # lvis 0.5.3 was written for numpy < 1.24
    logging.disable(logging.WARNING)
    from lvis import LVIS, LVISEval, LVISResults

    results = []
    for rows in made_shards(folder).read("plain", masks=iou_type == "segm"):
        columns = [
            rows.image_id.tolist(),
            rows.category_id.tolist(),
            rows.score.tolist(),
            rows.box.astype(float).tolist(),
        ]
        some = [
            dict(zip(("image_id", "category_id", "score", "bbox"), row, strict=True))
            for row in zip(*columns, strict=True)
        ]
        if iou_type == "segm":
            for row, counts in zip(some, rows.rle.to_pylist(), strict=True):
                row["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
        results += some
    truth = LVIS(str(folder / "gt.json"))
    reference = LVISEval(truth, LVISResults(truth, results), iou_type)
    reference.run()
    return {k: None if v == -1 else float(v) * 100 for k, v in reference.get_results().items()}


SIDES = {"ours": ours, "lvis-api": lvis_api}


def alone(side: str, folder: Path, iou_type: str) -> dict:
    """One measurement in a process of its own: seconds, peak memory in GiB, metrics."""
    command = [sys.executable, __file__, "--alone", side, str(folder), iou_type]
    return json.loads(
        subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8"
        ).stdout.splitlines()[-1]
    )


def report(side: str, folder: str, iou_type: str) -> None:
    """Measure in this process and print the figures as JSON, for `alone`."""
    began = time.monotonic()
    metrics = SIDES[side](Path(folder), iou_type)
    seconds = time.monotonic() - began
    print(
        json.dumps(
            {
                "seconds": seconds,
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "metrics": metrics,
            }
        )
    )


def measure(quick: bool) -> list[Figure]:
    """Score data sets of several sizes."""
    figures = []
    both = 100 if quick else 3000
    for images in [both] if quick else [both, 2000, LVIS_V1_VAL]:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), images)
            for iou_type in ("bbox", "segm"):
                what, mine = f"{iou_type}, {images:,} images", alone("ours", Path(folder), iou_type)
                if images == both:
                    theirs = alone("lvis-api", Path(folder), iou_type)
                    apart = max(
                        abs((mine["metrics"][k] or 0) - (v or 0))
                        for k, v in theirs["metrics"].items()
                    )
                    figures += [
                        Figure(
                            f"{what}, against lvis-api",
                            mine["seconds"],
                            theirs["seconds"],
                            "s",
                            target=1 / 20,
                        ),
                        Figure(f"{what}: memory", mine["gib"], theirs["gib"], "GiB"),
                        Figure(
                            f"{what}: largest difference in AP to lvis-api",
                            apart,
                            unit="points",
                            target=1e-6,
                        ),
                    ]
                else:
                    limits = (60, 8) if images == LVIS_V1_VAL else (None, None)
                    figures += [
                        Figure(what, mine["seconds"], unit="s", target=limits[0]),
                        Figure(f"{what}: memory", mine["gib"], unit="GiB", target=limits[1]),
                    ]
    return figures


if __name__ == "__main__":
    if "--alone" in sys.argv:
        report(*sys.argv[2:])
    else:
        main("score", measure)
