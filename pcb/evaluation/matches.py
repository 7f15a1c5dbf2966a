"""Detections matched against the ground truth once; every protocol is then a filter.

    matches = match(gt, shards, "plain", "segm")
    matches.average_precision()                        # (C,) by LVIS's rule, as `evaluate`
    matches.average_precision(known=everything)        # every absent class of every image counts
    matches.average_precision(weights=resamples)       # (B, C), a bootstrap over images

The table keeps all detections, also those in images whose ground truth does not know their class.
Such a detection has nothing to match, so knowing more absent classes changes which rows count, not
the matches. The same holds of limits: matching goes from high scores to low, so what a limit
removes never changed what it leaves.

The rule is lvis-api's `LVISEval.evaluate_img` and `accumulate` with the area range "all": within an
image and class, detections in the order of their scores take the free object of largest IoU; an
unmatched detection of a class that is not exhaustively annotated in its image is ignored. In COCO's
format every class that an image lacks is known to be absent. Objects with `ignore` or `iscrowd` are
matched last; they count as no object, and their detections neither as right nor as wrong. Any
number of detections match a crowd, by COCO's rule: with the share of the detection that it covers
in place of the IoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import hotcoco
import hotcoco.mask as rle
import numpy as np

from pcb.evaluation.ground_truth import GroundTruth, gc_disabled, is_ignored
from pcb.evaluation.shards import Rows, Shards, rank_in_image
from pcb.frequency import GROUPS

IOU_THRESHOLDS = np.array(hotcoco.Params().iou_thrs)  # T = 10
RECALLS = np.array(hotcoco.Params().rec_thrs)
CHUNK = 2**16  # numbers in an intermediate array, so that it stays in the cache


@dataclass(frozen=True)
class Matches:
    """All n detections of one column of scores, by label and falling score, and the m objects.

    Attributes:
        images: I, the number of images; they are numbered by ascending id.
        groups: `r`, `c` or `f` of each of the C classes, as one string.
        image: (n,) int32 image of a detection.
        label: (n,) int32.
        score: (n,) float32.
        rank: (n,) int32, place among the detections of its image by score, from 0.
        hits: (n,) uint16, bit t is set where it matches an object at `IOU_THRESHOLDS[t]`.
        void: (n,) uint16, likewise of objects that are ignored.
        present: (n,) bool, whether the image has an object of its class.
        negative: (n,) bool, whether the image is known to lack its class.
        partial: (n,) bool, whether its class is not exhaustively annotated in the image.
        object_image: (m,) int32, by label, without the ignored ones.
        object_label: (m,) int32.
    """

    images: int
    groups: str
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    hits: np.ndarray
    void: np.ndarray
    present: np.ndarray
    negative: np.ndarray
    partial: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    @cached_property
    def rank_in_class(self) -> np.ndarray:
        """(n,) int64, place among all detections of its class by score, from 0."""
        return np.arange(len(self)) - np.searchsorted(self.label, self.label)

    def counted(
        self,
        known: np.ndarray | None = None,
        per_image: int | None = None,
        per_class: int | None = None,
        score_thr: float | None = None,
    ) -> np.ndarray:
        """Which detections count.

        Args:
            known: (I, C) bool, the pairs of image and class that are verified as absent, in place
                of the negatives of the annotation file. What is present always counts. Or (D, I, C)
                of D such sets.
            per_image: Limit of detections an image, all classes together.
            per_class: Limit of detections a class, all images together.
            score_thr: Scores must be higher.

        Returns:
            (n,) bool, or (D, n).
        """
        absent = self.negative if known is None else known[..., self.image, self.label]
        kept = self.present | absent
        if score_thr is not None:
            kept &= self.score > score_thr
        if per_image is not None:
            kept &= self.rank < per_image
        if per_class is not None:
            kept &= self.rank_in_class < per_class
        return kept

    def average_precision(
        self,
        known: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        per_image: int | None = None,
        per_class: int | None = None,
        score_thr: float | None = None,
    ) -> np.ndarray:
        """AP of each class, the mean over the IoU thresholds .5:.05:.95.

        Args:
            known: As in `counted`; D sets only without weights.
            weights: (B, I) how often each image counts, for instance in B bootstrap samples; or
                (I,). None counts each image once.
            per_image: As in `counted`.
            per_class: As in `counted`.
            score_thr: As in `counted`.

        Returns:
            (C,), or (B, C) for weights of B samples, or (D, C): float64, in points (0 to 100), nan
            for a class without ground truth.
        """
        sets = np.atleast_2d(self.counted(known, per_image, per_class, score_thr))
        kept = np.asarray(sets.any(axis=0))
        if weights is None:
            weights = np.ones((len(sets), self.images) if sets.shape[0] > 1 else self.images)
        samples = np.ascontiguousarray(np.atleast_2d(weights).T, np.float64)  # (I, B or D)
        classes = np.arange(len(self.groups) + 1)
        rows, objects = (np.searchsorted(x, classes) for x in (self.label, self.object_label))
        out = np.full((samples.shape[1], len(self.groups)), np.nan)
        for label in range(len(self.groups)):
            truth = self.object_image[objects[label] : objects[label + 1]]
            if not len(truth):
                continue
            found = np.arange(rows[label], rows[label + 1])
            found = found[kept[found]]
            matched = max(1, np.count_nonzero(self.hits[found]))
            step = max(1, CHUNK // max(len(found), len(truth), len(IOU_THRESHOLDS) * matched))
            for start in range(0, samples.shape[1], step):
                part = slice(start, start + step)
                counted = sets[part, found].T if len(sets) > 1 else True
                out[part, label] = self._class_ap(found, truth, samples[:, part], counted)
        return out[0] if np.ndim(weights) == 1 else out

    def _class_ap(
        self, rows: np.ndarray, truth: np.ndarray, samples: np.ndarray, counted: np.ndarray | bool
    ) -> np.ndarray:
        """(B,) AP of a class by the n detections `rows`; (I, B) `samples`, (n, B) `counted`."""
        objects = samples[truth].sum(0)
        partial = self.partial[rows]
        # Precision can only rise at a match, so the curve is looked at there alone.
        matched = np.flatnonzero(self.hits[rows])
        hit = _bits(self.hits[rows[matched]])  # (T, k, 1)
        weight = samples[self.image[rows]] * (counted & ~partial[:, None])
        seen = weight.cumsum(0)[matched]  # (k, B), right and wrong detections so far
        if self.void[rows].any():
            seen = seen - (_bits(self.void[rows]) * weight).cumsum(1)[:, matched]
        weight = samples[self.image[rows[matched]]]
        right = (hit * weight).cumsum(1)  # (T, k, B)
        if partial[matched].any():
            seen = seen + (hit * (weight * partial[matched, None])).cumsum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = right / (seen + np.spacing(1))
            recall = right / np.where(objects > 0, objects, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Recall levels that are first reached at this match; the first match also has level 0.
        levels = levels_reached(recall)
        new = np.diff(levels, axis=1, prepend=0)
        ap = (precision * new).sum((0, 1)) * (100 / (len(IOU_THRESHOLDS) * len(RECALLS)))
        return np.where(objects > 0, ap, np.nan)


def _bits(words: np.ndarray) -> np.ndarray:
    """(T, n, 1) float64, the bits of (n,) words: one for each IoU threshold."""
    bits = words[:, None] >> np.arange(len(IOU_THRESHOLDS), dtype=np.uint16) & 1
    return bits.T[..., None].astype(np.float64)


def levels_reached(recall: np.ndarray) -> np.ndarray:
    """How many of `RECALLS` each recall reaches: a faster `np.searchsorted(RECALLS, recall)`.

    Args:
        recall: Any shape, in [0, 1].

    Returns:
        int64 of that shape, 1 to 101.
    """
    steps = len(RECALLS) - 1
    level = (recall * steps).astype(np.int64)  # rounding may miss the true level by one
    level += RECALLS[np.minimum(level + 1, steps)] <= recall
    level = np.minimum(level, steps)
    return level - (RECALLS[level] > recall) + 1


# (column, IoU type) -> matches.
Matched = dict[tuple[str, str], Matches]


def group_means(ap: np.ndarray, groups: str) -> dict[str, np.ndarray]:
    """Means over classes with ground truth, as LVIS reports them.

    Args:
        ap: (..., C) AP of each class, nan without ground truth.
        groups: `r`, `c` or `f` of each class.

    Returns:
        AP, APr, APc and APf, each (...), nan where there is no class with ground truth.
    """
    frequency = np.array(list(groups))
    chosen = {"AP": np.ones(len(groups), bool)} | {f"AP{g}": frequency == g for g in GROUPS}
    out = {}
    for name, classes in chosen.items():
        values = ap[..., classes]
        valid = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            out[name] = np.where(valid, values, 0).sum(-1) / valid.sum(-1)
    return out


def match(
    gt: GroundTruth, detections: Shards | Iterable[Rows], column: str, iou_type: str
) -> Matches:
    """Match the detections of one column of scores against the ground truth.

    Args:
        gt: The ground truth.
        detections: A `Shards` reader, or the `Rows` themselves, which must cover every image of
            `gt` once.
        column: The column of scores to read from shards.
        iou_type: `segm` or `bbox`.

    Raises:
        UserError: Images and detections do not belong together.
    """
    if isinstance(detections, Shards):
        return match_columns(gt, detections, [column], [iou_type])[column, iou_type]
    shards = (replace(rows, score=rows.score[None]) for rows in detections)
    return _match(gt, shards, [column], [iou_type])[column, iou_type]


def match_columns(
    gt: GroundTruth, shards: Shards, columns: Sequence[str], iou_types: Sequence[str]
) -> Matched:
    """Match several columns of scores, with each IoU computed once for all of them.

    Args:
        gt: The ground truth.
        shards: The detections.
        columns: Columns of scores.
        iou_types: Of `segm` and `bbox`.

    Returns:
        (column, IoU type) -> matches. Those of one column share their arrays, except `hits`.

    Raises:
        UserError: Images and detections do not belong together.
    """
    return _match(gt, shards.read_columns(columns, "segm" in iou_types), columns, iou_types)


@gc_disabled()
def _match(
    gt: GroundTruth,
    shards: Iterable[Rows],
    columns: Sequence[str],
    iou_types: Sequence[str],
) -> Matched:
    """`match_columns` of rows with (V, n) scores."""
    truth = _Truth(gt)
    parts: dict[str, list[dict[str, np.ndarray]]] = {column: [] for column in columns}
    for rows in gt.covered(shards):
        image, label = truth.image(rows.image_id), truth.label(rows.category_id)
        pairs = truth.pairs(image, label)
        overlaps = {iou_type: truth.overlaps(rows, pairs, iou_type) for iou_type in iou_types}
        for column, score in zip(columns, rows.score, strict=True):
            kept = ~np.isnan(score)
            table = {"image": image, "label": label, "score": score, **pairs}
            table = {name: values[kept] for name, values in table.items()}
            table["rank"] = rank_in_image(table["image"], table["score"]).astype(np.int32)
            for iou_type, overlap in overlaps.items():
                table[iou_type] = overlap.hits(score)[:, kept].T
            parts[column].append(table)
    out = {}
    for column, tables in parts.items():
        table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        tables.clear()
        # Of equal scores, lvis-api takes the image with the smaller id first.
        order = np.lexsort((table["image"], -table["score"], table["label"]))
        table = {name: values[order] for name, values in table.items()}
        hits = {iou_type: table.pop(iou_type) for iou_type in iou_types}
        for iou_type in iou_types:
            out[column, iou_type] = Matches(
                images=len(gt.image_ids),
                groups="".join(c["frequency"] for c in gt.categories),
                object_image=truth.object_image,
                object_label=truth.object_label,
                hits=hits[iou_type][:, 0],
                void=hits[iou_type][:, 1],
                **table,
            )
    return out


class _Truth:
    """The ground truth as arrays, and the pairs of image and class that it knows."""

    def __init__(self, gt: GroundTruth):
        self.gt, self.classes = gt, len(gt.categories)
        objects = [a for i in gt.image_ids.tolist() for a in gt.by_image.get(i, ())]
        image = self.image(np.array([a["image_id"] for a in objects], np.int64))
        label = self.label(np.array([a["category_id"] for a in objects], np.int64))
        kept = np.array([not is_ignored(a) for a in objects], bool)
        order = np.lexsort((image[kept], label[kept]))
        self.object_image, self.object_label = image[kept][order], label[kept][order]
        self._present = np.unique(self._keys(image, label))
        self._negative, self._partial = (
            np.unique(
                [
                    position * self.classes + label
                    for position, i in enumerate(gt.image_ids.tolist())
                    for label in self.label(np.array(gt.images[i][key], np.int64)).tolist()
                ]
            ).astype(np.int64)
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        )

    def image(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.gt.image_ids, ids).astype(np.int32)

    def label(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.gt.category_ids, ids).astype(np.int32)

    def _keys(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        return image.astype(np.int64) * self.classes + label

    def pairs(self, image: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        """What the ground truth knows of the class of each detection, in its image."""
        keys = self._keys(image, label)
        present = np.isin(keys, self._present)
        return {
            "present": present,
            "negative": ~present if self.gt.exhaustive else np.isin(keys, self._negative),
            "partial": np.isin(keys, self._partial),
        }

    def overlaps(self, rows: Rows, pairs: dict[str, np.ndarray], iou_type: str) -> _Overlaps:
        """The IoU of the detections of a shard with the objects of their image and class."""
        return _Overlaps(self._overlaps(rows, pairs["present"], iou_type), len(rows))

    def _overlaps(self, rows: Rows, present: np.ndarray, iou_type: str) -> Iterator[_Overlap]:
        at = np.flatnonzero(present)
        order = at[np.lexsort((rows.category_id[at], rows.image_id[at]))]
        image, category = rows.image_id[order], rows.category_id[order]
        changed = (np.diff(image) != 0) | (np.diff(category) != 0)
        for members in np.split(order, np.flatnonzero(changed) + 1) if len(order) else ():
            image_id, category_id = int(rows.image_id[members[0]]), rows.category_id[members[0]]
            objects = [a for a in self.gt.by_image[image_id] if a["category_id"] == category_id]
            if iou_type == "bbox":
                found, known = rows.box[members].astype(np.float64), [a["bbox"] for a in objects]
            else:
                assert rows.rle is not None
                of_image: dict = self.gt.images[image_id]
                height, width = of_image["height"], of_image["width"]
                counts = rows.rle.take(members).to_pylist()
                found = [{"size": [height, width], "counts": c} for c in counts]
                known = [_mask(a["segmentation"], height, width) for a in objects]
            crowd = [bool(a.get("iscrowd")) for a in objects]
            ignored = [is_ignored(a) for a in objects]
            yield _Overlap(members, rle.iou(found, known, crowd), np.array([ignored, crowd]))


def _mask(segmentation: list | dict, height: int, width: int) -> dict:
    """The RLE of an annotation."""
    shapes = rle.frPyObjects(segmentation, height, width)
    return shapes if isinstance(shapes, dict) else rle.merge(shapes)


class _Overlap(NamedTuple):
    """The k detections and the G objects of one class in one image.

    Attributes:
        members: (k,) the detections, as rows of their shard.
        iou: (k, G).
        flags: (2, G) bool: whether an object is ignored, and whether it is a crowd.
    """

    members: np.ndarray
    iou: np.ndarray
    flags: np.ndarray


class _Overlaps:
    """IoUs of the detections of a shard that can match anything, by number of objects."""

    def __init__(self, pairs: Iterable[_Overlap], n: int):
        self._n = n
        buckets: dict[int, list[_Overlap]] = {}
        for members, iou, flags in pairs:
            near = (iou >= IOU_THRESHOLDS[0]).any(1)
            if near.any():
                # A few widths instead of one keep the padded table small.
                objects = iou.shape[1]
                width = 1 << (objects - 1).bit_length()
                padded = np.full((near.sum(), width), -1.0)
                padded[:, :objects] = iou[near]
                bucket = buckets.setdefault(width, [])
                flags = np.pad(flags, ((0, 0), (0, width - objects)))
                bucket.append(_Overlap(members[near], padded, flags))
        self._buckets = [
            (
                np.concatenate([pair.members for pair in bucket]),
                np.repeat(np.arange(len(bucket)), [len(pair.members) for pair in bucket]),
                np.concatenate([pair.iou for pair in bucket]),
                np.stack([pair.flags for pair in bucket], axis=1),
            )
            for bucket in buckets.values()
        ]

    def hits(self, score: np.ndarray) -> np.ndarray:
        """(2, n) uint16 `Matches.hits` and `void` by (n,) scores, nan where one is not kept."""
        out = np.zeros((2, self._n), np.uint16)
        for row, pair, iou, flags in self._buckets:
            kept = np.flatnonzero(~np.isnan(score[row]))
            order = kept[np.lexsort((row[kept], -score[row[kept]], pair[kept]))]
            out[:, row[order]] = _greedy(iou[order], pair[order], *flags)
        return out


def _greedy(
    iou: np.ndarray, pair: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """Match greedily at every threshold.

    Args:
        iou: (k, G) of each detection with the objects of its pair, -1 beyond their number.
        pair: (k,) ascending number of the pair of image and class, of P; the detections of a pair
            are in the order of their scores.
        ignored: (P, G) bool.
        crowd: (P, G) bool.

    Returns:
        (2, k) uint16 bits of the thresholds at which a detection matches an object that counts, and
        one that is ignored.
    """
    out = np.zeros((2, len(pair)), np.uint16)
    if not len(pair):
        return out
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    taken = np.zeros((pair[-1] + 1, len(thresholds), iou.shape[1]), bool)
    rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
    kinds = (~ignored, ignored) if ignored.any() else (~ignored,)
    for turn in range(rank.max() + 1):  # the best detection of every pair, then the second, ...
        at = np.flatnonzero(rank == turn)
        free = np.where(taken[pair[at]], -1.0, iou[at][:, None])  # (pairs, T, G)
        unmatched = np.ones(free.shape[:2], bool)
        for bits, of_kind in zip(out, kinds, strict=False):
            open_to = np.where(of_kind[pair[at]][:, None], free, -1.0)
            best = iou.shape[1] - 1 - open_to[..., ::-1].argmax(-1)  # of equals the last: lvis-api
            hit = np.take_along_axis(open_to, best[..., None], -1)[..., 0] >= thresholds
            hit &= unmatched
            unmatched &= ~hit
            bits[at] = (hit << np.arange(len(thresholds))).sum(1)
            one, threshold = hit.nonzero()
            matched = best[one, threshold]
            taken[pair[at[one]], threshold, matched] = ~crowd[pair[at[one]], matched]
    return out
