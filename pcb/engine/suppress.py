"""Multiclass suppression for several score tables over the same boxes: what mmdet's keeps, without looking at what it will not.

mmdet suppresses every pair (proposal, class) above the score threshold, then takes the best `max_per_img`. Suppression goes from high
scores to low, so the best of a table are decided by the pairs above them alone: a few hundred, where there are a hundred thousand.
"""

from __future__ import annotations

import torch
from mmcv.ops.nms import NMSop
from mmdet.models.layers import multiclass_nms
from torch import Tensor

Found = dict[str, tuple[Tensor, Tensor]]  # variant -> indices into the (n, C) pairs, and their scores, best first
FIRST = 4  # times max_per_img: pairs looked at first; twice as many again until enough are kept


def suppress(boxes: Tensor, scores: dict[str, Tensor], cfg) -> Found:
    """What each variant keeps of the pairs (proposal, class) by `score_thr`, `nms` and `max_per_img` of an R-CNN test_cfg.

    boxes: (n, C, 4), or (n, 1, 4) for all classes alike. scores: (n, C+1) per variant, background last.
    Equal to mmdet's `multiclass_nms`, but that between equal scores the choice is, here as there, whatever an unstable sort leaves.
    """
    if cfg.max_per_img <= 0 or not set(cfg.nms) <= {"type", "iou_threshold"} or cfg.nms.get("type", "nms") != "nms":
        return {variant: whole(boxes, table, cfg) for variant, table in scores.items()}
    n, classes = len(boxes), next(iter(scores.values())).shape[1] - 1
    tables = torch.stack([table[:, :-1] for table in scores.values()]).flatten(1)  # (V, n·C)
    alive = tables > cfg.score_thr
    # mmdet shifts class c by c times (the largest coordinate above the threshold + 1), which rounds the boxes.
    largest = boxes.amax(dim=-1).expand(n, classes).reshape(-1).where(alive, -torch.inf).amax(dim=1)
    boxes, label = boxes.expand(n, classes, 4).reshape(-1, 4), torch.arange(classes, device=boxes.device).repeat(n)
    found = {}
    for variant, table, above, span, count in zip(scores, tables, alive, largest + 1, alive.sum(dim=1).tolist(), strict=True):
        looked = FIRST * cfg.max_per_img
        while True:
            seen = table >= table.topk(looked).values[-1] if looked < count else above
            pairs = seen.nonzero().squeeze(1)
            values = table[pairs]
            kept = NMSop.apply(boxes[pairs] + (label[pairs] * span)[:, None], values, cfg.nms.iou_threshold, 0, 0, -1)[: cfg.max_per_img]
            if len(kept) == cfg.max_per_img or looked >= count:
                break
            looked *= 2
        found[variant] = pairs[kept], values[kept]
    return found


def whole(boxes: Tensor, scores: Tensor, cfg) -> tuple[Tensor, Tensor]:
    """What mmdet itself keeps."""
    kept, _, pairs = multiclass_nms(boxes.reshape(len(boxes), -1), scores, cfg.score_thr, cfg.nms, cfg.max_per_img, return_inds=True)
    return pairs, kept[:, -1]
