"""The LVIS data path: what a worker does for one training image of 1333x800, its floor, and how many workers feed a GPU.

Drawn photographs of 640x480 (about 140 kB, near COCO's mean) with 13 objects each, LVIS's mean, of the twin's outlines; the LVIS scale's
own training pipeline at its largest size, with a flip. The reference is the same pipeline with MMDetection's whole-image bitmaps
(`LoadAnnotations`), which gives the same targets to the bit (tests/test_data_masks.py). One thread; CPU time, the least of the repeats.

    workers for one GPU = images/s of the GPU / images/s of a worker

The last lines give the right-hand side for an assumed 40 images/s: set GPU_RATE to what `pcb measure` says of your own machine.
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

OBJECTS = 13
GPU_RATE = float(
    os.environ.get("GPU_RATE", 40)
)  # images/s of one GPU; an assumption, not a measurement


def photograph(random: np.random.Generator) -> bytes:
    """A JPEG of 640x480 with large shapes and fine grain."""
    shapes = cv2.resize(
        random.integers(0, 255, (30, 40, 3)).astype(np.uint8),
        (640, 480),
        interpolation=cv2.INTER_CUBIC,
    )
    grain = cv2.GaussianBlur(random.normal(0, 90, (480, 640, 3)), (0, 0), 1.2)
    pixels = np.clip(shapes + grain, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def image(path: Path, random: np.random.Generator, texts: list[str]) -> dict:
    """What the data set gives to the pipeline."""
    path.write_bytes(photograph(random))
    instances = []
    for number in random.integers(0, len(texts), OBJECTS):
        found = json.loads("{" + texts[number] + "}")
        x, y, width, height = found["bbox"]
        instances.append(
            {
                "bbox": [x, y, x + width, y + height],
                "bbox_label": 1,
                "ignore_flag": 0,
                "mask": [np.array(polygon) for polygon in found["segmentation"]],
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
    """The steps of configs/mmdet/lvis_r50.py, with their largest size and a flip, one by one."""
    from mmdet.registry import TRANSFORMS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import pcb.data.lvis.dataset  # noqa: F401

    init_default_scope("mmdet")
    steps = Config.fromfile(
        str(Path(__file__).parents[1] / "configs/mmdet/lvis_r50.py")
    ).train_pipeline
    largest = {"LoadWindowMasks": {"type": load}, "RandomFlip": {"prob": 1.0}}
    steps = [
        {"type": "Resize", "scale": step["scales"][-1], "keep_ratio": True}
        if step["type"] == "RandomChoiceResize"
        else {**step, **largest.get(step["type"], {})}
        for step in steps
    ]
    return [TRANSFORMS.build(step) for step in steps]


def run(steps: list[Callable], info: dict) -> dict[str, float]:
    """CPU seconds of each step, of handing the sample to another process (both ends), and its bytes."""
    sample, took = {**info, "instances": [dict(i) for i in info["instances"]]}, {}
    for name, step in zip(
        ("read and decode", "annotations", "resize", "flip", "pack"), steps, strict=True
    ):
        start = time.process_time()
        sample = step(sample)
        took[name] = time.process_time() - start
    start = time.process_time()
    sent = pickle.dumps(
        sample["data_samples"], protocol=5
    )  # the image itself goes through shared memory
    pickle.loads(sent)
    took["hand over"] = time.process_time() - start
    return took | {"bytes": len(sent)}


def measure(quick: bool) -> list[Figure]:
    cv2.setNumThreads(0)
    random = np.random.default_rng(0)
    texts = twin.shapes(random)
    with tempfile.TemporaryDirectory() as folder:
        infos = [image(Path(folder) / f"{i}.jpg", random, texts) for i in range(8 if quick else 32)]
        sides = {"ours": pipeline("LoadWindowMasks"), "stock": pipeline("LoadAnnotations")}
        least: dict[str, list[dict]] = {side: [{} for _ in infos] for side in sides}
        decode = [np.inf] * len(infos)
        for _ in range(3 if quick else 12):
            for i, info in enumerate(infos):
                for side, steps in sides.items():
                    for part, value in run(steps, info).items():
                        least[side][i][part] = min(value, least[side][i].get(part, np.inf))
                start = time.process_time()
                cv2.imdecode(np.fromfile(info["img_path"], np.uint8), cv2.IMREAD_COLOR)
                decode[i] = min(decode[i], time.process_time() - start)
    mean = {
        side: {part: float(np.mean([image[part] for image in images])) for part in images[0]}
        for side, images in least.items()
    }
    parts = [part for part in mean["ours"] if part != "bytes"]
    whole = {side: sum(mean[side][part] for part in parts) for side in sides}
    floor = float(np.mean(decode))
    return [
        Figure("one image, all steps", whole["ours"] * 1e3, whole["stock"] * 1e3, "ms"),
        *(
            Figure(f"  {part}", mean["ours"][part] * 1e3, mean["stock"][part] * 1e3, "ms")
            for part in parts
        ),
        Figure(
            "  its masks, boxes and labels, from worker to trainer",
            mean["ours"]["bytes"] / 1e6,
            mean["stock"]["bytes"] / 1e6,
            "MB",
        ),
        Figure(
            "one image, all steps, against its floor: JPEG decoding alone",
            whole["ours"] * 1e3,
            floor * 1e3,
            "ms",
        ),
        Figure(
            "images per second of a worker (more is better)",
            1 / whole["ours"],
            1 / whole["stock"],
            "1/s",
        ),
        Figure(
            f"workers for a GPU that takes {GPU_RATE:g} images/s (assumed)",
            GPU_RATE * whole["ours"],
            GPU_RATE * whole["stock"],
            "",
        ),
    ]


if __name__ == "__main__":
    main("data", measure)
