"""The loss of LOCE (Feng et al., ICCV 2021), equilibrium by mean classification score. Its memory of features is `LOCERoIHead`."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.distributed import all_sum
from pcb.losses.base import ClassifierLoss, Reduce


class EquilibriumLoss(ClassifierLoss):
    """L = -log(s_y e^{z_y} / Σ_j s_j e^{z_j}): cross entropy with logits raised by log s, so that weak classes are given a lead to make up.

    Buffer `scores` (C+1,): s, how sure the model is of each class when it is right: a moving average of softmax_y, background included in
    the softmax, that `update_scores` learns from. Background's own stays at its start. Test-time scores are the plain softmax.
    """

    mask_head: ClassVar[dict] = {"predictor_cfg": {"type": "NormedConv2d"}}

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.9,
        start: float = 0.01,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        self.momentum = momentum
        self.register_buffer("scores", torch.full((num_classes + 1,), start))

    @torch.no_grad()
    def update_scores(self, scores: Tensor, classes: Tensor) -> None:
        """Learn from k mean scores (k,), one for each ground-truth object, and their classes (k,), over all ranks; before the loss.

        A class with k of them moves by 1 - momentum^k towards their mean. A collective: all ranks must call it.
        """
        both = self.scores.new_zeros(2, self.num_classes)
        both.index_add_(
            1,
            classes,
            torch.stack([scores.to(both.dtype), torch.ones_like(scores, dtype=both.dtype)]),
        )
        sums, counts = all_sum(both)
        kept = self.momentum**counts
        fg = self.scores[:-1]
        fg.copy_(torch.where(counts > 0, kept * fg + (1 - kept) * sums / counts.clamp(min=1), fg))

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        return reduce(
            F.cross_entropy(logits + self.scores.log().to(logits.dtype), label, reduction="none")
        )
