"""The interface between a classification loss and MMDetection's box head.

To add a loss, subclass `ClassifierLoss`, write `compute` and, if scores are not a softmax over C+1
logits, `get_activation`; then add a line to pcb/registry.py. See docs/adding-a-row.md.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from pcb.confusion import KeepsPrecision, needs_static_shapes
from pcb.errors import UserError


class Reduce(Protocol):
    """Weights per-RoI values (n,) and reduces them to the loss.

    `of` (n,) int64 names the rows of the batch that the values belong to; default: all.
    """

    def __call__(self, loss: Tensor, of: Tensor | slice = ...) -> Tensor:
        """Return the weighted sum or mean, or with reduction 'none' the weighted values."""
        ...


class ClassifierLoss(KeepsPrecision):
    """Base of the classification losses of an R-CNN head with C foreground classes.

    Background is label C. Inside autocast, and in a model in float16, the loss and its state remain
    in float32, since moving averages and small probabilities do not survive float16.

    Args:
        num_classes: C.
        loss_weight: Factor on the loss.
        reduction: 'mean' (sum of the RoIs' losses / `avg_factor`, as in MMDetection), 'sum' or
            'none'.

    Attributes:
        box_head: Overrides of the box head's config in a training with this loss.
        mask_head: Overrides of the mask head's config, in every stage of an experiment with this
            loss.
        normalise_logits: Whether logits need a LayerNorm before a RoI head feeds them back.
        score_kind: How test-time scores follow from logits, which NorCal needs to know: 'softmax'
            over C+1 logits, 'seesaw' (softmax over C classes times P(object)) or 'sigmoid'.
        extra_channels: Number of logits besides those of the C classes.
        takes_step: Whether our RoI heads pass `step`.
        custom_cls_channels: Read by MMDetection: this loss defines the number of logits and the
            scores.
        custom_activation: Read by MMDetection: accuracy is not the argmax over C+1 logits.
    """

    box_head: ClassVar[dict] = {}
    mask_head: ClassVar[dict] = {}
    normalise_logits: ClassVar[bool] = False
    score_kind: ClassVar[str] = "softmax"
    takes_step: ClassVar[bool] = True
    custom_cls_channels: ClassVar[bool] = True
    custom_activation: ClassVar[bool] = False
    extra_channels: int = 1

    def __init__(self, num_classes: int, loss_weight: float = 1.0, reduction: str = "mean"):
        super().__init__()
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.reduction = reduction

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the number of logits; `num_classes` is the box head's and must equal ours."""
        if num_classes != self.num_classes:
            raise UserError(
                f"the box head has {num_classes} classes, its {type(self).__name__} was built for "
                f"{self.num_classes}",
                "give both the number of classes of the data set, without background",
            )
        return num_classes + self.extra_channels

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Compute test-time scores (N, C+1), background last, from logits (N, channels)."""
        return cls_score.softmax(dim=-1)

    def foreground(self, cls_score: Tensor) -> Tensor:
        """Compute p̂ (Eq. 1), the rows of a confusion matrix: a softmax over the C class logits.

        Args:
            cls_score: (N, channels) logits.

        Returns:
            (N, C) probabilities.
        """
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
        """Compute the loss of N RoIs.

        Args:
            cls_score: (N, channels) logits.
            label: (N,) int64: 0 .. C-1 foreground, C background.
            weight: (N,) weight of each RoI.
            avg_factor: What the sum is divided by; None: the number of RoIs.
            step: 0-based step of a stepped RoI head; None: the only one, which counts as the last.
            reduction_override: 'none', 'mean' or 'sum' in place of the constructor's.

        Returns:
            A scalar, or a dict of scalars.

        Raises:
            UserError: A label outside 0 .. C; see `require_labels`.
        """
        self.require_labels(label)
        reduction = reduction_override or self.reduction

        def reduce(loss: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
            loss = loss if weight is None else loss * weight[of].to(loss.dtype)
            if reduction != "mean":
                return self.loss_weight * (loss.sum() if reduction == "sum" else loss)
            if avg_factor is None:
                return self.loss_weight * (loss.sum() / max(len(label), 1))
            return self.loss_weight * (loss.sum() / (avg_factor + torch.finfo(torch.float32).eps))

        with torch.autocast(cls_score.device.type, enabled=False):
            logits = cls_score if cls_score.dtype == torch.float64 else cls_score.float()
            return self.compute(logits, label, reduce, step)

    def require_labels(self, label: Tensor) -> None:
        """Raise an error where one of the labels (N,) is not within 0 .. C.

        torch's cross entropy ignores -100, soft targets do not: a training would stop only when PCB
        starts. On a GPU, where reading labels would synchronise, the error is that of an index out
        of bounds.
        """
        if needs_static_shapes(label):
            label.new_empty(self.num_classes + 1).gather(0, label)
        elif len(label):
            smallest, largest = map(int, label.aminmax())
            if smallest < 0 or largest > self.num_classes:
                raise UserError(
                    f"{type(self).__name__} of {self.num_classes} classes got the label "
                    f"{smallest if smallest < 0 else largest}",
                    f"give 0 .. {self.num_classes - 1}, {self.num_classes} for background, and "
                    "leave out RoIs to ignore",
                )

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> Tensor | dict[str, Tensor]:
        """Compute the loss itself; for subclasses.

        Args:
            logits: (N, channels) float32 or float64.
            label: (N,) int64: 0 .. C-1 foreground, C background.
            reduce: Weights and averages per-RoI values.
            step: As in `forward`.

        Returns:
            What `forward` returns.
        """
        raise NotImplementedError

    def positives(self, label: Tensor) -> Positives:
        """Return the foreground RoIs among labels (N,)."""
        fg = (label >= 0) & (label < self.num_classes)
        if needs_static_shapes(label):
            rows = torch.arange(len(label), device=label.device)
            return Positives(rows, label.where(fg, self.num_classes), fg)
        rows = fg.nonzero().squeeze(1)
        return Positives(rows, label[rows], None)


class Positives(NamedTuple):
    """The foreground RoIs of a batch.

    Where `needs_static_shapes` these are all N RoIs, and `is_positive` marks those that count.

    Attributes:
        rows: (n,) their rows in the batch.
        classes: (n,) their classes; C where `is_positive` is False.
        is_positive: (n,) bool, or None where all of them are.
    """

    rows: Tensor
    classes: Tensor
    is_positive: Tensor | None

    def where(self, values: Tensor, other: Tensor | float = 0.0) -> Tensor:
        """Return the `values` (n, ...) of positives, and `other` for all other rows."""
        if self.is_positive is None:
            return values
        shape = self.is_positive.shape + (1,) * (values.dim() - 1)
        return torch.where(self.is_positive.view(shape), values, other)
