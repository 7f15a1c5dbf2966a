"""Softmax cross entropy whose positives may get soft targets; with the targets of PCB it is the paper's loss (Eq. 10, 11)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser
from pcb.losses.soft_labels import SoftLabels


class SoftTargetCrossEntropy(ClassifierLoss):
    """(1 - a) L_CE + a Σ_i t_i (-log p_i) on positives, L_CE on background (Eq. 11), over C+1 logits.

    Subclasses say what they learn from a batch (`observe`), how large a is now (`strength`; 0: plain cross entropy, to
    the bit) and which targets t a class has (`targets`). Label smoothing, online label smoothing and PCB differ in nothing else.

    `space` is where p lives. 'full' (released code): softmax over all C+1 logits, so that the regularised part still
    pulls a positive away from background. 'fg' (Eq. 10 as printed): softmax over the C foreground logits; a positive
    then keeps only 1 - a of its gradient against background. The released code takes KL(t || p) in place of the
    cross entropy: the same gradient, a value smaller by the entropy of the target.
    """

    def __init__(self, num_classes: int, space: str = "full", loss_weight: float = 1.0, reduction: str = "mean"):
        super().__init__(num_classes, loss_weight, reduction)
        if space not in ("full", "fg"):
            raise ValueError(f"space={space!r}: 'full' or 'fg'")
        self.space = space

    def observe(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        """Foreground probabilities (n, C) of the positives (Eq. 1) and their classes (n,), before the loss is taken."""

    def strength(self, step: int | None) -> float:
        raise NotImplementedError

    def targets(self, classes: Tensor) -> Tensor:
        """Classes (n,) -> soft targets (n, C), rows summing to one."""
        raise NotImplementedError

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        ce = F.cross_entropy(logits, label, reduction="none")
        rows = self.positives(label)
        classes, z = label[rows], logits.index_select(0, rows)
        self.observe(z.detach()[:, : self.num_classes].softmax(dim=1), classes, step)
        strength = self.strength(step)
        if not strength:
            return reduce(ce)
        # Targets sum to one, so the soft term is logsumexp(z) - Σ t_i z_i while L_CE = logsumexp(z) - z_y. Over the same
        # logits the two differ by something linear, and Eq. 11 is L_CE + a (soft term - L_CE).
        target = F.pad(self.targets(classes), (0, 1))  # nothing for background
        if self.space == "full":
            change = (z * (F.one_hot(classes, self.num_classes + 1) - target)).sum(dim=1)
        else:
            change = z[:, : self.num_classes].logsumexp(dim=1) - (z * target).sum(dim=1) - ce[rows]
        return reduce(ce.index_add(0, rows, change, alpha=strength))


class PCBCrossEntropyLoss(Regularised, SoftTargetCrossEntropy):
    """Cross entropy with PCB: a = α_r and t = column y of M̂, so that L_PCB = -Σ_i M̂[i, y] log p_i (Eq. 10).

    With `alpha=0` this is plain cross entropy, to the bit; the matrix is kept all the same. `soft_labels` keeps those of
    online label smoothing too, for a run whose first epochs are shared with it. Further arguments are those of `Regulariser`.
    """

    def __init__(self, num_classes: int, alpha: float = 0.4, space: str = "full", loss_weight: float = 1.0, reduction: str = "mean",
                 soft_labels: bool = False, **pcb):
        super().__init__(num_classes, space, loss_weight, reduction)
        self.pcb = Regulariser(num_classes, alpha, **pcb)
        self.soft_labels = SoftLabels(num_classes, self.pcb.start_epoch) if soft_labels else None

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self.soft_labels is not None:
            self.soft_labels.set_epoch(epoch)

    def observe(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        self.pcb.observe(probs, classes, step)
        if self.soft_labels is not None:
            self.soft_labels.observe(probs, classes)

    def strength(self, step: int | None) -> float:
        return self.pcb.strength(step)

    def targets(self, classes: Tensor) -> Tensor:
        return self.pcb.targets(classes)
