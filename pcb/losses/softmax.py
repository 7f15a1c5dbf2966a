"""Softmax cross entropy whose positives may get soft targets; with the targets of PCB it is the paper's loss (Eq. 10, 11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcb.losses.base import ClassifierLoss, Positives, Reduce
from pcb.losses.regulariser import Regularised, Regulariser
from pcb.losses.soft_labels import SoftLabels


class SoftTargetCrossEntropy(ClassifierLoss):
    """(1 - a) L_CE + a Σ_i t_i (-log p_i) on positives, L_CE on background (Eq. 11), over C+1 logits.

    Subclasses say what they learn from a batch (`update`), how large a is now (`alpha_at`; 0: plain cross entropy, to
    the bit) and which targets t a class has (`soft_targets`). Label smoothing, online label smoothing and PCB differ in nothing else.

    `space` is where p lives. 'full' (released code): softmax over all C+1 logits, so that the regularised part still
    pulls a positive away from background. 'fg' (Eq. 10 as printed): softmax over the C foreground logits; a positive
    then keeps only 1 - a of its gradient against background. The released code takes KL(t || p) in place of the
    cross entropy: the same gradient, a value smaller by the entropy of the target.
    """

    def __init__(
        self,
        num_classes: int,
        space: str = "full",
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        if space not in ("full", "fg"):
            raise ValueError(f"space={space!r}: 'full' or 'fg'")
        self.space = space

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        """Foreground probabilities (n, C) of the positives (Eq. 1) and their classes (n,), before the loss is taken."""

    def alpha_at(self, step: int | None) -> float:
        raise NotImplementedError

    def soft_targets(self, classes: Tensor) -> Tensor:
        """Classes (n,) -> soft targets (n, C), rows summing to one; whatever for class C, "none" (see `needs_static_shapes`)."""
        raise NotImplementedError

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        positives = self.positives(label)
        rows, classes, _ = positives
        self.update(self.foreground(logits.detach().index_select(0, rows)), classes, step)
        alpha = self.alpha_at(step)
        if not alpha:
            return reduce(F.cross_entropy(logits, label, reduction="none"))
        target = self.soft_targets(classes).to(logits.dtype)
        if self.space == "full":
            return reduce(SoftCrossEntropy.apply(logits, label, positives, target, alpha))
        ce, z = F.cross_entropy(logits, label, reduction="none"), logits[rows, : self.num_classes]
        soft = z.logsumexp(dim=1) - (z * target).sum(dim=1)  # targets sum to one
        return reduce(ce.index_add(0, rows, positives.where(soft - ce[rows]), alpha=alpha))


class SoftCrossEntropy(torch.autograd.Function):
    """Cross entropy of N RoIs over C+1 logits, of which `positives` (n) get (1 - a) one-hot + a `target` (n, C): values (N,).

    One softmax forward, one exponential backward; left to autograd, the second term would cost two more passes over all logits.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, label: Tensor, positives: Positives, target: Tensor, alpha: float
    ) -> Tensor:
        rows = positives.rows
        log_p = logits.log_softmax(dim=1)
        loss = -log_p.gather(1, label[:, None]).squeeze(1)
        soft = positives.where(
            -(log_p.index_select(0, rows)[:, :-1] * target).sum(dim=1), loss[rows]
        )
        ctx.save_for_backward(log_p, label, target)
        ctx.alpha, ctx.positives = alpha, positives
        return loss.index_copy_(0, rows, torch.lerp(loss[rows], soft, alpha))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (log_p, label, target), rows = ctx.saved_tensors, ctx.positives.rows
        of_soft = ctx.positives.where(grad[rows])
        onehot = grad.index_add(0, rows, of_soft, alpha=-ctx.alpha)
        out = log_p.exp().mul_(grad[:, None]).scatter_add_(1, label[:, None], -onehot[:, None])
        out[:, :-1].index_add_(
            0, rows, target * of_soft[:, None], alpha=-ctx.alpha
        )  # rows are distinct: no race
        return out, None, None, None, None


class PCBCrossEntropyLoss(Regularised, SoftTargetCrossEntropy):
    """Cross entropy with PCB: a = α_r and t = column y of M̂, so that L_PCB = -Σ_i M̂[i, y] log p_i (Eq. 10).

    With `alpha=0` this is plain cross entropy, to the bit; the matrix is kept all the same. `soft_labels` keeps those of
    online label smoothing too, for a run whose first epochs are shared with it. Further arguments are those of `Regulariser`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.4,
        momentum: float | Sequence[float] = 0.99,
        num_steps: int = 3,
        start_epoch: int = 17,
        *,
        space: str = "full",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        soft_labels: bool = False,
        **pcb,
    ):
        super().__init__(num_classes, space, loss_weight, reduction)
        self.pcb = Regulariser(num_classes, alpha, momentum, num_steps, start_epoch, **pcb)
        self.soft_labels = SoftLabels(num_classes, start_epoch) if soft_labels else None

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self.soft_labels is not None:
            self.soft_labels.set_epoch(epoch)

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        self.pcb.update_confusion(probs, classes, step)
        if self.soft_labels is not None:
            self.soft_labels.update(probs, classes)

    def alpha_at(self, step: int | None) -> float:
        return self.pcb.alpha_at(step)

    def soft_targets(self, classes: Tensor) -> Tensor:
        return self.pcb.soft_targets(classes)
