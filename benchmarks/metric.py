"""The evaluators of MMDetection for LVIS: PCBLVISMetric beside LVISMetric, on random detections.

300 detections an image with masks, 1,203 classes; 400 images, with `--quick` 20. The detections
come as a detector hands them on, but for masks, which are RLEs already: to encode them, which ours
does for those alone that count, is left out. Each side runs in a process of its own: seconds to
build the evaluator, to process all images and to compute the metrics, and peak memory. LVISMetric
calls lvis-api, which is patched here for numpy 1.24 or newer.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Figure, main
from score import HEIGHT, WIDTH, made_shards, make

SIDES = {"ours": "PCBLVISMetric", "mmdet": "LVISMetric"}


def samples(folder: Path) -> Iterator[dict]:
    """What MMDetection's evaluator gets for each image."""
    import torch

    for rows in made_shards(folder).read("plain", masks=True):
        assert rows.rle is not None
        masks = rows.rle.to_pylist()
        for image in rows.images:
            of = np.flatnonzero(rows.image_id == image)
            boxes = torch.tensor(rows.box[of])
            boxes[:, 2:] += boxes[:, :2]
            yield {
                "img_id": image,
                "ori_shape": (HEIGHT, WIDTH),
                "pred_instances": {
                    "bboxes": boxes,
                    "scores": torch.tensor(rows.score[of]),
                    "labels": torch.tensor(rows.category_id[of] - 1).long(),
                    "masks": [{"size": [HEIGHT, WIDTH], "counts": masks[k]} for k in of],
                },
            }


def report(side: str, folder: str) -> None:
    """Measure one side in this process and print the figures as JSON, for `alone`."""
    import logging

    from mmdet.evaluation.metrics import lvis_metric
    from mmdet.registry import METRICS

    import pcb.mmdet  # noqa: F401  registers

    np.float = float  # lvis 0.5.3 was written for numpy < 1.24
    lvis_metric.encode_mask_results = bytes_as_masks
    logging.disable(logging.WARNING)
    path, kinds = str(Path(folder) / "gt.json"), ["bbox", "segm"]
    seconds, began = {}, time.monotonic()
    metric = METRICS.build(dict(type=SIDES[side], ann_file=path, metric=kinds))
    seconds["build"] = time.monotonic() - began
    seconds["process"], count = 0.0, 0
    for sample in samples(Path(folder)):
        if side == "mmdet":
            sample["pred_instances"]["masks"] = Encoded(sample["pred_instances"]["masks"])
        began = time.monotonic()
        metric.process({}, [sample])
        seconds["process"] += time.monotonic() - began
        count += 1
    began = time.monotonic()
    metrics = metric.evaluate(count)
    seconds["compute"] = time.monotonic() - began
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "gib": gib, "metrics": metrics}))


class Encoded(list):
    """RLEs where MMDetection's evaluator expects a tensor of masks."""

    def detach(self) -> Encoded:
        """Itself, as `cpu` and `numpy`."""
        return self

    cpu = numpy = detach


def bytes_as_masks(masks: Encoded) -> list[dict]:
    """The RLEs, which need not be encoded."""
    return list(masks)


def alone(side: str, folder: Path) -> dict:
    """One side in a process of its own: seconds of each part, peak memory in GiB, metrics."""
    command = [sys.executable, "-W", "ignore", __file__, "--alone", side, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def measure(quick: bool) -> list[Figure]:
    """Evaluate one data set on both sides."""
    images = 20 if quick else 400
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), images)
        ours, mmdet = (alone(side, Path(name)) for side in SIDES)
    for key, value in mmdet["metrics"].items():  # rounded there to three digits
        assert abs(ours["metrics"][key] - value) <= 5.1e-4, (key, ours["metrics"][key], value)
    total = [sum(side["seconds"].values()) for side in (ours, mmdet)]
    figures = [Figure(f"boxes and masks of {images} images", *total, "s", target=0.5)]
    figures += [
        Figure(f"  {part}", ours["seconds"][part], mmdet["seconds"][part], "s")
        for part in ours["seconds"]
    ]
    return [*figures, Figure("peak memory", ours["gib"], mmdet["gib"], "GiB", target=1)]


if __name__ == "__main__":
    if "--alone" in sys.argv:
        report(*sys.argv[sys.argv.index("--alone") + 1 :])
    else:
        main("metric", measure)
