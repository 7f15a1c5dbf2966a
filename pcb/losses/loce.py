"""The loss of LOCE (Feng et al., ICCV 2021); its feature memory is `pcb.heads.loce.LOCERoIHead`."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.distributed import all_sum
from pcb.losses.base import ClassifierLoss, Reduce


class EquilibriumLoss(ClassifierLoss):
    """Cross entropy with logits raised by log s: L = -log(s_y e^{z_y} / Σ_j s_j e^{z_j}).

    s is the mean score of each class where it is the true one (softmax over C+1 logits), so that
    classes with low scores get larger gradients. Test-time scores are the plain softmax.

    Args:
        num_classes: C.
        momentum: Momentum of the moving average s.
        start: Initial value of s; that of background never changes.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.

    Attributes:
        scores: Buffer (C+1,), s, background last.
    """

    mask_head: ClassVar[dict] = {"predictor_cfg": {"type": "NormedConv2d"}}
    scores: Tensor

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
        """Update s with new mean scores, before the loss.

        A class with k of them moves by 1 - momentum^k towards their mean, or stays where that is
        not finite. A collective: every rank must call it.

        Args:
            scores: (k,) mean scores, one for each ground-truth object.
            classes: (k,) int64, their classes.
        """
        sums_and_counts = self.scores.new_zeros(2, self.num_classes)
        values = scores.to(sums_and_counts.dtype)
        sums_and_counts.index_add_(1, classes, torch.stack([values, torch.ones_like(values)]))
        sums, counts = all_sum(sums_and_counts)
        decay = self.momentum**counts
        fg = self.scores[:-1]
        updated = decay * fg + (1 - decay) * sums / counts.clamp(min=1)
        fg.copy_(torch.where((counts > 0) & updated.isfinite(), updated, fg))

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        """Compute the loss; see `ClassifierLoss.compute`."""
        raised = logits + self.scores.log().to(logits.dtype)
        return reduce(F.cross_entropy(raised, label, reduction="none"))
