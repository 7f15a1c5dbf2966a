"""Equalization loss v2 (Tan et al., CVPR 2021), alone and with PCB (App. A, Eq. 13-15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.distributed import all_sum
from pcb.errors import require_choice
from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser

PRIOR_BIAS = -6.907  # every sigmoid starts at 0.001, on background too


class EQLv2Loss(ClassifierLoss):
    """Sigmoid cross entropy that balances the gradients of each class's positives and negatives.

    C+1 logits, the last one "background" (target 1 on background RoIs). With g_j the ratio of the
    gradients collected so far from positives and negatives of class j:

        w⁻_j = 1 / (1 + exp(-γ (g_j - μ))),  w⁺_j = 1 + a (1 - w⁻_j);  both 1 for background
        L = (1/N) Σ_k Σ_j [w⁺_j t_kj + w⁻_j (1 - t_kj)] BCE(z_kj, t_kj)

    The first iteration has all weights 1. Test-time scores are σ(z_j) (1 - σ(z_bg)). The classifier
    must start with the bias of `box_head`.

    Args:
        num_classes: C.
        gamma: γ.
        mu: μ.
        weight_of_positives: a.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.

    Attributes:
        pos: Buffer (C,) float64, gradients of positives over all RoIs, steps and ranks so far. (The
            released code keeps plain attributes and loses them on a resume.)
        neg: Buffer (C,) float64, gradients of negatives.
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
    pos: Tensor
    neg: Tensor

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
        """Compute test-time scores (N, C+1), background last."""
        scores = cls_score.sigmoid()
        background = scores[..., -1:]
        return torch.cat([scores[..., :-1] * (1 - background), background], dim=-1)

    def foreground(self, cls_score: Tensor) -> Tensor:
        """Compute the sigmoids (N, C) of the classes, the rows of PCB's matrix."""
        return cls_score[..., :-1].sigmoid()

    def class_weights(self) -> tuple[Tensor, Tensor]:
        """Return w⁺ and w⁻, (C+1,) each."""
        ratio = torch.where(self.pos + self.neg > 0, self.pos / (self.neg + 1e-10), 100.0)
        negative = torch.sigmoid(self.gamma * (ratio - self.mu))
        positive = 1 + self.weight_of_positives * (1 - negative)
        return F.pad(positive, (0, 1), value=1.0), F.pad(negative, (0, 1), value=1.0)

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        """Compute the loss; see `ClassifierLoss.compute`."""
        target = _one_hot(logits, label)
        rows = self.positives(label).rows
        return reduce(self.equalised_loss(logits, target, target, rows))

    def equalised_loss(
        self, logits: Tensor, target: Tensor, positive: Tensor, rows: Tensor
    ) -> Tensor:
        """Compute the loss of each RoI and collect its gradients. A collective.

        Args:
            logits: (N, C+1).
            target: (N, C+1) targets t.
            positive: (N, C+1) how much a pair (RoI, class) counts as positive. Without PCB, this
                and `target` are the one-hot label.
            rows: (n,) RoIs that count as positive of any class but background.

        Returns:
            (N,) losses.
        """
        plus, minus = (w.to(logits.dtype) for w in self.class_weights())
        weight = (positive * (plus - minus)).add_(minus)
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
        loss = loss.sum(dim=1)
        self.collect_gradients(logits.detach(), target, positive, weight, rows)
        return loss

    @torch.no_grad()
    def collect_gradients(
        self, logits: Tensor, target: Tensor, positive: Tensor, weight: Tensor, rows: Tensor
    ) -> None:
        """Add |σ - t| w to `pos` and `neg`, split by `positive`. A collective.

        A class with a sum that is not finite, after an overflow in float16, is left out.

        Args:
            logits: (N, C+1), without gradient.
            target: As in `equalised_loss`.
            positive: As in `equalised_loss`.
            weight: (N, C+1) weight of each summand of the loss.
            rows: As in `equalised_loss`.
        """
        classes = slice(self.num_classes)
        gradient = logits.sigmoid().sub_(target).abs_().mul_(weight)[:, classes]
        total = gradient.sum(dim=0, dtype=torch.float64)
        # Only the given rows have a positive part; the negative part is the remainder.
        share = positive.index_select(0, rows)[:, classes].mul_(gradient.index_select(0, rows))
        of_positives = share.sum(dim=0, dtype=torch.float64)
        both = all_sum(torch.stack([of_positives, total - of_positives]))
        both = torch.where(both.sum(dim=0).isfinite(), both, 0)
        self.pos += both[0]
        self.neg += both[1]


class PCBEQLv2Loss(Regularised, EQLv2Loss):
    """EQL v2 with PCB: the target of a positive of class y is mixed with column y of M.

    The matrix holds sigmoids; its rows are not normalised, and Eq. 5 is dropped.

    Args:
        num_classes: C.
        alpha: α.
        momentum: See `Regulariser`.
        num_steps: See `Regulariser`.
        start_epoch: See `Regulariser`.
        literal: False (released code): mix targets, t = α_r M[:, y] + (1 - α_r) onehot, from which
            weights and collected gradients follow. True (Eq. 15 as printed): mix losses, both with
            the weights of the one-hot label. BCE is linear in t, so this differs only in the
            weights. The paper does not state which gradients it collects; our guess is
            |σ - t| w, positive where the label is.
        gamma: See `EQLv2Loss`.
        mu: See `EQLv2Loss`.
        weight_of_positives: See `EQLv2Loss`.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.
        **pcb: Further arguments of `Regulariser`, without `posterior` and `normalise`.
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
        require_choice("literal", literal, (False, True))
        self.literal = literal
        schedule = (alpha, momentum, num_steps, start_epoch)
        self.pcb = Regulariser(num_classes, *schedule, posterior=False, normalise=False, **pcb)

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        """Compute the loss; see `ClassifierLoss.compute`."""
        positives = self.positives(label)
        rows, classes, _ = positives
        probs = self.foreground(logits.detach().index_select(0, rows))
        self.pcb.update_confusion(probs, classes, step)
        alpha, target = self.pcb.alpha_at(step), _one_hot(logits, label)
        positive = target.clone() if alpha and self.literal else target
        if alpha:
            soft = F.pad(self.pcb.soft_targets(classes), (0, 1)).to(target.dtype)
            onehot = target.index_select(0, rows)
            mixed = positives.where(torch.lerp(onehot, soft, alpha), onehot)
            target.index_copy_(0, rows, mixed)
        return reduce(self.equalised_loss(logits, target, positive, rows))


def _one_hot(logits: Tensor, label: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter_(1, label[:, None], 1)
