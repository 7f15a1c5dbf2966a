"""Softmax cross entropy with PCB regularisation (Eq. 10, 11)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pcb.losses.base import ClassifierLoss, Reduce
from pcb.losses.regulariser import Regularised, Regulariser


class PCBCrossEntropyLoss(Regularised, ClassifierLoss):
    """(1 - α_r) L_CE + α_r L_PCB on positives, L_CE on background (Eq. 11), over C+1 logits; L_PCB = -Σ_i M̂[i, y] log p_i.

    With `alpha=0` this is plain cross entropy, to the bit; the matrix is kept all the same.

    `space` is where p lives. 'full' (released code): softmax over all C+1 logits, so that the regularised part still
    pulls a positive away from background. 'fg' (Eq. 10 as printed): softmax over the C foreground logits; a positive
    then keeps only 1 - α_r of its gradient against background. The released code takes KL(M̂ || p) in place of the
    cross entropy: the same gradient, a value smaller by the entropy of the target.

    Further arguments are those of `Regulariser`.
    """

    def __init__(self, num_classes: int, alpha: float = 0.4, space: str = "full", loss_weight: float = 1.0, reduction: str = "mean", **pcb):
        super().__init__(num_classes, loss_weight, reduction)
        if space not in ("full", "fg"):
            raise ValueError(f"space={space!r}: 'full' or 'fg'")
        self.space = space
        self.pcb = Regulariser(num_classes, alpha, **pcb)

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        ce = F.cross_entropy(logits, label, reduction="none")
        rows = self.positives(label)
        classes, z = label[rows], logits.index_select(0, rows)
        self.pcb.observe(z.detach()[:, : self.num_classes].softmax(dim=1), classes, step)  # Eq. 1
        alpha = self.pcb.strength(step)
        if not alpha:
            return reduce(ce)
        # Targets sum to one, so L_PCB = logsumexp(z) - Σ t_i z_i while L_CE = logsumexp(z) - z_y. Over the same logits
        # the two differ by something linear, and Eq. 11 is L_CE + α (L_PCB - L_CE).
        target = F.pad(self.pcb.targets(classes), (0, 1))  # nothing for background
        if self.space == "full":
            onehot = F.one_hot(classes, self.num_classes + 1)
            change = (z * (onehot - target)).sum(dim=1)
        else:
            change = z[:, : self.num_classes].logsumexp(dim=1) - (z * target).sum(dim=1) - ce[rows]
        return reduce(ce.index_add(0, rows, change, alpha=alpha))
