"""The soft labels of online label smoothing (Zhang et al., TIP 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcb.confusion import KeepsPrecision, class_sums, needs_static_shapes


class SoftLabels(KeepsPrecision):
    """Soft labels that are collected in one epoch and used in the next.

    Row y is the mean prediction, over the last epoch and all ranks, for samples of class y that
    were predicted as y. They are collected only in the epochs whose labels will be used.

    Args:
        num_classes: C.
        start_epoch: First 1-based epoch in which the labels are used.

    Attributes:
        labels: Buffer (C, C), the rows in use; 1/C where no prediction was correct.
        sums: Buffer (C, C), sums of the current epoch.
        counts: Buffer (C,) int64, counts of the current epoch.
        epoch: Buffer (), the 1-based epoch that `sums` and `counts` belong to.
        current_epoch: The same number on the host, so that reading it does not synchronise.
    """

    labels: Tensor
    sums: Tensor
    counts: Tensor
    epoch: Tensor

    def __init__(self, num_classes: int, start_epoch: int):
        super().__init__()
        self.num_classes, self.start_epoch = num_classes, start_epoch
        self.register_buffer("labels", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("epoch", torch.tensor(1))
        self.current_epoch = 1

    @property
    def in_use(self) -> bool:
        """Whether the losses of the current epoch use the labels."""
        return self.current_epoch >= self.start_epoch

    def set_epoch(self, epoch: int) -> None:
        """Start the 1-based `epoch`: the labels collected in the last one come into use.

        Setting the same epoch again, as after a resume, changes nothing.
        """
        self.current_epoch = epoch
        if epoch > self.epoch:
            rows = self.sums / self.counts.clamp(min=1)[:, None]
            self.labels.copy_(torch.where(self.counts[:, None] > 0, rows, 1 / self.num_classes))
            self.sums.zero_()
            self.counts.zero_()
            self.epoch.fill_(epoch)

    @torch.no_grad()
    def update(self, probs: Tensor, classes: Tensor) -> None:
        """Collect the correct ones among the predictions of a batch.

        A collective: every rank must call it.

        Args:
            probs: (n, C) foreground probabilities of positives.
            classes: (n,) int64, their classes; C for "none".
        """
        if self.current_epoch < self.start_epoch - 1:
            return
        correct = probs.argmax(dim=1) == classes
        if needs_static_shapes(classes):
            classes = classes.where(correct, self.num_classes)
        else:
            probs, classes = probs[correct], classes[correct]
        present, sums, counts = class_sums(probs.to(self.sums.dtype), classes, self.num_classes)
        self.sums.index_copy_(0, present, self.sums[present] + sums)
        self.counts.index_copy_(0, present, self.counts[present] + counts)

    def rows(self, classes: Tensor) -> Tensor:
        """Return the labels in use (n, C) of classes (n,); for the class C, "none", any row."""
        return self.labels.index_select(0, classes.clamp(max=self.num_classes - 1))
