"""The predicted class of each object of a validation set.

    split = SplitObjects(study, "v05", "val")
    matched = match_objects(split, Results(study).detections(run, seed))
    matched.predicted_class, matched.score  # one entry for each object of the split

An object's predicted class is that of the detection with the highest score among those whose box
overlaps the object's with an IoU of at least 0.5, as for the confusion matrix. LVIS images are not
annotated exhaustively, so a detection that overlaps no object may be correct.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcb.data.lvis.groups import class_groups
from pcb.data.lvis.index import LVISIndex
from pcb.evaluation.shards import Rows, Shards
from pcb.geometry import box_iou
from pcb.reporting.images import thumbnails
from pcb.study import Study

IOU_THRESHOLD = 0.5
UNDETECTED = -1  # predicted class of an object that no detection overlaps


class SplitObjects:
    """The n usable objects of a split, image by image in the order of its annotation file.

    Args:
        study: The study.
        dataset: A data set of the scale, such as 'v05'.
        split: 'train' or 'val'.

    Attributes:
        label: (n,) int, class 0 … C-1.
        bbox: (n, 4) x, y, width, height in pixels.
        area: (n,) pixels.
        row: (n,) position of the object's image in the annotation file.
        image_id: (n,) int.
        of_image: Image id -> indices of its objects, for images that have any.
        groups: 'r', 'c' or 'f' of each class.
    """

    def __init__(self, study: Study, dataset: str, split: str) -> None:
        files = study.scale["datasets"][dataset]
        self.index = index = LVISIndex(files[split], files["images"], study.paths.indices)
        labels, boxes, areas = [], [], []
        for row in range(len(index)):
            objects = index.objects(row)
            labels.append(objects.category_id[objects.usable] - 1)
            boxes.append(objects.bbox[objects.usable])
            areas.append(objects.area[objects.usable])
        self.label, self.bbox, self.area = map(np.concatenate, (labels, boxes, areas))
        counts = [len(of_image) for of_image in labels]
        self.row = np.repeat(np.arange(len(index)), counts)
        self.image_id = index.ids[self.row]
        ends = np.cumsum(counts).tolist()
        self.of_image = {
            int(image): range(end - count, end)
            for image, end, count in zip(index.ids, ends, counts, strict=True)
            if count
        }
        self.groups = class_groups(study, dataset)

    def __len__(self) -> int:
        return len(self.label)

    def class_label(self, label: int) -> dict[str, str]:
        """A class as pages show it: its name, without LVIS's addition in brackets, and its group.

        Returns:
            `{"name": "mandarin orange", "group": "c"}` for `mandarin_orange_(fruit)`.
        """
        name = self.index.classes[label].split("_(")[0].replace("_", " ")
        return {"name": name, "group": self.groups[label]}

    def image_path(self, image_id: int) -> Path:
        """The file of an image."""
        return self.index.image_paths[image_id]

    def mask(self, index: int) -> np.ndarray:
        """(height, width) bool, the mask of an object."""
        objects = self.index.objects(self.row[index])
        pairs = zip(objects.segmentation, objects.usable, strict=True)
        segmentations = [segmentation for segmentation, usable in pairs if usable]
        first = self.of_image[int(self.image_id[index])].start
        return thumbnails.mask_of_annotation(segmentations[index - first], *self.size(index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image that an object is in."""
        height, width = self.index.sizes[self.row[index]].tolist()
        return height, width


@dataclass(frozen=True)
class MatchedObjects:
    """What a run predicts for the n objects of a split.

    Attributes:
        predicted_class: (n,) class 0 … C-1, or `UNDETECTED`.
        score: (n,) float32 score of the detection with this class.
    """

    predicted_class: np.ndarray
    score: np.ndarray

    def is_correct(self, split: SplitObjects) -> np.ndarray:
        """(n,) bool: whether the predicted class is the object's own."""
        return self.predicted_class == split.label

    def prediction(self, split: SplitObjects, index: int) -> dict | None:
        """`class_label` and `score` of an object's prediction; None where it is undetected."""
        label = self.predicted_class[index]
        if label == UNDETECTED:
            return None
        return split.class_label(label) | {"score": float(self.score[index])}


def match_objects(split: SplitObjects, shards: Shards) -> MatchedObjects:
    """Match detections to objects by the run's own scores (the variant `plain`).

    Args:
        split: The objects.
        shards: The detections; one shard at a time is in memory.
    """
    predicted = np.full(len(split), UNDETECTED)
    scores = np.zeros(len(split), np.float32)
    for rows in shards.read("plain"):
        for objects, of_image in by_image(rows, split):
            best = strongest(rows, of_image, split.bbox[objects])
            for index, row in zip(objects, best, strict=True):
                if row is not None:
                    predicted[index] = rows.category_id[row] - 1
                    scores[index] = rows.score[row]
    return MatchedObjects(predicted, scores)


def by_image(rows: Rows, split: SplitObjects) -> Iterator[tuple[range, np.ndarray]]:
    """Indices of the objects and of the rows, (k,) int, of each image with objects of a shard."""
    order = np.argsort(rows.image_id, kind="stable")
    bounds = np.searchsorted(rows.image_id[order], [[i, i + 1] for i in rows.images])
    for image, (start, end) in zip(rows.images, bounds, strict=True):
        if objects := split.of_image.get(image):
            yield objects, order[start:end]


def strongest(rows: Rows, among: np.ndarray, boxes: np.ndarray) -> list[int | None]:
    """Find the detection with the highest score on each of some boxes.

    Args:
        rows: Detections.
        among: (k,) indices of the rows that are considered.
        boxes: (m, 4) x, y, width, height in pixels.

    Returns:
        m indices of rows; None where no detection overlaps the box.
    """
    if not len(among):
        return [None] * len(boxes)
    overlaps = box_iou(rows.box[among], boxes) >= IOU_THRESHOLD
    score = np.where(overlaps, rows.score[among][:, None], -1)
    best = score.argmax(axis=0)
    return [int(among[k]) if score[k, m] >= 0 else None for m, k in enumerate(best)]
