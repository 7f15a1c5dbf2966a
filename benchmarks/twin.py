"""A twin of an LVIS v1.0 file in size and shape: as many images, annotations, classes and polygon corners; nothing in it is real.

    python benchmarks/twin.py /tmp/twin/train.json                 100,170 images, 1,270,141 annotations, 1.1 GB
    python benchmarks/twin.py /tmp/twin/val.json --split val       19,809 and 244,707; a quarter of the images lies under train2017

Benchmarks of the index and of `pcb check-data` read it. What makes a file slow or large is as in LVIS: corners per polygon follow the
log-normal law of real LVIS annotations (median and spread of 977 of them, scaled to the size of the released train file), parts per
object too; 337 rare, 461 common and 405 frequent classes fall off geometrically within their groups. The shapes are random blobs, the
classes have numbers for names, and images exist as addresses only (`--images FOLDER` makes empty files, for checks of what is missing).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

SIZES = {"train": (100_170, 1_270_141), "val": (19_809, 244_707)}
GROUPS = {
    "f": (405, 3000, 101),
    "c": (461, 100, 11),
    "r": (337, 10, 1),
}  # classes, train images of the first and of the last
WIDTH, HEIGHT = 640, 480
CORNERS = (33, 0.81)  # median and log-normal spread of an object's corners
PARTS = 1.16  # polygons of an object, on average
SHAPES = 6000  # distinct outlines, at random places; their text is made once


def shapes(random: np.random.Generator) -> list[str]:
    """The segmentation, area and bbox of random objects, as JSON text."""
    out = []
    for corners in np.maximum(3, random.lognormal(np.log(CORNERS[0]), CORNERS[1], SHAPES)).astype(
        int
    ):
        parts = min(random.geometric(1 / PARTS), corners // 3)
        polygons, area = [], 0.0
        for part in np.array_split(np.arange(corners), parts):
            angle = np.linspace(0, 2 * np.pi, len(part), endpoint=False)
            radius = random.lognormal(3.2, 0.8) * (
                1 + 0.3 * np.sin(random.integers(2, 6) * angle + random.uniform(0, 6))
            )
            x = np.clip(random.uniform(20, WIDTH - 20) + radius * np.cos(angle), 0, WIDTH).round(2)
            y = np.clip(random.uniform(20, HEIGHT - 20) + radius * np.sin(angle), 0, HEIGHT).round(
                2
            )
            area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
            polygons.append(np.stack([x, y], 1).ravel().tolist())
        flat = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
        low, high = flat.min(0), flat.max(0)
        box = [round(float(v), 2) for v in (*low, *(high - low))]
        out.append(
            f'"segmentation": {json.dumps(polygons)}, "area": {round(area, 2)}, "bbox": {json.dumps(box)}'
        )
    return out


def image_counts() -> np.ndarray:
    """(1203,) train images of each class, most frequent first."""
    return np.concatenate(
        [
            np.geomspace(first, last, number).round().astype(int)
            for number, first, last in GROUPS.values()
        ]
    )


def pairs(images: int, annotations: int, share: float, random: np.random.Generator) -> np.ndarray:
    """(annotations, 2) places of image and class, by image; each class in its number of images (times `share`), then again in those."""
    counts = np.maximum(1, (image_counts() * share).astype(int))
    once = np.concatenate(
        [
            np.stack([random.choice(images, n, replace=False), np.full(n, c)], 1)
            for c, n in enumerate(counts)
        ]
    )
    again = once[random.integers(0, len(once), annotations - len(once))]
    both = np.concatenate([once, again])
    return both[np.argsort(both[:, 0], kind="stable")]


def write(
    path: Path,
    split: str = "train",
    images: int | None = None,
    annotations: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Write the twin of a split and return the places of its images (`train2017/000000000001.jpg`); smaller where the numbers say so."""
    whole = SIZES[split]
    images, annotations = images or whole[0], annotations or whole[1]
    random = np.random.default_rng([seed, split == "val"])
    texts, found = shapes(random), pairs(images, annotations, images / SIZES["train"][0], random)
    counts = image_counts()
    groups = np.repeat(list(GROUPS), [number for number, *_ in GROUPS.values()])
    category = random.permutation(len(counts)) + 1
    first = 1 if split == "train" else 500_000
    folders = np.where((split == "train") | (random.random(images) < 0.25), "train2017", "val2017")
    places = [f"{folder}/{first + i:012d}.jpg" for i, folder in enumerate(folders)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        file.write('{"info": {"description": "twin, not LVIS"}, "annotations": [')
        picks = random.integers(0, len(texts), annotations)
        order = random.permutation(annotations)  # LVIS's own order is not by image either
        for start in range(0, annotations, 10_000):
            rows = [
                (found[j, 0], found[j, 1], k + 1)
                for k, j in enumerate(order[start : start + 10_000].tolist(), start)
            ]
            file.write(
                ", " * (start > 0)
                + ", ".join(
                    f'{{{texts[picks[k - 1]]}, "id": {k}, "image_id": {first + i}, "category_id": {category[c]}}}'
                    for i, c, k in rows
                )
            )
        negative = random.integers(1, len(counts) + 1, (images, 7))
        shown = np.full((images, 1), 0)
        shown[found[:, 0], 0] = category[found[:, 1]]
        file.write(
            '], "images": ['
            + ", ".join(
                json.dumps(
                    {
                        "date_captured": "2013-11-14 17:02:52",
                        "id": first + i,
                        "license": 4,
                        "neg_category_ids": [n for n in negative[i].tolist() if n != shown[i, 0]],
                        "height": HEIGHT,
                        "width": WIDTH,
                        "flickr_url": "http://farm9.staticflickr.com/0000/0000000000_0000000000_z.jpg",
                        "coco_url": f"http://images.cocodataset.org/{place}",
                        "not_exhaustive_category_ids": [],
                    }
                )
                for i, place in enumerate(places)
            )
        )
        file.write(
            '], "licenses": [], "categories": '
            + json.dumps(
                sorted(
                    (
                        {
                            "id": int(category[c]),
                            "name": f"class_{category[c]:04d}",
                            "synonyms": [f"class_{category[c]:04d}"],
                            "synset": "thing.n.01",
                            "def": "a class of the twin",
                            "image_count": int(n),
                            "instance_count": int(3 * n),
                            "frequency": str(groups[c]),
                        }
                        for c, n in enumerate(counts)
                    ),
                    key=lambda entry: entry["id"],
                )
            )
            + "}"
        )
    return places


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--split", choices=list(SIZES), default="train")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="make an empty file for each image there"
    )
    args = parser.parse_args()
    for place in write(args.path, args.split):
        if args.images:
            (args.images / place).parent.mkdir(parents=True, exist_ok=True)
            (args.images / place).touch()
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
