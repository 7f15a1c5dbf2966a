"""Multiclass NMS of several score tables over the same boxes, equal to mmdet's of each alone.

mmdet suppresses every (proposal, class) pair above the score threshold and then takes the best
`max_per_img`. Greedy suppression goes from high scores to low, so the best of a table depend on the
pairs above them alone: a few hundred of perhaps a hundred thousand. Overlaps are computed once for
all tables, and the greedy choice is made for all of them in parallel. A test compares the result
with mmdet's `multiclass_nms`.

Scores and suppression of 14 variants take 3.0 ms an image here; mmdet's whole `predict`, for one
variant, takes 27.3 ms (results/benchmarks/infer.json).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import ConfigDict
from torch import Tensor

FIRST = 4  # pairs of a table considered at first, times max_per_img; doubled until it is enough


class Limits(NamedTuple):
    """Detections that a variant keeps: scores above `score_thr`, at most `per_image` an image."""

    score_thr: float
    per_image: int


def multi_variant_nms(
    boxes: Tensor, scores: dict[str, Tensor], cfg: ConfigDict, keep: Limits | None = None
) -> tuple[Tensor, Tensor]:
    """Select (proposal, class) pairs for several variants.

    Each variant's selection is that of mmdet's `multiclass_nms`, except for equal scores: there
    mmdet's unstable sort decides, and here the first is taken.

    Args:
        boxes: (n, C, 4), or (n, 1, 4) for all classes alike; x1, y1, x2, y2.
        scores: Variant -> (n, C+1), background last; V variants.
        cfg: An R-CNN test_cfg with `score_thr`, `nms` and `max_per_img`.
        keep: Looser limits, for more detections. The best of them within the limits of `cfg` are
            what `cfg` alone would select.

    Returns:
        The k pairs that any variant selects, as (k,) ascending indices into (n, C), and (V, k)
        scores, NaN where a variant does not select the pair.
    """
    n, classes = len(boxes), next(iter(scores.values())).shape[1] - 1
    tables = torch.stack([table[:, :-1] for table in scores.values()]).flatten(1)  # (V, n·C)
    plain_nms = set(cfg.nms) <= {"type", "iou_threshold"} and cfg.nms.get("type", "nms") == "nms"
    if cfg.max_per_img <= 0 or not plain_nms:
        if keep is not None:
            cfg = ConfigDict({**cfg, "score_thr": keep.score_thr, "max_per_img": keep.per_image})
        selected = torch.stack([mmdet_nms(boxes, table, cfg) for table in scores.values()])
        pairs = selected.any(dim=0).nonzero().squeeze(1)
        return pairs, tables[:, pairs].where(selected[:, pairs], torch.nan)
    scored = tables > cfg.score_thr
    score_thr, per_image = keep or Limits(cfg.score_thr, cfg.max_per_img)
    above = tables > score_thr
    # mmdet shifts class c by c times the largest coordinate above the threshold + 1, which rounds
    # the boxes; so do we.
    largest = boxes.amax(dim=-1).expand(n, classes).reshape(-1)
    shift = largest.where(scored, -torch.inf).amax(dim=1) + 1
    considered = FIRST * per_image
    while True:
        all_pairs = considered >= tables.shape[1]
        candidates = (
            above if all_pairs else above & (tables >= tables.topk(considered).values[:, -1:])
        )
        pairs = candidates.any(dim=0).nonzero().squeeze(1)
        labels, values = pairs % classes, tables[:, pairs]
        pair_boxes = boxes[pairs // classes, labels if boxes.shape[1] > 1 else 0]
        kept = greedy_nms(
            pair_boxes, labels, shift, values, candidates[:, pairs], cfg.nms.iou_threshold
        )
        enough = kept.sum(dim=1) >= per_image
        complete = candidates.sum(dim=1) == above.sum(dim=1)
        if all_pairs or (enough | complete).all():
            break
        considered *= 2
    best = values.where(kept, -torch.inf).topk(min(per_image, len(pairs))).indices
    kept &= torch.zeros_like(kept).scatter(1, best, True)
    used = kept.any(dim=0)
    return pairs[used], values.where(kept, torch.nan)[:, used]


def greedy_nms(
    boxes: Tensor,
    labels: Tensor,
    shift: Tensor,
    scores: Tensor,
    candidates: Tensor,
    iou_threshold: float,
) -> Tensor:
    """Greedy NMS as a fixed point, for several score tables in parallel.

    A box is suppressed if a kept box of its class with a higher score overlaps it. Starting with
    all candidates, this rule is applied until nothing changes: the best box of each class is right
    after the first pass, those that it overlaps after the second, and so on.

    Args:
        boxes: (m, 4) x1, y1, x2, y2.
        labels: (m,) classes.
        shift: (V,) distance by which mmdet moves the boxes of each class from those of the one
            before.
        scores: (V, m).
        candidates: (V, m) bool.
        iou_threshold: Largest IoU of two kept boxes of one class.

    Returns:
        (V, m) bool, the candidates that each variant keeps.
    """
    one, other = (labels[:, None] == labels).triu(1).nonzero().unbind(1)
    shifts, which = shift.unique(return_inverse=True)  # variants mostly agree
    overlaps = []
    for value in shifts:
        moved = boxes + (labels * value)[:, None]
        overlaps.append(bbox_overlaps(moved[one], moved[other], is_aligned=True) > iou_threshold)
    over = torch.stack(overlaps)
    any_over = over.any(dim=0)
    one, other, over = one[any_over], other[any_over], over[:, any_over][which]
    first_wins = scores[:, one] >= scores[:, other]
    winner, loser = one.where(first_wins, other), other.where(first_wins, one)
    kept = candidates
    while True:
        suppressing = (over & kept.gather(1, winner)).int()
        losses = torch.zeros_like(kept, dtype=torch.int32).scatter_add_(1, loser, suppressing)
        remaining = candidates & (losses == 0)
        if torch.equal(remaining, kept):
            return kept
        kept = remaining


def mmdet_nms(boxes: Tensor, scores: Tensor, cfg: ConfigDict) -> Tensor:
    """Select from one (n, C+1) table by mmdet's `multiclass_nms`, as (n·C,) bool."""
    # With `return_inds` there is a third result, which the annotation of mmdet lacks.
    _, _, pairs = multiclass_nms(  # ty: ignore[invalid-assignment]
        boxes.reshape(len(boxes), -1),
        scores,
        cfg.score_thr,
        cfg.nms,
        cfg.max_per_img,
        return_inds=True,
    )
    return torch.zeros_like(scores[:, :-1], dtype=torch.bool).reshape(-1).scatter(0, pairs, True)
