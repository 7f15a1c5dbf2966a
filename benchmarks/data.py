"""The LVIS data path: one training image of 1333x800 in a worker, and how many workers feed a GPU.

Synthetic photographs of 640x480 (about 140 kB, near COCO's mean) with 13 objects each, LVIS's mean,
shaped as in benchmarks/twin.py; the LVIS scale's own training pipeline at its largest size, with a
flip. The reference is the same pipeline with MMDetection's full-size bitmaps (`LoadAnnotations`),
which gives equal targets (tests/unit/test_data_masks.py). One thread; CPU time, the least of the
repeats.

    workers for one GPU = images/s of the GPU / images/s of a worker

The last line gives it for an assumed 40 images/s: set GPU_RATE to what `pcb measure` reports on
your machine.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import twin
from harness import Figure, main

CONFIG = Path(__file__).parents[1] / "configs/mmdet/lvis_r50.py"
STEPS = ("read and decode", "annotations", "resize", "flip", "pack")
OBJECTS = 13
GPU_RATE = float(os.environ.get("GPU_RATE", 40))  # images/s of one GPU; assumed, not measured


def photograph(rng: np.random.Generator) -> bytes:
    """Return a JPEG of 640x480 with large shapes and fine grain."""
    shapes = cv2.resize(
        rng.integers(0, 255, (30, 40, 3)).astype(np.uint8),
        (640, 480),
        interpolation=cv2.INTER_CUBIC,
    )
    grain = cv2.GaussianBlur(rng.normal(0, 90, (480, 640, 3)), (0, 0), 1.2)
    pixels = np.clip(shapes + grain, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def image(path: Path, rng: np.random.Generator, texts: list[str]) -> dict:
    """Write a photograph; return its entry in the data list, with objects from `texts`."""
    path.write_bytes(photograph(rng))
    instances = []
    for number in rng.integers(0, len(texts), OBJECTS):
        annotation = json.loads("{" + texts[number] + "}")
        x, y, width, height = annotation["bbox"]
        instances.append(
            {
                "bbox": [x, y, x + width, y + height],
                "bbox_label": 1,
                "ignore_flag": 0,
                "mask": [np.array(polygon) for polygon in annotation["segmentation"]],
            }
        )
    return {
        "img_path": str(path),
        "img_id": 1,
        "seg_map_path": None,
        "height": 480,
        "width": 640,
        "instances": instances,
    }


def pipeline(load: str) -> list[Callable]:
    """Build the training transforms of the LVIS scale, at their largest size and with a flip.

    Args:
        load: Type of the transform that loads annotations.
    """
    from mmdet.registry import TRANSFORMS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import pcb.data.lvis.dataset  # noqa: F401

    init_default_scope("mmdet")
    changes = {"LoadWindowMasks": {"type": load}, "RandomFlip": {"prob": 1.0}}
    transforms = []
    for step in Config.fromfile(str(CONFIG)).train_pipeline:
        if step["type"] == "RandomChoiceResize":
            step = {"type": "Resize", "scale": step["scales"][-1], "keep_ratio": True}
        transforms.append(TRANSFORMS.build({**step, **changes.get(step["type"], {})}))
    return transforms


def run(transforms: list[Callable], info: dict) -> dict[str, float]:
    """Return CPU seconds of each step and of sending the sample to the trainer, and its bytes."""
    sample, measured = {**info, "instances": [dict(i) for i in info["instances"]]}, {}
    for name, transform in zip(STEPS, transforms, strict=True):
        start = time.process_time()
        sample = transform(sample)
        measured[name] = time.process_time() - start
    start = time.process_time()
    # The image itself goes through shared memory.
    sent = pickle.dumps(sample["data_samples"], protocol=5)
    pickle.loads(sent)
    measured["hand over"] = time.process_time() - start
    return measured | {"bytes": len(sent)}


def measure(quick: bool) -> list[Figure]:
    """Measure both pipelines; `quick`: fewer images and repeats."""
    cv2.setNumThreads(0)
    rng = np.random.default_rng(0)
    texts = twin.shapes(rng)
    with tempfile.TemporaryDirectory() as folder:
        infos = [image(Path(folder) / f"{i}.jpg", rng, texts) for i in range(8 if quick else 32)]
        sides = {"ours": pipeline("LoadWindowMasks"), "stock": pipeline("LoadAnnotations")}
        least: dict[str, list[dict]] = {side: [{} for _ in infos] for side in sides}
        decode = [np.inf] * len(infos)
        for _ in range(3 if quick else 12):
            for i, info in enumerate(infos):
                for side, transforms in sides.items():
                    for step, value in run(transforms, info).items():
                        least[side][i][step] = min(value, least[side][i].get(step, np.inf))
                start = time.process_time()
                cv2.imdecode(np.fromfile(info["img_path"], np.uint8), cv2.IMREAD_COLOR)
                decode[i] = min(decode[i], time.process_time() - start)
    mean = {
        side: {step: float(np.mean([image[step] for image in images])) for step in images[0]}
        for side, images in least.items()
    }
    ours, stock = mean["ours"], mean["stock"]
    sizes = ours.pop("bytes") / 1e6, stock.pop("bytes") / 1e6
    seconds = sum(ours.values()), sum(stock.values())
    milliseconds = tuple(value * 1e3 for value in seconds)
    return [
        Figure("one image, all steps", *milliseconds, "ms"),
        *(Figure(f"  {step}", ours[step] * 1e3, stock[step] * 1e3, "ms") for step in ours),
        Figure("  its masks, boxes and labels, from worker to trainer", *sizes, "MB"),
        Figure(
            "one image, all steps, against its floor: JPEG decoding alone",
            milliseconds[0],
            float(np.mean(decode)) * 1e3,
            "ms",
        ),
        Figure(
            "images per second of a worker (more is better)",
            *(1 / value for value in seconds),
            "1/s",
        ),
        Figure(
            f"workers for a GPU that takes {GPU_RATE:g} images/s (assumed)",
            *(GPU_RATE * value for value in seconds),
            "",
        ),
    ]


if __name__ == "__main__":
    main("data", measure)
