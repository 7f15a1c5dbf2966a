"""The soft labels of online label smoothing (Zhang et al., TIP 2021): learnt in one epoch, used in the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcb.confusion import class_sums, needs_static_shapes


class SoftLabels(nn.Module):
    """What online label smoothing learns: row y is the mean prediction, over the last epoch, for samples of class y predicted as y.

    Buffers: `labels` (C, C), the rows in use, 1/C where nothing was right; `sums`, `counts` of the epoch under way, over all ranks; the
    epoch's number. They are collected only in the epochs whose labels will be used.
    """

    def __init__(self, num_classes: int, start_epoch: int):
        super().__init__()
        self.num_classes, self.start_epoch = num_classes, start_epoch
        self.register_buffer("labels", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("epoch", torch.tensor(1))
        self.current_epoch = 1  # the epoch without a look at the device

    def set_epoch(self, epoch: int) -> None:
        """At a new epoch take over what the last one collected. Saying the same epoch twice, as after a resume, changes nothing."""
        self.current_epoch = epoch
        if epoch > self.epoch:
            rows = self.sums / self.counts.clamp(min=1)[:, None]
            self.labels.copy_(torch.where(self.counts[:, None] > 0, rows, 1 / self.num_classes))
            self.sums.zero_()
            self.counts.zero_()
            self.epoch.fill_(epoch)

    @torch.no_grad()
    def update(self, probs: Tensor, classes: Tensor) -> None:
        """(n, C) probabilities of positives and their classes (n,). A collective: all ranks must call it."""
        if self.current_epoch < self.start_epoch - 1:
            return
        right = probs.argmax(dim=1) == classes
        if needs_static_shapes(classes):
            classes = classes.where(right, self.num_classes)  # C: none
        else:
            probs, classes = probs[right], classes[right]
        present, sums, counts = class_sums(probs.to(self.sums.dtype), classes, self.num_classes)
        self.sums.index_copy_(0, present, self.sums[present] + sums)
        self.counts.index_copy_(0, present, self.counts[present] + counts)
