"""What a run makes of each object of a validation set: `Split` holds the objects, `judge` looks up what was detected on them.

    split = Split(study, "v05", "val")
    seen = judge(split, Results(study).detections(run, seed))   # arrays over the split's objects: the class each is taken for, and the score

An object is taken for the class of the highest-scoring detection whose box overlaps its own with an IoU of at least 0.5, as for
the confusion matrix; for none where nothing overlaps it. LVIS annotates no image in full, so a detection beside all objects may be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcb.data.lvis.index import LVISIndex
from pcb.evaluation.shards import Rows, Shards
from pcb.geometry import box_iou
from pcb.reporting.images import thumbnails
from pcb.study import Study

IOU = 0.5
NOTHING = -1


class Split:
    """The n usable objects of one annotation file, image by image in the file's order.

    label: (n,) class 0 … C-1.   bbox: (n, 4) x, y, w, h in pixels.   area: (n,) pixels.   image_id: (n,).
    of_image: image id -> places of its objects; images without any are left out.   groups: 'r', 'c' or 'f' of each class.
    """

    def __init__(self, study: Study, dataset: str, split: str):
        files = study.scale["datasets"][dataset]
        self.index = index = LVISIndex(files[split], files["images"], study.paths.indices)
        found = [
            (o.category_id[o.usable] - 1, o.bbox[o.usable], o.area[o.usable])
            for o in map(index.objects, range(len(index)))
        ]
        self.label, self.bbox, self.area = map(np.concatenate, zip(*found, strict=True))
        counts = [len(labels) for labels, _, _ in found]
        self.row = np.repeat(np.arange(len(index)), counts)
        self.image_id = index.ids[self.row]
        ends = np.cumsum(counts).tolist()
        self.of_image = {
            int(i): range(end - n, end)
            for i, end, n in zip(index.ids, ends, counts, strict=True)
            if n
        }
        self.groups = index.frequency()

    def __len__(self) -> int:
        return len(self.label)

    def named(self, label: int) -> dict:
        """A class as a page names it: `mandarin orange` for `mandarin_orange`, without what LVIS adds in brackets."""
        return {
            "name": self.index.classes[label].split("_(")[0].replace("_", " "),
            "group": self.groups[label],
        }

    def photo(self, image_id: int) -> Path:
        return self.index.image_paths[image_id]

    def mask(self, place: int) -> np.ndarray:
        """(height, width) bool, the mask of an object."""
        objects = self.index.objects(self.row[place])
        segmentation = [
            s for s, usable in zip(objects.segmentation, objects.usable, strict=True) if usable
        ]
        return thumbnails.drawn(
            segmentation[place - self.of_image[int(self.image_id[place])].start], *self.size(place)
        )

    def size(self, place: int) -> tuple[int, int]:
        """Height and width of the image that an object is in."""
        height, width = self.index.sizes[self.row[place]].tolist()
        return height, width


@dataclass(frozen=True)
class Judged:
    """Per object the class it is taken for (`NOTHING` where no detection overlaps it) and that detection's score; both (n,)."""

    taken: np.ndarray
    score: np.ndarray

    def right(self, split: Split, least: float = 0.0) -> np.ndarray:
        """(n,) bool: taken for what it is, with a score of at least `least`."""
        return (self.taken == split.label) & (self.score >= least)


def judge(split: Split, shards: Shards) -> Judged:
    """Look up what was detected on each object, by the run's own predictions (the variant `plain`). Memory is that of one shard."""
    judged = Judged(np.full(len(split), NOTHING), np.zeros(len(split), np.float32))
    for rows in shards.read("plain"):
        for places, at in by_image(rows, split):
            best = strongest(rows, at, split.bbox[places])
            for place, row in zip(places, best, strict=True):
                if row is not None:
                    judged.taken[place], judged.score[place] = (
                        rows.category_id[row] - 1,
                        rows.score[row],
                    )
    return judged


def by_image(rows: Rows, split: Split):
    """(places of its objects, its rows) of every image of a shard that has objects."""
    order = np.argsort(rows.image_id, kind="stable")
    bounds = np.searchsorted(rows.image_id[order], [[i, i + 1] for i in rows.images])
    for image, (start, end) in zip(rows.images, bounds, strict=True):
        if places := split.of_image.get(image):
            yield places, order[start:end]


def strongest(rows: Rows, at: np.ndarray, boxes: np.ndarray) -> list[int | None]:
    """For each of (m, 4) boxes x, y, w, h the row among `at` that overlaps it and scores highest."""
    if not len(at):
        return [None] * len(boxes)
    score = np.where(box_iou(rows.box[at], boxes) >= IOU, rows.score[at][:, None], -1)
    best = score.argmax(0)
    return [int(at[k]) if score[k, m] >= 0 else None for m, k in enumerate(best)]
