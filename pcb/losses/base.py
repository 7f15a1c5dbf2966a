"""What every classification loss here shares: the channels and scores that mmdet's box head asks for, and one way to be called.

To add a loss: subclass `ClassifierLoss`, write `compute` (logits in float32, per-RoI values into `reduce`) and, if
scores are not a softmax over C+1 logits, `get_activation`. Then add a line to pcb/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pcb.confusion import needs_static_shapes
from pcb.errors import UserError

Reduce = Callable[[Tensor], Tensor]


class ClassifierLoss(nn.Module):
    """Base of the classification losses of an R-CNN head with C foreground classes; background is label C.

    Inside autocast the loss still runs in float32: moving averages and small probabilities do not survive float16.
    Values are summed and divided by `avg_factor` (the number of RoIs), as mmdet does.

    Attributes:
        box_head: Overrides of the box head's config in a training with this loss.
        mask_head: Overrides of the mask head's config, in every stage of an experiment with this loss.
        normalise_logits: Whether logits need a LayerNorm before a RoI head feeds them back.
        score_kind: How test-time scores follow from logits, which NorCal needs to know: 'softmax'
            over C+1 logits, 'seesaw' (softmax over C classes times P(object)) or 'sigmoid'.
    """

    box_head: ClassVar[dict] = {}
    mask_head: ClassVar[dict] = {}
    normalise_logits: ClassVar[bool] = False
    score_kind: ClassVar[str] = "softmax"

    custom_cls_channels = (
        True  # mmdet: ask the loss for the number of logits and for the scores at test time
    )
    custom_activation = False  # mmdet: true where accuracy is not the argmax over C+1 logits
    takes_step = True  # our RoI heads pass `step` to a loss that says so
    extra_channels = 1

    def __init__(self, num_classes: int, loss_weight: float = 1.0, reduction: str = "mean"):
        super().__init__()
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.reduction = reduction

    def get_cls_channels(self, num_classes: int) -> int:
        """Number of logits for `num_classes` foreground classes."""
        if num_classes != self.num_classes:
            raise UserError(
                f"the box head has {num_classes} classes, its {type(self).__name__} was built for {self.num_classes}",
                "give both the number of classes of the data set, without background",
            )
        return num_classes + self.extra_channels

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Logits -> test-time scores (N, C+1), background last."""
        return cls_score.softmax(dim=-1)

    def foreground(self, cls_score: Tensor) -> Tensor:
        """p̂ of Eq. 1, what a confusion matrix is made of: logits (N, channels) -> (N, C). A softmax over the C foreground logits."""
        return cls_score[..., : self.num_classes].softmax(dim=-1)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        step: int | None = None,
        reduction_override: str | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Loss of N RoIs.

        Args:
            cls_score: (N, channels) logits.
            label: (N,) 0 .. C-1 foreground, C background.
            weight: (N,) weight of each RoI.
            avg_factor: what the sum is divided by; None: the number of RoIs.
            step: 0-based step of a stepped RoI head; None: the only one, which counts as the last.
            reduction_override: 'none', 'mean' or 'sum' in place of the constructor's.
        Returns a scalar, or a dict of scalars.
        """
        reduction = reduction_override or self.reduction

        def reduce(loss: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
            loss = loss if weight is None else loss * weight[of].to(loss.dtype)
            if reduction != "mean":
                return self.loss_weight * (loss.sum() if reduction == "sum" else loss)
            total = (
                max(len(label), 1)
                if avg_factor is None
                else avg_factor + torch.finfo(torch.float32).eps
            )
            return self.loss_weight * (loss.sum() / total)

        with torch.autocast(cls_score.device.type, enabled=False):
            return self.compute(
                cls_score if cls_score.dtype == torch.float64 else cls_score.float(),
                label,
                reduce,
                step,
            )

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> Tensor | dict[str, Tensor]:
        """The loss itself. `reduce(values, of=rows)` weighs, sums and averages per-RoI values, of all RoIs or of the given rows."""
        raise NotImplementedError

    def positives(self, label: Tensor) -> Positives:
        """The foreground RoIs among labels (N,)."""
        fg = (label >= 0) & (label < self.num_classes)
        if needs_static_shapes(label):
            return Positives(
                torch.arange(len(label), device=label.device), label.where(fg, self.num_classes), fg
            )
        rows = fg.nonzero().squeeze(1)
        return Positives(rows, label[rows], None)


class Positives(NamedTuple):
    """Foreground RoIs: their `rows` (n,) and `classes` (n,). With `needs_static_shapes` all RoIs, and `is_positive` (n,) bool says which of them are."""

    rows: Tensor
    classes: Tensor
    is_positive: Tensor | None

    def where(self, values: Tensor, other: Tensor | float = 0.0) -> Tensor:
        """(n, ...) values of the positives, and `other` of what is not one."""
        if self.is_positive is None:
            return values
        return torch.where(self.is_positive.view(-1, *[1] * (values.dim() - 1)), values, other)
