"""Multiclass suppression for several score tables over the same boxes: mmdet's rule, at the price of about one NMS.

`multiclass_nms` of mmdet compares every box with every other, shifted apart by class. Where many variants re-score the same few boxes,
who overlaps whom need be found only once, and the greedy choice runs for all variants and classes side by side.
"""

from __future__ import annotations

import torch
from mmdet.models.layers import multiclass_nms
from torch import Tensor

Found = dict[str, tuple[Tensor, Tensor]]  # variant -> indices into the (n, C) pairs, and their scores, best first
SMALL = 4_000_000  # entries of the (C, n, n) table of overlaps; at LVIS size it would not fit


def suppress(boxes: Tensor, scores: dict[str, Tensor], cfg) -> Found:
    """What each variant keeps of the pairs (proposal, class) by `score_thr`, `nms` and `max_per_img` of an R-CNN test_cfg.

    boxes: (n, C, 4), or (n, 1, 4) for all classes alike. scores: (n, C+1) per variant, background last. `plain`, and everything where the
    table would be large, goes through mmdet itself.
    """
    n, classes = len(boxes), next(iter(scores.values())).shape[1] - 1
    others = [v for v in scores if v != "plain"]
    usual = set(cfg.nms) <= {"type", "iou_threshold"} and cfg.nms.get("type", "nms") == "nms"
    together = len(others) > 1 and usual and classes * n * n <= SMALL
    found = {}
    for variant in scores if not together else scores.keys() - set(others):
        kept, _, pairs = multiclass_nms(boxes.reshape(n, -1), scores[variant], cfg.score_thr, cfg.nms, cfg.max_per_img, return_inds=True)
        found[variant] = pairs, kept[:, -1]
    if together:
        stacked = torch.stack([scores[v][:, :-1] for v in others])
        boxes = boxes.expand(n, classes, 4)
        found |= zip(others, greedy(boxes, stacked, cfg.score_thr, cfg.nms.iou_threshold, cfg.max_per_img), strict=True)
    return {variant: found[variant] for variant in scores}


def greedy(boxes: Tensor, scores: Tensor, score_thr: float, iou_threshold: float, max_num: int) -> list[tuple[Tensor, Tensor]]:
    """boxes (n, C, 4), scores (V, n, C) -> for each of V its pairs and scores, at most `max_num`, best first."""
    variants, _, classes = scores.shape
    alive = (scores > score_thr).transpose(1, 2).contiguous()  # (V, C, n)
    ranked = scores.transpose(1, 2).masked_fill(~alive, -1).argsort(dim=2, descending=True, stable=True)
    by_class = boxes.transpose(0, 1)
    largest = by_class.amax(dim=-1).expand_as(alive).masked_fill(~alive, -torch.inf).amax(dim=(1, 2))
    # mmcv shifts class c by c times (the largest coordinate + 1), which rounds the overlaps; variants mostly agree on that coordinate.
    tables, which = largest.unique(return_inverse=True)
    rivals = torch.stack([overlaps(by_class, shift, iou_threshold) for shift in tables])  # (tables, C, n, n)
    which, every = which[:, None], torch.arange(classes, device=boxes.device)[None]
    for rank in range(int(alive.sum(dim=2).amax())):
        best = ranked[:, :, rank, None]
        # An earlier choice that is still alive does not overlap this box, else this box were gone; so only later ones fall.
        alive &= ~(rivals[which, every, best[..., 0]] & alive.gather(2, best))
    out = []
    for v in range(variants):
        pairs = alive[v].t().reshape(-1).nonzero().squeeze(1)
        values, order = scores[v].reshape(-1)[pairs].sort(descending=True, stable=True)
        out.append((pairs[order[:max_num]], values[:max_num]) if max_num > 0 else (pairs[order], values))
    return out


def overlaps(boxes: Tensor, largest: Tensor, iou_threshold: float) -> Tensor:
    """(C, n, 4) -> (C, n, n) bool: which other boxes of its class a box suppresses, in mmcv's arithmetic."""
    classes, n = boxes.shape[:2]
    shifted = boxes + (torch.arange(classes, device=boxes.device, dtype=boxes.dtype) * (largest + 1))[:, None, None]
    area = (shifted[..., 2] - shifted[..., 0]) * (shifted[..., 3] - shifted[..., 1])
    corner = torch.maximum(shifted[:, :, None, :2], shifted[:, None, :, :2])
    inner = (torch.minimum(shifted[:, :, None, 2:], shifted[:, None, :, 2:]) - corner).clamp(min=0).prod(dim=-1)
    over = inner / (area[:, :, None] + area[:, None, :] - inner) > iou_threshold
    return over & ~torch.eye(n, dtype=torch.bool, device=boxes.device)
