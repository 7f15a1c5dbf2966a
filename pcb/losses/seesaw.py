"""Seesaw loss (Wang et al., CVPR 2021), alone and with PCB (App. A, Eq. 16-18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcb.distributed import all_sum
from pcb.errors import require_choice
from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser, require_posterior
from pcb.losses.softmax import softmax_and_lse


class SeesawLoss(ClassifierLoss):
    """Softmax over C classes with scaled wrong logits, and one over (object, background).

    C+2 logits: C classes, then object, background. On positives of class y, z_j + log S_yj replaces
    z_j (Eq. 16):

        S_yj = min(1, (N_j / N_y)^p) · max(1, (σ_j / σ_y)^q)

    with N the number of RoIs of each class so far (at least 1) and σ the plain softmax (detached,
    σ_y at least eps). Both parts are divided by the number of all RoIs. Test-time scores are
    softmax · P(object).

    Args:
        num_classes: C.
        p: Exponent of the mitigation factor.
        q: Exponent of the compensation factor.
        eps: Lower bound of σ_y.
        counts: RoIs are counted over 'all' ranks, so that ranks agree and a resume is exact, or on
            each 'rank' alone, as in MMDetection.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.

    Attributes:
        cum_samples: Buffer (C+1,), RoIs so far, background last.
    """

    box_head: ClassVar[dict] = {"cls_predictor_cfg": {"type": "NormedLinear"}}
    mask_head: ClassVar[dict] = {"predictor_cfg": {"type": "NormedConv2d"}}
    score_kind: ClassVar[str] = "seesaw"
    custom_activation = True
    extra_channels = 2
    cum_samples: Tensor

    def __init__(
        self,
        num_classes: int,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        counts: str = "all",
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        require_choice("counts", counts, ("all", "rank"))
        self.p, self.q, self.eps, self.counts = p, q, eps, counts
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Compute test-time scores (N, C+1), background last."""
        objectness = cls_score[..., -2:].softmax(dim=-1)
        classes = cls_score[..., :-2].softmax(dim=-1)
        return torch.cat([classes * objectness[..., :1], objectness[..., 1:]], dim=-1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute accuracies in percent, under MMDetection's names.

        Args:
            cls_score: (N, C+2) logits.
            labels: (N,) int64: 0 .. C-1 foreground, C background.

        Returns:
            `acc_objectness` of all RoIs as object or background, `acc_classes` of positives.
        """
        fg = labels < self.num_classes
        objectness = cls_score[:, -2:].argmax(dim=1) == (~fg).long()
        classes = cls_score[:, :-2].argmax(dim=1) == labels
        return {
            "acc_objectness": _percentage(objectness, torch.ones_like(fg)),
            "acc_classes": _percentage(classes, fg),
        }

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        """Compute both parts of the loss; see `ClassifierLoss.compute`."""
        positives = self.positives(label)
        z, objectness = logits.split([self.num_classes, 2], dim=1)
        is_background = (label == self.num_classes).long()
        loss = F.cross_entropy(objectness, is_background, reduction="none")
        losses = {"loss_cls_objectness": reduce(loss)}
        z = z.index_select(0, positives.rows)
        probs, lse = softmax_and_lse(z.detach())
        self.update(probs, positives.classes, self.count_labels(label), step)
        classes = positives.classes
        if positives.is_positive is not None:
            classes = classes.clamp(max=self.num_classes - 1)

        def reduce_positives(loss: Tensor, of: Tensor | slice = positives.rows) -> Tensor:
            return reduce(positives.where(loss), of)

        return losses | self.class_losses(z, lse, classes, reduce_positives, step)

    def class_losses(
        self, z: Tensor, lse: Tensor, classes: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        """Compute the class part of the loss, on positives.

        Args:
            z: (n, C) logits.
            lse: (n, 1) log Σ exp of them, without gradient.
            classes: (n,) int64 true classes.
            reduce: Weights and averages values of the positives.
            step: 0-based step, None: the last.

        Returns:
            The losses to log.
        """
        scaled = z + self.log_factors(z.detach(), lse, classes)
        return {"loss_cls_classes": reduce(F.cross_entropy(scaled, classes, reduction="none"))}

    @torch.no_grad()
    def count_labels(self, label: Tensor) -> Tensor:
        """Count the RoIs of this rank that have each label: (C+1,)."""
        ones = self.cum_samples.new_ones(len(label))
        return torch.zeros_like(self.cum_samples).index_add_(0, label, ones)

    def update(self, probs: Tensor, classes: Tensor, counts: Tensor, step: int | None) -> None:
        """Learn from a batch, before its loss is computed. A collective: every rank must call it.

        Args:
            probs: (n, C) softmax of the positives.
            classes: (n,) int64, their classes; C marks a row to ignore.
            counts: (C+1,) RoIs of this rank by label; changed in place.
            step: 0-based step, None: the last.
        """
        self.cum_samples += all_sum(counts) if self.counts == "all" else counts

    @torch.no_grad()
    def log_factors(self, z: Tensor, lse: Tensor, classes: Tensor) -> Tensor:
        """Compute log S_yj.

        Args:
            z: (..., C) logits; log σ = z - lse.
            lse: (..., 1) log Σ exp of them.
            classes: (...) int64, the class y of each.

        Returns:
            (..., C), 0 at j = y.
        """
        log_counts = self.p * self.cum_samples[:-1].clamp(min=1).log().to(z.dtype)
        mitigation = (log_counts - log_counts[classes][..., None]).clamp_(max=0)
        own = z.gather(-1, classes[..., None]).maximum(lse + math.log(self.eps))
        compensation = (z - own).clamp_(min=0)
        return mitigation.add_(compensation, alpha=self.q)


class PCBSeesawLoss(Regularised, SeesawLoss):
    """Seesaw with PCB: (1 - α_r) L_seesaw + α_r L_PCB on the class part (Eq. 18).

    L_PCB = -Σ_i M̂[i, y] log p̂_i; objectness is unchanged. The matrix holds the plain softmax
    over the C class logits. `loss_pcb_classes` is logged only while PCB is active.

    Args:
        num_classes: C.
        alpha: α.
        momentum: See `Regulariser`.
        num_steps: See `Regulariser`.
        start_epoch: See `Regulariser`.
        factors: The factors in p̂ of L_PCB. 'label' (released code): S_yj of the label y, as in
            L_seesaw. 'class' (Eq. 17): p̂_i has S_ij of the class i that it scores; needs memory
            for n·C² values.
        p: See `SeesawLoss`.
        q: See `SeesawLoss`.
        eps: See `SeesawLoss`.
        counts: See `SeesawLoss`.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.
        **pcb: Further arguments of `Regulariser`, without `posterior`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.05,
        momentum: float | Sequence[float] = 0.99,
        num_steps: int = 3,
        start_epoch: int = 17,
        *,
        factors: str = "label",
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        counts: str = "all",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        **pcb,
    ):
        super().__init__(num_classes, p, q, eps, counts, loss_weight, reduction)
        require_choice("factors", factors, ("label", "class"))
        self.factors = factors
        require_posterior(pcb)
        self.pcb = Regulariser(num_classes, alpha, momentum, num_steps, start_epoch, **pcb)

    def update(self, probs: Tensor, classes: Tensor, counts: Tensor, step: int | None) -> None:
        """Update counts and matrix with one collective for both; see `SeesawLoss.update`."""
        extra = counts if self.counts == "all" else None
        self.pcb.update_confusion(probs, classes, step, extra)
        self.cum_samples += counts

    def class_losses(
        self, z: Tensor, lse: Tensor, classes: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        """Compute the class part and PCB's part of the loss; see `SeesawLoss.class_losses`."""
        alpha = self.pcb.alpha_at(step)
        if not alpha:
            return super().class_losses(z, lse, classes, reduce, step)
        factors = self.log_factors(z.detach(), lse, classes)
        target = self.pcb.soft_targets(classes).to(z.dtype)
        if self.factors == "label":
            seesaw, soft = HardAndSoft.apply(z, factors, classes, target)
        else:
            seesaw = F.cross_entropy(z + factors, classes, reduction="none")
            soft = -(target * self.log_p_of_each_class(z, lse)).sum(dim=1)
        return {
            "loss_cls_classes": reduce((1 - alpha) * seesaw),
            "loss_pcb_classes": reduce(alpha * soft),
        }

    def log_p_of_each_class(self, z: Tensor, lse: Tensor) -> Tensor:
        """Compute log p̂_i of Eq. 17, with the factors of class i: (n, C) -> (n, C)."""
        n = len(z)
        each_class = torch.arange(self.num_classes, device=z.device).expand(n, -1)
        repeated = z.detach()[:, None, :].expand(-1, self.num_classes, -1)
        # [k, i, j] = log S_ij of RoI k
        factors = self.log_factors(repeated, lse[:, None], each_class)
        return z - (z[:, None, :] + factors).logsumexp(dim=2)


class HardAndSoft(torch.autograd.Function):
    """-log p_y and -Σ_i t_i log p_i, (n,) each, with log p = log_softmax(z + factors) over (n, C).

    Both, forward and backward, share one exponential. `factors` is overwritten. Targets t sum to
    one.
    """

    @staticmethod
    def forward(
        ctx, z: Tensor, factors: Tensor, classes: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses (n,) of logits, factors and targets (n, C) and classes (n,)."""
        scaled = factors.add_(z)
        p, lse = softmax_and_lse(scaled)
        ctx.save_for_backward(p, classes, target)
        hard = lse - scaled.gather(1, classes[:, None])
        return hard.squeeze(1), lse.squeeze(1) - scaled.mul_(target).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hard: Tensor, grad_soft: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient (n, C) of the logits from those (n,) of both losses."""
        p, classes, target = ctx.saved_tensors
        grad_hard, grad_soft = grad_hard[:, None], grad_soft[:, None]
        grad = (p * (grad_hard + grad_soft)).addcmul_(target, grad_soft, value=-1)
        return grad.scatter_add_(1, classes[:, None], -grad_hard), None, None, None


def _percentage(correct: Tensor, of: Tensor) -> Tensor:
    """Percentage of `correct` (N,) bool among `of` (N,) bool; 0 of none."""
    return 100 * (correct & of).sum() / of.sum().clamp(min=1)
