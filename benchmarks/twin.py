"""A twin of an LVIS v1.0 annotation file: synthetic content of the released size and shape.

    python benchmarks/twin.py /tmp/twin/train.json             # 1.1 GB
    python benchmarks/twin.py /tmp/twin/val.json --split val

It has the release's number of images, annotations, classes per group and polygon corners, so that
the index and `pcb check-data` can be measured without LVIS. Corners per polygon follow the
log-normal distribution of 977 real LVIS annotations, scaled to the size of the released train file;
class frequencies fall off geometrically within their groups. Shapes are random blobs, class names
are numbers, and images exist as URLs only (`--images FOLDER` makes empty files).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pcb.data.lvis.releases import RELEASES

RELEASE = RELEASES["v1.0"]
# Train images of the first and the last class of each group.
IMAGE_COUNTS = {"f": (3000, 101), "c": (100, 11), "r": (10, 1)}
WIDTH, HEIGHT = 640, 480
CORNERS = (33, 0.81)  # median and log-normal spread of an object's corners
POLYGONS = 1.16  # of an object, on average
SHAPES = 6000  # distinct shapes, whose JSON text is made once
BATCH = 10_000  # annotations written at once


def shapes(rng: np.random.Generator) -> list[str]:
    """Return segmentation, area and bbox of `SHAPES` random objects, as JSON text."""
    texts = []
    corner_counts = np.maximum(3, rng.lognormal(np.log(CORNERS[0]), CORNERS[1], SHAPES))
    for corners in corner_counts.astype(int):
        parts = min(rng.geometric(1 / POLYGONS), corners // 3)
        polygons, area = [], 0.0
        for part in np.array_split(np.arange(corners), parts):
            angle = np.linspace(0, 2 * np.pi, len(part), endpoint=False)
            size = rng.lognormal(3.2, 0.8)
            radius = size * (1 + 0.3 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6)))
            x = rng.uniform(20, WIDTH - 20) + radius * np.cos(angle)
            y = rng.uniform(20, HEIGHT - 20) + radius * np.sin(angle)
            x, y = np.clip(x, 0, WIDTH).round(2), np.clip(y, 0, HEIGHT).round(2)
            area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
            polygons.append(np.stack([x, y], 1).ravel().tolist())
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        low, high = points.min(0), points.max(0)
        box = [round(float(value), 2) for value in (*low, *(high - low))]
        texts.append(
            f'"segmentation": {json.dumps(polygons)}, "area": {round(area, 2)},'
            f' "bbox": {json.dumps(box)}'
        )
    return texts


def image_counts() -> np.ndarray:
    """Return (1203,) train images of each class, most frequent first."""
    counts = [
        np.geomspace(first, last, RELEASE.groups[group]).round().astype(int)
        for group, (first, last) in IMAGE_COUNTS.items()
    ]
    return np.concatenate(counts)


def pairs(images: int, annotations: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return (annotations, 2) positions of image and class, sorted by image.

    Each class occurs once in its number of images times `share`; the remaining annotations repeat
    random pairs.
    """
    counts = np.maximum(1, (image_counts() * share).astype(int))
    once = np.concatenate(
        [
            np.stack([rng.choice(images, count, replace=False), np.full(count, position)], 1)
            for position, count in enumerate(counts)
        ]
    )
    repeated = once[rng.integers(0, len(once), annotations - len(once))]
    both = np.concatenate([once, repeated])
    return both[np.argsort(both[:, 0], kind="stable")]


def write(
    path: Path,
    split: str = "train",
    images: int | None = None,
    annotations: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Write the twin of a split.

    Args:
        path: The annotation file to write.
        split: 'train' or 'val'; a quarter of the images of val is in train2017, as in LVIS.
        images: Number of images; None: as released.
        annotations: Number of annotations; None: as released.
        seed: Seed of the content.

    Returns:
        Paths of the images below the image folder: `train2017/000000000001.jpg`.
    """
    released = RELEASE.sizes[split]
    images, annotations = images or released[0], annotations or released[1]
    rng = np.random.default_rng([seed, split == "val"])
    texts = shapes(rng)
    objects = pairs(images, annotations, images / RELEASE.sizes["train"][0], rng)
    counts = image_counts()
    category = rng.permutation(len(counts)) + 1
    first_id = 1 if split == "train" else 500_000
    folders = np.where((split == "train") | (rng.random(images) < 0.25), "train2017", "val2017")
    paths = [f"{folder}/{first_id + i:012d}.jpg" for i, folder in enumerate(folders)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"description": "twin, not LVIS"}, "annotations": [')
        chosen = rng.integers(0, len(texts), annotations)
        order = rng.permutation(annotations)  # LVIS's own order is not by image either
        for start in range(0, annotations, BATCH):
            batch = objects[order[start : start + BATCH]].tolist()
            entries = [
                f'{{{texts[chosen[number]]}, "id": {number + 1},'
                f' "image_id": {first_id + image}, "category_id": {category[position]}}}'
                for number, (image, position) in enumerate(batch, start)
            ]
            file.write(", " * (start > 0) + ", ".join(entries))
        negative = rng.integers(1, len(counts) + 1, (images, 7))
        shown = np.zeros(images, int)  # a category that the image shows, or 0
        shown[objects[:, 0]] = category[objects[:, 1]]
        entries = [
            {
                "date_captured": "2013-11-14 17:02:52",
                "id": first_id + i,
                "license": 4,
                "neg_category_ids": [n for n in negative[i].tolist() if n != shown[i]],
                "height": HEIGHT,
                "width": WIDTH,
                "flickr_url": "http://farm9.staticflickr.com/0000/0000000000_0000000000_z.jpg",
                "coco_url": f"http://images.cocodataset.org/{image}",
                "not_exhaustive_category_ids": [],
            }
            for i, image in enumerate(paths)
        ]
        file.write('], "images": [' + ", ".join(map(json.dumps, entries)))
        categories = json.dumps(category_entries(counts, category))
        file.write('], "licenses": [], "categories": ' + categories + "}")
    return paths


def category_entries(counts: np.ndarray, category: np.ndarray) -> list[dict]:
    """Return the entries of `categories`, sorted by id.

    Args:
        counts: (C,) train images of each class, most frequent first.
        category: (C,) its category id.
    """
    groups = [group for group in IMAGE_COUNTS for _ in range(RELEASE.groups[group])]
    entries = [
        {
            "id": int(number),
            "name": f"class_{number:04d}",
            "synonyms": [f"class_{number:04d}"],
            "synset": "thing.n.01",
            "def": "a class of the twin",
            "image_count": int(count),
            "instance_count": int(3 * count),
            "frequency": group,
        }
        for number, count, group in zip(category, counts, groups, strict=True)
    ]
    return sorted(entries, key=lambda entry: entry["id"])


def main() -> None:
    """Write a twin from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--split", choices=list(RELEASE.sizes), default="train")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="make an empty file for each image there"
    )
    args = parser.parse_args()
    for image in write(args.path, args.split):
        if args.images:
            (args.images / image).parent.mkdir(parents=True, exist_ok=True)
            (args.images / image).touch()
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
