"""Multiclass suppression for several score tables over the same boxes: what mmdet's keeps, without looking at what it will not.

mmdet suppresses every pair (proposal, class) above the score threshold, then takes the best `max_per_img`. Suppression goes from high
scores to low, so the best of a table are decided by the pairs above them alone: a few hundred, where there may be a hundred thousand.
Who overlaps whom is found once for all tables, and the greedy choice is made for all of them side by side.
"""

from __future__ import annotations

import torch
from mmdet.models.layers import multiclass_nms
from torch import Tensor

FIRST = 4  # times max_per_img: pairs of a table that are looked at first; twice as many again until enough are kept


def suppress(boxes: Tensor, scores: dict[str, Tensor], cfg) -> tuple[Tensor, Tensor]:
    """What each variant keeps of the pairs (proposal, class) by `score_thr`, `nms` and `max_per_img` of an R-CNN test_cfg.

    boxes: (n, C, 4), or (n, 1, 4) for all classes alike. scores: (n, C+1) per variant, background last. Returns the k pairs that any of
    them keeps, as ascending indices into (n, C), and (V, k) scores, NaN where a variant does not keep the pair. Each variant's are those
    of mmdet's `multiclass_nms`, but that it leaves the choice between equal scores to an unstable sort, and here the first is taken.
    """
    n, classes = len(boxes), next(iter(scores.values())).shape[1] - 1
    tables = torch.stack([table[:, :-1] for table in scores.values()]).flatten(1)  # (V, n·C)
    if (
        cfg.max_per_img <= 0
        or not set(cfg.nms) <= {"type", "iou_threshold"}
        or cfg.nms.get("type", "nms") != "nms"
    ):
        chosen = torch.stack([whole(boxes, table, cfg) for table in scores.values()])
        pairs = chosen.any(dim=0).nonzero().squeeze(1)
        return pairs, tables[:, pairs].where(chosen[:, pairs], torch.nan)
    alive = tables > cfg.score_thr
    # mmdet shifts class c by c times (the largest coordinate above the threshold + 1), which rounds the boxes.
    span = (
        boxes.amax(dim=-1).expand(n, classes).reshape(-1).where(alive, -torch.inf).amax(dim=1) + 1
    )
    looked = FIRST * cfg.max_per_img
    while True:
        every = looked >= tables.shape[1]
        seen = alive if every else alive & (tables >= tables.topk(looked).values[:, -1:])
        pairs = seen.any(dim=0).nonzero().squeeze(1)
        label, found = pairs % classes, tables[:, pairs]
        own = boxes[pairs // classes, label if boxes.shape[1] > 1 else 0]
        kept = greedy(own, label, span, found, seen[:, pairs], cfg.nms.iou_threshold)
        if (
            every
            or ((kept.sum(dim=1) >= cfg.max_per_img) | (seen.sum(dim=1) == alive.sum(dim=1))).all()
        ):
            break
        looked *= 2
    best = found.where(kept, -torch.inf).topk(min(cfg.max_per_img, len(pairs))).indices
    kept &= torch.zeros_like(kept).scatter(1, best, True)
    used = kept.any(dim=0)
    return pairs[used], found.where(kept, torch.nan)[:, used]


def greedy(
    boxes: Tensor,
    label: Tensor,
    span: Tensor,
    scores: Tensor,
    candidates: Tensor,
    iou_threshold: float,
) -> Tensor:
    """boxes (m, 4) of classes (m,), scores and candidates (V, m), span (V,) -> (V, m) bool: the candidates that are left of each of V.

    A box is left unless a better one that is left overlaps it. Starting with all, that sentence is applied until nothing changes:
    the best of each class are right after the first time, whom they overlap after the second, and so on.
    """
    one, other = (label[:, None] == label).triu(1).nonzero().unbind(1)
    spans, which = span.unique(return_inverse=True)  # variants mostly agree
    over = (
        torch.stack([overlap(boxes + (label * value)[:, None], one, other) for value in spans])
        > iou_threshold
    )
    some = over.any(dim=0)
    one, other, over = one[some], other[some], over[:, some][which]
    first = scores[:, one] >= scores[:, other]
    winner, loser = one.where(first, other), other.where(first, one)
    kept = candidates
    while True:
        beaten = (
            torch.zeros_like(kept, dtype=torch.int32).scatter_add_(
                1, loser, (over & kept.gather(1, winner)).int()
            )
            > 0
        )
        after = candidates & ~beaten
        if torch.equal(after, kept):
            return kept
        kept = after


def overlap(boxes: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """(m, 4), (p,), (p,) -> (p,) IoU, in mmcv's arithmetic."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    a, b = boxes[one], boxes[other]
    inner = (
        (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2]))
        .clamp(min=0)
        .prod(dim=1)
    )
    return inner / (area[one] + area[other] - inner)


def whole(boxes: Tensor, scores: Tensor, cfg) -> Tensor:
    """(n·C,) bool: what mmdet itself keeps of one table."""
    _, _, pairs = multiclass_nms(
        boxes.reshape(len(boxes), -1),
        scores,
        cfg.score_thr,
        cfg.nms,
        cfg.max_per_img,
        return_inds=True,
    )
    return torch.zeros_like(scores[:, :-1], dtype=torch.bool).reshape(-1).scatter(0, pairs, True)
