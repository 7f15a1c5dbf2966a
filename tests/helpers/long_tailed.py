"""A long-tailed data set as a user brings it: annotation files in COCO's format, ids with gaps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COUNTS = (30, 12, 6, 4, 2, 2, 1, 1)  # training images of each class


def write_own(
    folder: Path, counts: Sequence[int] = COUNTS, size: tuple[int, int] = (120, 90)
) -> dict[str, str]:
    """Write train.json, val.json and images; class k is in the first `counts[k]` images of train.

    Returns:
        The options `train`, `val` and `images` of `pcb new-scale`.
    """
    (folder / "photos").mkdir(parents=True)
    categories = [{"id": 10 + 3 * k, "name": f"class {k}"} for k in range(len(counts))]
    for split, first, shown in (
        ("train", 0, counts),
        ("val", 1000, [min(3, n) for n in counts]),
    ):
        content = {"images": [], "annotations": [], "categories": categories}
        for i in range(max(shown)):
            name, (width, height) = f"{split}-{i}.jpg", size
            Image.new("RGB", size, (i % 255, first // 10, 160)).save(folder / "photos" / name)
            content["images"].append(
                {"id": first + i, "width": width, "height": height, "file_name": name}
            )
            for k in (k for k, n in enumerate(shown) if i < n):
                x, y, side = 4 * k, 3 * k, 24
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": first + i,
                        "category_id": 10 + 3 * k,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    }
                )
        (folder / f"{split}.json").write_text(json.dumps(content))
    files = {split: str(folder / f"{split}.json") for split in ("train", "val")}
    return {**files, "images": str(folder / "photos")}


def edit(file: str, change) -> None:
    """Change the content of an annotation file in place."""
    path = Path(file)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
