"""Label smoothing and online label smoothing, with which the paper compares PCB (Table 4).

The paper does not state to which RoIs, over which classes and from which epoch it applied them.
Our guess treats them like PCB: positives only, the C foreground classes, from epoch 17 on. The
other reading is `scope='all', start='first'`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.errors import require_choice, require_fraction
from pcb.losses.base import Reduce
from pcb.losses.soft_labels import SoftLabels
from pcb.losses.softmax import SoftTargetCrossEntropy


class LabelSmoothingLoss(SoftTargetCrossEntropy):
    """Cross entropy with targets (1 - ε) one-hot + ε / K.

    Args:
        num_classes: C.
        epsilon: ε.
        start_epoch: First 1-based epoch with smoothing.
        scope: 'fg': on positives, K = C; 'all': on all RoIs, K = C+1 (background included).
        start: 'pcb': from `start_epoch` on, as PCB; 'first': from the first epoch on.
        **kwargs: See `SoftTargetCrossEntropy`.
    """

    def __init__(
        self,
        num_classes: int,
        epsilon: float = 0.1,
        start_epoch: int = 17,
        scope: str = "fg",
        start: str = "pcb",
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        require_fraction("epsilon", epsilon)
        require_choice("scope", scope, ("fg", "all"))
        self.epsilon, self.scope = epsilon, scope
        self.start_epoch = first_epoch(start, start_epoch)
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Set the 1-based epoch; `PCBEpochHook` calls it."""
        self.epoch = epoch

    def alpha_at(self, step: int | None) -> float:
        """Return ε, or 0 before `start_epoch`."""
        return self.epsilon if self.epoch >= self.start_epoch else 0.0

    def soft_targets(self, classes: Tensor) -> Tensor:
        """Return uniform targets (n, C)."""
        shape = len(classes), self.num_classes
        return torch.full(shape, 1 / self.num_classes, device=classes.device)

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        """Compute the loss; see `ClassifierLoss.compute`."""
        if self.scope == "fg":
            return super().compute(logits, label, reduce, step)
        epsilon = self.alpha_at(step)
        return reduce(F.cross_entropy(logits, label, reduction="none", label_smoothing=epsilon))


class OnlineLabelSmoothingLoss(SoftTargetCrossEntropy):
    """(1 - a) L_CE + a Σ_i S[y, i] (-log p_i), with S of `SoftLabels`.

    Source: Zhang et al., TIP 2021, in its form for CIFAR.

    Args:
        num_classes: C.
        alpha: a.
        start_epoch: First 1-based epoch with smoothing.
        start: 'pcb': from `start_epoch` on, as PCB; 'first': from the first epoch on, in which S is
            uniform.
        **kwargs: See `SoftTargetCrossEntropy`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.5,
        start_epoch: int = 17,
        start: str = "pcb",
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        require_fraction("alpha", alpha)
        self.alpha = alpha
        self.soft_labels = SoftLabels(num_classes, first_epoch(start, start_epoch))

    def set_epoch(self, epoch: int) -> None:
        """Set the 1-based epoch; `PCBEpochHook` calls it."""
        self.soft_labels.set_epoch(epoch)

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        """Collect the soft labels of the next epoch; see `SoftLabels.update`. A collective."""
        self.soft_labels.update(probs, classes)

    def alpha_at(self, step: int | None) -> float:
        """Return a, or 0 before the start epoch."""
        return self.alpha if self.soft_labels.in_use else 0.0

    def soft_targets(self, classes: Tensor) -> Tensor:
        """Return the soft labels (n, C) of the last epoch."""
        return self.soft_labels.rows(classes)


def first_epoch(start: str, start_epoch: int) -> int:
    """First 1-based epoch with smoothing, by the option `start`."""
    require_choice("start", start, ("pcb", "first"))
    return start_epoch if start == "pcb" else 1
