"""A tiny data set of coloured squares in COCO and LVIS format, as a user of the plug-in has one."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("dove", "owl", "wren")


def write_squares(folder: Path, images: int = 6, size: int = 64) -> Path:
    """Write `annotations/{train,val}.json` and images below `folder`, and return it.

    Each image has two squares, as polygons. The files are both COCO and LVIS.
    """
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    categories = [
        {"id": 5 + 2 * k, "name": name, "frequency": "rcf"[k]} for k, name in enumerate(CLASSES)
    ]
    content = {"images": [], "annotations": [], "categories": categories}
    for i in range(1, images + 1):
        name = f"{i:012d}.png"
        pixels = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
        content["images"].append(
            {
                "id": i,
                "width": size,
                "height": size,
                "file_name": name,
                "neg_category_ids": [],
                "coco_url": f"http://images.cocodataset.org/train/{name}",
                "not_exhaustive_category_ids": [],
            }
        )
        for k, (x, y) in enumerate([(2, 4), (26, 22)]):
            channel, side = (i + k) % 3, int(rng.integers(20, 36))
            pixels[y : y + side, x : x + side, channel] = 220
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i,
                    "category_id": 5 + 2 * channel,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                }
            )
        cv2.imwrite(str(folder / "train" / name), pixels)
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder
