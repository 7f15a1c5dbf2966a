"""Small data sets for tests: a tiny emoji-LVIS, a hand-made annotation file, a real LVIS sample."""

import copy
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pcb.synthetic.generate import Recipe, write_dataset

TINY = Recipe(
    train_images=64, val_images=26, dev_images=13, pretrain_images=29, head=8, thresholds=(2, 4)
)
SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/lvis_v0.5_sample"
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason=f"{SAMPLE} (100 real LVIS v0.5 images) is missing"
)

HAND = {
    "images": [
        {"id": 7, "width": 100, "height": 80, "file_name": "COCO_val2014_000000000007.jpg"},
        {"id": 9, "width": 100, "height": 80, "file_name": "COCO_train2014_000000000009.jpg"},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 2,
            "bbox": [10, 10, 20, 20],
            "area": 200,
            "segmentation": [[10, 10, 30, 10, 30, 30]],
        },
        {
            "id": 2,
            "image_id": 9,
            "category_id": 1,
            "bbox": [0, 0, 5, 5],
            "area": 12.5,
            "segmentation": [[0, 0, 5, 0, 5, 5]],
        },
    ],
    "categories": [{"id": 1, "name": "dove"}, {"id": 2, "name": "owl"}],
}

FOLDERS: list[TemporaryDirectory] = []  # removed when the session ends


@cache
def tiny(dataset: str) -> Path:
    """Return the folder of the tiny data set, drawn once per session."""
    FOLDERS.append(TemporaryDirectory(prefix="emoji-lvis-"))
    folder = Path(FOLDERS[-1].name) / dataset
    write_dataset(TINY, dataset, folder)
    return folder


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def by_hand(path: Path, change=lambda content: None) -> Path:
    """Write the hand-made annotation file as `change` modifies it."""
    content = copy.deepcopy(HAND)
    change(content)
    path.write_text(json.dumps(content))
    return path
