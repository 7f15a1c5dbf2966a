"""Equalization loss v2 (Tan et al., CVPR 2021), and with PCB regularisation (paper App. A, Eq. 13-15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.distributed import all_sum
from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser

PRIOR_BIAS = -6.907  # every sigmoid starts at 0.001


class EQLv2Loss(ClassifierLoss):
    """Sigmoid cross entropy that evens out, class by class, what positives and negatives have pulled so far.

    C+1 logits, the last one "background" (target 1 on background RoIs). With g_j the ratio of the gradients collected from
    positives and negatives of class j:  w⁻_j = 1 / (1 + exp(-γ (g_j - μ))),  w⁺_j = 1 + a (1 - w⁻_j), both 1 for
    background, and  L = (1/N) Σ_k Σ_j [w⁺_j t + w⁻_j (1 - t)] BCE(z_kj, t_kj).
    The first iteration has all weights 1. Test-time scores are σ(z_j) (1 - σ(z_bg)).

    Buffers `pos`, `neg` (C,): gradients collected over all RoIs, steps and ranks since the start. (The release of the
    PCB authors keeps them as plain attributes and loses them on a resume.)
    The classifier must start with bias -6.907 (prior 0.001, on background too): see `box_head`.
    """

    box_head: ClassVar[dict] = {
        "init_cfg": [
            {"type": "Normal", "std": 0.01, "bias": PRIOR_BIAS, "override": {"name": "fc_cls"}},
            {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
            {
                "type": "Xavier",
                "distribution": "uniform",
                "override": [{"name": "shared_fcs"}, {"name": "cls_fcs"}, {"name": "reg_fcs"}],
            },
        ]
    }
    normalise_logits: ClassVar[bool] = True
    score_kind: ClassVar[str] = "sigmoid"

    def __init__(
        self,
        num_classes: int,
        gamma: float = 12.0,
        mu: float = 0.8,
        weight_of_positives: float = 4.0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        self.gamma, self.mu, self.weight_of_positives = gamma, mu, weight_of_positives
        self.register_buffer("pos", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("neg", torch.zeros(num_classes, dtype=torch.float64))

    def get_activation(self, cls_score: Tensor) -> Tensor:
        scores = cls_score.sigmoid()
        background = scores[..., -1:]
        return torch.cat([scores[..., :-1] * (1 - background), background], dim=-1)

    def foreground(self, cls_score: Tensor) -> Tensor:
        """Sigmoids, each class by itself, as the matrix of PCB takes them."""
        return cls_score[..., :-1].sigmoid()

    def class_weights(self) -> tuple[Tensor, Tensor]:
        """w⁺ and w⁻, (C+1,) each."""
        ratio = torch.where(self.pos + self.neg > 0, self.pos / (self.neg + 1e-10), 100.0)
        negative = torch.sigmoid(self.gamma * (ratio - self.mu))
        positive = 1 + self.weight_of_positives * (1 - negative)
        return F.pad(positive, (0, 1), value=1.0), F.pad(negative, (0, 1), value=1.0)

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        target = self.one_hot(logits, label)
        rows = self.positives(label).rows
        return reduce(self.equalised(logits, target, target, rows))

    @staticmethod
    def one_hot(logits: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(logits).scatter_(1, label[:, None], 1)

    def equalised(self, logits: Tensor, target: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        """Loss of each RoI (N,), and the collection of its gradients.

        `target`, `positive` (N, C+1): what is aimed at, and how much a pair (RoI, class) counts as positive; both the one-hot label in
        plain EQL v2. `rows` (n,): the RoIs that count as positive of any class but background.
        """
        plus, minus = (w.to(logits.dtype) for w in self.class_weights())
        weight = (positive * (plus - minus)).add_(minus)
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum(
            dim=1
        )
        self.collect(logits.detach(), target, positive, weight, rows)
        return loss

    @torch.no_grad()
    def collect(
        self, logits: Tensor, target: Tensor, positive: Tensor, weight: Tensor, rows: Tensor
    ) -> None:
        """Add |σ - t| w, split into positive and negative parts. A collective: all ranks must call it."""
        pull = logits.sigmoid().sub_(target).abs_().mul_(weight)[:, : self.num_classes]
        total = pull.sum(dim=0, dtype=torch.float64)
        share = positive.index_select(0, rows)[:, : self.num_classes].mul_(
            pull.index_select(0, rows)
        )
        of_positives = share.sum(dim=0, dtype=torch.float64)
        both = all_sum(torch.stack([of_positives, total - of_positives]))
        self.pos += both[0]
        self.neg += both[1]


class PCBEQLv2Loss(Regularised, EQLv2Loss):
    """EQL v2 with PCB. The matrix holds sigmoids, rows are not normalised and Eq. 5 is dropped: column y of M is the target.

    The released code mixes targets: positives of class y get t = α_r M[:, y] + (1 - α_r) onehot, and weights and
    collected gradients follow from that t. With `literal` losses are mixed instead, as Eq. 15 is printed: both parts
    carry the weights of the one-hot label. BCE is linear in t, so this differs only in the weights; which gradients it
    should collect the paper does not say (guess: |σ - t| w, positive where the label is).
    Further arguments are those of `Regulariser` and `EQLv2Loss`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.2,
        momentum: float | Sequence[float] = 0.99,
        num_steps: int = 3,
        start_epoch: int = 17,
        *,
        literal: bool = False,
        gamma: float = 12.0,
        mu: float = 0.8,
        weight_of_positives: float = 4.0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        **pcb,
    ):
        super().__init__(num_classes, gamma, mu, weight_of_positives, loss_weight, reduction)
        self.literal = literal
        self.pcb = Regulariser(
            num_classes, alpha, momentum, num_steps, start_epoch, posterior=False, **pcb
        )

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        positives = self.positives(label)
        rows, classes, _ = positives
        self.pcb.update_confusion(
            self.foreground(logits.detach().index_select(0, rows)), classes, step
        )
        alpha, target = self.pcb.alpha_at(step), self.one_hot(logits, label)
        positive = target.clone() if alpha and self.literal else target
        if alpha:
            soft = F.pad(self.pcb.soft_targets(classes), (0, 1)).to(target.dtype)
            onehot = target.index_select(0, rows)
            target.index_copy_(0, rows, positives.where(torch.lerp(onehot, soft, alpha), onehot))
        return reduce(self.equalised(logits, target, positive, rows))
