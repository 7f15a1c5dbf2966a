"""Seesaw loss (Wang et al., CVPR 2021), and with PCB regularisation (paper App. A, Eq. 16-18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcb.distributed import all_sum
from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser


class SeesawLoss(ClassifierLoss):
    """Softmax over C classes whose wrong logits are damped or raised, plus a softmax over (object, background).

    C+2 logits: C classes, then object, background. On positives of class y, z_j + log S_yj takes the place of z_j:
    S_yj = min(1, (N_j / N_y)^p) · max(1, (σ_j / σ_y)^q), N the RoIs of each class so far (at least 1), σ the plain softmax
    (detached, σ_y at least eps). Both parts are divided by the number of all RoIs. Test-time scores are softmax · P(object).

    Buffer `cum_samples` (C+1,): RoIs so far, background last. They are counted over all ranks, so that ranks agree and
    a resume is exact; `counts='rank'` counts on each rank alone, as mmdet does.
    """

    box_head: ClassVar[dict] = {"cls_predictor_cfg": {"type": "NormedLinear"}}
    mask_head: ClassVar[dict] = {"predictor_cfg": {"type": "NormedConv2d"}}
    score_kind: ClassVar[str] = "seesaw"
    custom_activation = True
    extra_channels = 2

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
        if counts not in ("all", "rank"):
            raise ValueError(f"counts={counts!r}: 'all' or 'rank'")
        self.p, self.q, self.eps, self.counts = p, q, eps, counts
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    def get_activation(self, cls_score: Tensor) -> Tensor:
        objectness = cls_score[..., -2:].softmax(dim=-1)
        return torch.cat(
            [cls_score[..., :-2].softmax(dim=-1) * objectness[..., :1], objectness[..., 1:]], dim=-1
        )

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percentages, under mmdet's names: of all RoIs as object or background, of positives as their class."""
        fg = labels < self.num_classes
        return {
            "acc_objectness": percent(
                cls_score[:, -2:].argmax(dim=1) == (~fg).long(), torch.ones_like(fg)
            ),
            "acc_classes": percent(cls_score[:, :-2].argmax(dim=1) == labels, fg),
        }

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        positives = self.positives(label)
        z, objectness = logits.split([self.num_classes, 2], dim=1)
        losses = {
            "loss_cls_objectness": reduce(
                F.cross_entropy(objectness, (label == self.num_classes).long(), reduction="none")
            )
        }
        z = z.index_select(0, positives.rows)
        log_score = z.detach().log_softmax(dim=1)
        self.update(log_score, positives.classes, self.counts_of(label), step)
        classes = (
            positives.classes
            if positives.is_positive is None
            else positives.classes.clamp(max=self.num_classes - 1)
        )
        return losses | self.classes_loss(
            z, log_score, classes, lambda loss: reduce(positives.where(loss), positives.rows), step
        )

    def classes_loss(
        self, z: Tensor, log_score: Tensor, classes: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        """Loss of the positives: logits (n, C), their log-softmax without gradient, classes (n,)."""
        return {
            "loss_cls_classes": reduce(
                F.cross_entropy(z + self.log_factors(log_score, classes), classes, reduction="none")
            )
        }

    @torch.no_grad()
    def counts_of(self, label: Tensor) -> Tensor:
        """How many RoIs of this rank have each label, (C+1,)."""
        return torch.zeros_like(self.cum_samples).index_add_(
            0, label, self.cum_samples.new_ones(len(label))
        )

    def update(self, log_score: Tensor, classes: Tensor, counts: Tensor, step: int | None) -> None:
        """Count the RoIs, before the loss is taken. A collective: all ranks must call it."""
        self.cum_samples += all_sum(counts) if self.counts == "all" else counts

    @torch.no_grad()
    def log_factors(self, log_score: Tensor, classes: Tensor) -> Tensor:
        """log S_yj for log-softmax scores (..., C) and the class y of each: (..., C), 0 at j = y."""
        seen = self.cum_samples[:-1].clamp(min=1).log().to(log_score.dtype)
        own = log_score.gather(-1, classes[..., None]).clamp(min=math.log(self.eps))
        mitigation = (seen - seen[classes][..., None]).clamp_(max=0)
        compensation = (log_score - own).clamp_(min=0)
        return compensation.mul_(self.q).add_(mitigation, alpha=self.p)


class PCBSeesawLoss(Regularised, SeesawLoss):
    """Seesaw with PCB: (1 - α_r) L_seesaw + α_r L_PCB on the class part (Eq. 18), L_PCB = -Σ_i M̂[i, y] log p̂_i; objectness unchanged.

    The matrix holds the plain softmax, without factors. In L_PCB the released code takes p̂ from the same logits as
    L_seesaw, with the factors S_yj of the label y (`factors='label'`). Eq. 17 gives each p̂_i the factors S_ij of the class i
    that it scores (`factors='class'`; memory of n·C² values, so for few classes).
    `loss_pcb_classes` appears only while the regularisation acts. Further arguments are those of `Regulariser` and `SeesawLoss`.
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
        if factors not in ("label", "class"):
            raise ValueError(f"factors={factors!r}: 'label' or 'class'")
        self.factors = factors
        self.pcb = Regulariser(num_classes, alpha, momentum, num_steps, start_epoch, **pcb)

    def update(self, log_score: Tensor, classes: Tensor, counts: Tensor, step: int | None) -> None:
        """Counts and matrix, with one collective for both."""
        self.pcb.update_confusion(
            log_score.exp(), classes, step, extra=counts if self.counts == "all" else None
        )
        self.cum_samples += counts

    def classes_loss(
        self, z: Tensor, log_score: Tensor, classes: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        alpha = self.pcb.alpha_at(step)
        if not alpha:
            return super().classes_loss(z, log_score, classes, reduce, step)
        factors, target = self.log_factors(log_score, classes), self.pcb.soft_targets(classes)
        if self.factors == "label":
            seesaw, soft = HardAndSoft.apply(z, factors, classes, target)
        else:
            seesaw = F.cross_entropy(z + factors, classes, reduction="none")
            soft = -(target * self.log_p_of_each_class(z, log_score)).sum(dim=1)
        return {
            "loss_cls_classes": reduce((1 - alpha) * seesaw),
            "loss_pcb_classes": reduce(alpha * soft),
        }

    def log_p_of_each_class(self, z: Tensor, log_score: Tensor) -> Tensor:
        """log p̂_i of Eq. 17, with the factors of class i: (n, C) -> (n, C)."""
        every = torch.arange(self.num_classes, device=z.device).expand(len(z), -1)
        factors = self.log_factors(
            log_score[:, None, :].expand(-1, self.num_classes, -1), every
        )  # [k, i, j] = log S_ij of RoI k
        return z - (z[:, None, :] + factors).logsumexp(dim=2)


class HardAndSoft(torch.autograd.Function):
    """-log p_y and -Σ_i t_i log p_i, (n,) each, with log p = log_softmax(z + factors) over (n, C): one softmax for both, one backward.

    `factors` is overwritten. Targets sum to one.
    """

    @staticmethod
    def forward(
        ctx, z: Tensor, factors: Tensor, classes: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_p = factors.add_(z).log_softmax(dim=1)
        ctx.save_for_backward(log_p, classes, target)
        return -log_p.gather(1, classes[:, None]).squeeze(1), -(target * log_p).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_hard: Tensor, of_soft: Tensor) -> tuple[Tensor | None, ...]:
        log_p, classes, target = ctx.saved_tensors
        grad = (target * -of_soft[:, None]).scatter_add_(1, classes[:, None], -of_hard[:, None])
        return (
            torch.ops.aten._log_softmax_backward_data(grad, log_p, 1, log_p.dtype),
            None,
            None,
            None,
        )


def percent(right: Tensor, of: Tensor) -> Tensor:
    """Percentage of `right` (N,) bool among `of` (N,) bool; 0 of none."""
    return 100 * (right & of).sum() / of.sum().clamp(min=1)
