"""Softmax cross entropy with soft targets on positives; with PCB's it is the paper's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcb.errors import require_choice
from pcb.losses.base import ClassifierLoss, Positives, Reduce
from pcb.losses.regulariser import Regularised, Regulariser, require_posterior
from pcb.losses.soft_labels import SoftLabels


class SoftTargetCrossEntropy(ClassifierLoss):
    """(1 - a) L_CE + a Σ_i t_i (-log p_i) on positives, L_CE on background, over C+1 logits.

    Subclasses define what they learn from a batch (`update`), the weight a (`alpha_at`) and the
    targets t (`soft_targets`). Label smoothing, online label smoothing and PCB differ in nothing
    else.

    Source: Eq. 11. The released code has KL(t || p) instead of the cross entropy: the same
    gradient, a value smaller by the entropy of t.

    Args:
        num_classes: C.
        space: Classes over which p is a softmax. 'full' (released code): all C+1 logits, so that
            the regularised part still separates a positive from background. 'fg' (Eq. 10 as
            printed): the C class logits; a positive then keeps only 1 - a of its gradient against
            background.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        space: str = "full",
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        require_choice("space", space, ("full", "fg"))
        self.space = space

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        """Learn from a batch, before its loss is computed.

        Args:
            probs: (n, C) foreground probabilities of the positives (Eq. 1).
            classes: (n,) int64, their classes.
            step: 0-based step, None: the last.
        """

    def alpha_at(self, step: int | None) -> float:
        """Return the weight a; 0 gives exactly plain cross entropy."""
        raise NotImplementedError

    def soft_targets(self, classes: Tensor) -> Tensor:
        """Return targets (n, C) of classes (n,), rows that sum to one.

        Rows of the class C, for "none", are ignored (see `needs_static_shapes`).
        """
        raise NotImplementedError

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        """Compute the loss; see `ClassifierLoss.compute`."""
        positives = self.positives(label)
        rows, classes, _ = positives
        z = logits[:, : self.num_classes].detach().index_select(0, rows)
        self.update(self.foreground(z), classes, step)
        alpha = self.alpha_at(step)
        if not alpha:
            return reduce(F.cross_entropy(logits, label, reduction="none"))
        target = self.soft_targets(classes).to(logits.dtype)
        if self.space == "full":
            return reduce(SoftCrossEntropy.apply(logits, z, label, positives, target, alpha))
        ce, z = F.cross_entropy(logits, label, reduction="none"), logits[rows, : self.num_classes]
        soft = z.logsumexp(dim=1) - (z * target).sum(dim=1)  # targets sum to one
        return reduce(ce.index_add(0, rows, positives.where(soft - ce[rows]), alpha=alpha))


class SoftCrossEntropy(torch.autograd.Function):
    """Cross entropy (N,) over C+1 logits, with targets (1 - a) one-hot + a `target` on positives.

    `z` (n, C) are the class logits of the n positives, detached, and `target` is (n, C); its rows
    sum to one. Forward and backward share one exponential over all logits, for which autograd would
    take two.
    """

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        z: Tensor,
        label: Tensor,
        positives: Positives,
        target: Tensor,
        alpha: float,
    ) -> Tensor:
        """Compute the loss (N,) of logits (N, C+1), labels (N,) and targets (n, C)."""
        rows = positives.rows
        p, lse = softmax_and_lse(logits)
        loss, lse = (lse - logits.gather(1, label[:, None])).squeeze(1), lse.squeeze(1)
        soft = lse[rows] - (z * target).sum(dim=1)
        soft = positives.where(soft, loss[rows])
        ctx.save_for_backward(p, label, target)
        ctx.alpha, ctx.positives = alpha, positives
        return loss.index_copy_(0, rows, torch.lerp(loss[rows], soft, alpha))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient (N, C+1) of the logits from that (N,) of the loss."""
        (p, label, target), rows = ctx.saved_tensors, ctx.positives.rows
        grad_soft = ctx.positives.where(grad[rows])
        grad_hard = grad.index_add(0, rows, grad_soft, alpha=-ctx.alpha)
        out = (p * grad[:, None]).scatter_add_(1, label[:, None], -grad_hard[:, None])
        # The rows are distinct, so the order of the sums is fixed.
        out[:, :-1].index_add_(0, rows, target * grad_soft[:, None], alpha=-ctx.alpha)
        return out, None, None, None, None, None


def softmax_and_lse(z: Tensor) -> tuple[Tensor, Tensor]:
    """Compute p = softmax (n, D) of logits (n, D) and lse = log Σ exp (n, 1), with one exponential.

    -log p_y = lse - z_y also holds where p_y underflows. lse follows from the largest p, which
    cannot.
    """
    p = z.softmax(dim=1)
    return p, z.amax(dim=1, keepdim=True) - p.amax(dim=1, keepdim=True).log_()


class PCBCrossEntropyLoss(Regularised, SoftTargetCrossEntropy):
    """Cross entropy with PCB: a = α_r, t = column y of M̂, so L_PCB = -Σ_i M̂[i, y] log p_i.

    Source: Eq. 10 and 11.

    Args:
        num_classes: C.
        alpha: α. With 0 this is exactly plain cross entropy; the matrix is updated all the same.
        momentum: See `Regulariser`.
        num_steps: See `Regulariser`.
        start_epoch: See `Regulariser`.
        space: See `SoftTargetCrossEntropy`.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.
        soft_labels: Collect the soft labels of online label smoothing too, for a trunk from which
            it branches.
        **pcb: Further arguments of `Regulariser`, without `posterior`.
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
        require_posterior(pcb)
        self.pcb = Regulariser(num_classes, alpha, momentum, num_steps, start_epoch, **pcb)
        self.soft_labels = SoftLabels(num_classes, start_epoch) if soft_labels else None

    def set_epoch(self, epoch: int) -> None:
        """Set the 1-based epoch; `PCBEpochHook` calls it."""
        super().set_epoch(epoch)
        if self.soft_labels is not None:
            self.soft_labels.set_epoch(epoch)

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        """Update the matrix, and the soft labels if they are kept; a collective.

        See `SoftTargetCrossEntropy.update`.
        """
        self.pcb.update_confusion(probs, classes, step)
        if self.soft_labels is not None:
            self.soft_labels.update(probs, classes)

    def alpha_at(self, step: int | None) -> float:
        """Return α_r, 0 while PCB is inactive."""
        return self.pcb.alpha_at(step)

    def soft_targets(self, classes: Tensor) -> Tensor:
        """Return the columns of M̂ (n, C)."""
        return self.pcb.soft_targets(classes)
