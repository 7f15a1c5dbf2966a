"""A data set of one's own in COCO's format: odd ids, null keys, a crowd; and its scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

IDS = (900_000_000_007, 3, 40)  # of the categories, in the file's order: kite, apple, lamp
NAMES = ("kite", "apple", "lamp")
SIDE = 64
# Images of a split and the objects (class, x, y, side) of each; ids of images restart at 1.
TRAIN = [
    [(0, 4, 4, 24), (1, 34, 30, 22)],
    [(0, 20, 8, 26)],
    [(0, 30, 30, 20), (2, 4, 34, 20)],
    [(0, 6, 30, 24), (1, 36, 6, 20)],
]
VAL = [[(0, 8, 8, 24), (1, 36, 34, 20)], [(0, 30, 6, 22), (2, 6, 36, 20)]]


def annotation_file(path: Path, images: list[list[tuple]], prefix: str) -> Path:
    """Write an annotation file and the images, rectangles on noise; one object more is a crowd."""
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    content: dict = {"info": None, "images": [], "annotations": [], "categories": []}
    for number, name in zip(IDS, NAMES, strict=True):
        content["categories"].append({"id": number, "name": name, "supercategory": None})
    rng = np.random.default_rng(0)
    for i, objects in enumerate(images, 1):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        for label, x, y, side in objects:
            pixels[y : y + side, x : x + side, label] += 180
            content["annotations"].append(square(content, i, label, x, y, side))
        if i == 1:
            crowd = square(content, i, 0, 40, 2, 20)
            area = np.zeros((SIDE, SIDE), np.uint8, order="F")
            area[2:22, 40:60] = 1
            rle = coco_mask.encode(area)
            rle["counts"] = rle["counts"].decode()
            content["annotations"].append({**crowd, "iscrowd": 1, "segmentation": rle})
        name = f"{prefix}{i}.png"
        Image.fromarray(pixels).save(folder / name)
        size = {"width": SIDE, "height": SIDE}
        content["images"].append({"id": i, "file_name": name, "coco_url": None, **size})
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


def square(content: dict, image: int, label: int, x: int, y: int, side: int) -> dict:
    """A square as an annotation."""
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        "id": len(content["annotations"]) + 1,  # pycocotools takes an object 0 as never matched
        "image_id": image,
        "category_id": IDS[label],
        "bbox": [x, y, side, side],
        "area": side * side,
        "segmentation": [corners],
        "iscrowd": 0,
    }


def own_dataset(folder: Path) -> dict:
    """Write the data set; returns the scale's entry."""
    return {
        "title": "My shapes",
        "format": "coco",
        "in_place_of": "v05",
        "train": str(annotation_file(folder / "train.json", TRAIN, "t")),
        "val": str(annotation_file(folder / "val.json", VAL, "v")),
        "images": str(folder / "images"),
        "thresholds": [1, 3],
    }


def own_scale(path: Path, entry: dict, **sections) -> Path:
    """Write a scale file about one own data set: the smoke scale without anything generated."""
    import yaml

    from pcb.study.load import SCALES, read_yaml

    scale = read_yaml(SCALES / "smoke.yaml")
    del scale["synthetic"], scale["notes"], scale["backbones"]["r101"]
    scale |= {"name": "own", "title": "My data", "results": str(path.parent / "results")}
    scale["train"]["rfs_threshold"] = 0.6  # repeats the class that a quarter of the images show
    scale |= {"datasets": {"mine": entry}} | sections
    path.write_text(yaml.safe_dump(scale), encoding="utf-8")
    return path
