"""Label smoothing and online label smoothing on the foreground classes: two other soft targets, beside which the paper sets PCB (Table 4).

The paper does not say to which RoIs, over which classes and from when on it applied them. Our guess makes them like for
like with PCB: positives only, the C foreground classes, from epoch 17 on. `scope='all'`, `start_epoch=1` is the other reading.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.losses.base import Reduce
from pcb.losses.soft_labels import SoftLabels
from pcb.losses.softmax import SoftTargetCrossEntropy


class LabelSmoothingLoss(SoftTargetCrossEntropy):
    """Targets (1 - ε) one-hot + ε / K. `scope='fg'`: on positives, K = C; 'all': on all RoIs, K = C+1 (background included)."""

    def __init__(
        self,
        num_classes: int,
        epsilon: float = 0.1,
        start_epoch: int = 17,
        scope: str = "fg",
        **kwargs,
    ):
        super().__init__(num_classes, **kwargs)
        if scope not in ("fg", "all"):
            raise ValueError(f"scope={scope!r}: 'fg' or 'all'")
        self.epsilon, self.start_epoch, self.scope, self.epoch = epsilon, start_epoch, scope, 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def alpha_at(self, step: int | None) -> float:
        return self.epsilon if self.epoch >= self.start_epoch else 0.0

    def soft_targets(self, classes: Tensor) -> Tensor:
        return torch.full(
            (len(classes), self.num_classes), 1 / self.num_classes, device=classes.device
        )

    def compute(self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None) -> Tensor:
        if self.scope == "fg":
            return super().compute(logits, label, reduce, step)
        return reduce(
            F.cross_entropy(logits, label, reduction="none", label_smoothing=self.alpha_at(step))
        )


class OnlineLabelSmoothingLoss(SoftTargetCrossEntropy):
    """(1 - a) L_CE + a Σ_i S[y, i] (-log p_i), a = 0.5, with S of `SoftLabels` (Zhang et al., TIP 2021, its CIFAR form)."""

    def __init__(self, num_classes: int, alpha: float = 0.5, start_epoch: int = 17, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.alpha = alpha
        self.soft_labels = SoftLabels(num_classes, start_epoch)

    def set_epoch(self, epoch: int) -> None:
        self.soft_labels.set_epoch(epoch)

    def update(self, probs: Tensor, classes: Tensor, step: int | None) -> None:
        self.soft_labels.update(probs, classes)

    def alpha_at(self, step: int | None) -> float:
        return self.alpha if self.soft_labels.current_epoch >= self.soft_labels.start_epoch else 0.0

    def soft_targets(self, classes: Tensor) -> Tensor:
        return self.soft_labels.labels.index_select(0, classes.clamp(max=self.num_classes - 1))
