"""`GroundTruth`: an annotation file as scoring reads it image by image."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from pcb.average_precision import MAX_DETECTIONS
from pcb.data.lvis.groups import class_groups
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.evaluation.shards import Rows, rank_in_image
from pcb.formatting import counted
from pcb.study import Study


@contextmanager
def gc_disabled() -> Generator[None]:
    """Disable garbage collection, which would search millions of dicts for cycles repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_ignored(annotation: dict) -> bool:
    """Whether an object counts as none, and detections of it neither as right nor as wrong."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


class GroundTruth:
    """An annotation file, as the evaluator takes it image by image.

    Attributes:
        path: The file.
        categories: In the order of labels and confusion matrices, by id, each with `frequency`.
        original_ids: The ids of the categories in the file.
        images: Image id -> image.
        by_image: Image id -> its annotations, those too small to train on included.
        exhaustive: Whether every class counts in every image, as in COCO's format.
    """

    @gc_disabled()
    def __init__(
        self,
        path: str | Path,
        cache: Path | None = None,
        only: Container[int] | None = None,
        groups: Sequence[str] | None = None,
        exhaustive: bool = False,
    ):
        """Read the file.

        Args:
            path: The file.
            cache: Folder of indices (`pcb.data.lvis.index`).
            only: Ids of the images that count; None means all.
            groups: `r`, `c` or `f` of each class; None: what this file says of itself.
            exhaustive: COCO's rule of scoring instead of LVIS's.

        Raises:
            UserError: The file is missing or broken, or lacks the labels of LVIS's rule.
        """
        index = LVISIndex(path, cache=cache)
        self.path, self.exhaustive = index.path, exhaustive
        self.original_ids = index.original_ids
        self.categories = [
            {**category, "frequency": group}
            for category, group in zip(index.categories, groups or index.frequency(), strict=True)
        ]
        self.images = {
            image["id"]: image for image in index.images if only is None or image["id"] in only
        }
        if exhaustive:
            nothing = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            self.images = {i: {**image, **nothing} for i, image in self.images.items()}
        elif missing := index.missing_keys():
            raise UserError(
                f"{path} has images without {' and '.join(missing)}, which LVIS's rule of scoring "
                "needs",
                "use LVIS's annotation file, or set `format: coco` of the data set in the scale's "
                "YAML",
            )
        self.by_image: dict[int, list[dict]] = defaultdict(list)
        for annotation in index.annotations:
            # Of training images, objects without a mask are left out, as in training.
            if annotation["image_id"] in self.images and annotation["segmentation"]:
                self.by_image[annotation["image_id"]].append(annotation)
        if index.faulty and only is None:
            raise index.faulty_error()

    @classmethod
    def of(
        cls, study: Study, dataset: str, split: str, only: Container[int] | None = None
    ) -> GroundTruth:
        """The ground truth of a split, with the groups of the training split.

        Args:
            study: The study.
            dataset: A data set of its scale.
            split: `train`, `val` or `dev`.
            only: Ids of the images that count; None means all.
        """
        entry = study.scale["datasets"][dataset]
        exhaustive = entry.get("format") == "coco"
        cache = study.paths.indices
        return cls(entry[split], cache, only, class_groups(study, dataset), exhaustive)

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(I,) int64 image ids in ascending order; a position in it numbers an image."""
        return np.array(sorted(self.images), np.int64)

    @cached_property
    def category_ids(self) -> np.ndarray:
        """(C,) int64 category ids in ascending order; a position in it is a label."""
        return np.array([c["id"] for c in self.categories], np.int64)

    def position(self, image_ids: np.ndarray) -> np.ndarray:
        """The positions of images in `image_ids`."""
        return np.searchsorted(self.image_ids, image_ids)

    def covered(self, shards: Iterable[Rows]) -> Iterator[Rows]:
        """The same shards, checked: together they must cover every image once.

        Raises:
            UserError: Images and detections do not belong together.
        """
        missing = set(self.images)
        for rows in shards:
            if foreign := set(rows.images) - missing:
                raise UserError(
                    f"{self.path} has no image {min(foreign)}, or the detections cover it twice",
                    "run the inference again: it was made on other annotations",
                )
            missing -= set(rows.images)
            yield rows
        if missing:
            raise UserError(
                f"the detections do not cover {counted(len(missing), 'image')} of {self.path}, "
                f"{min(missing)} among them",
                "run the inference again",
            )

    def relevant(self, rows: Rows, per_image: int = MAX_DETECTIONS) -> np.ndarray:
        """Which detections can influence a metric.

        The evaluator would drop the others itself; dropping them before their masks are decoded
        halves the time.

        Args:
            rows: Detections.
            per_image: Limit of detections an image, at most the evaluator's own 300.

        Returns:
            (n,) bool: the best of each image, and of these the ones of a class that the image has,
            or is known not to have.
        """
        within_limit = rank_in_image(rows.image_id, rows.score) < per_image
        if self.exhaustive:
            return within_limit
        classes = len(self.categories) + 1
        known = [
            position * classes + c
            for position, i in zip(self.position(np.array(rows.images)), rows.images, strict=True)
            for c in (
                *self.images[i]["neg_category_ids"],
                *(a["category_id"] for a in self.by_image.get(i, ())),
            )
        ]
        pairs = self.position(rows.image_id) * classes + rows.category_id
        return within_limit & np.isin(pairs, known)
