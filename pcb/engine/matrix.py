"""Eq. 3 over the proposals of a data set: how much a proposal of class i is predicted as class j, after training.

Protocol: the test-time proposals of the RPN (before any R-CNN suppression, no ground-truth boxes among them, not refined) are
matched to the ground-truth box of highest IoU, from 0.5 on; row i is the mean of p̂ (Eq. 1) over those that got class i. It is
a plain mean, another object than the moving average of training. From it come PwB and the post-hoc calibrations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from pcb.confusion import pairwise_bias
from pcb.files import atomic

IOU = 0.5


def foreground(head: nn.Module, logits: Tensor) -> Tensor:
    """p̂ of Eq. 1 in float64: (n, channels) logits of a box head -> (n, C), by the classifier's own rule or a softmax over the C classes."""
    rule = getattr(head.loss_cls, "foreground", None)
    logits = logits.double()
    return rule(logits) if rule else logits[:, : head.num_classes].softmax(dim=1)


def match(proposals: Tensor, boxes: Tensor, labels: Tensor, iou: float = IOU) -> tuple[Tensor, Tensor]:
    """Rows of the (n, 4) proposals that lie on one of the (m, 4) ground-truth boxes, and the class of each."""
    if not len(proposals) or not len(boxes):
        return labels[:0], labels[:0]
    best, which = bbox_overlaps(proposals, boxes).max(dim=1)
    rows = (best >= iou).nonzero().squeeze(1)
    return rows, labels[which[rows]]


class Sums:
    """Sums behind Eq. 3 over some images: (C, C) of p̂ by class of the ground truth, (C,) of matched proposals. float64."""

    def __init__(self, classes: int):
        self.sums, self.counts = np.zeros((classes, classes)), np.zeros(classes, np.int64)

    def add(self, labels: Tensor, probabilities: Tensor) -> None:
        """Proposals of the given classes (n,), and their p̂ (n, C)."""
        labels = labels.cpu().numpy()
        np.add.at(self.sums, labels, probabilities.double().cpu().numpy())
        np.add.at(self.counts, labels, 1)

    def save(self, path: Path) -> None:
        rows = self.counts.nonzero()[0]
        with atomic(path) as temporary:
            np.savez(temporary, rows=rows, sums=self.sums[rows], counts=self.counts[rows])

    def load(self, path: Path) -> None:
        """Add what `save` wrote."""
        with np.load(path) as found:
            self.sums[found["rows"]] += found["sums"]
            self.counts[found["rows"]] += found["counts"]

    @property
    def matrix(self) -> np.ndarray:
        """M of Eq. 3, (C, C): row = ground truth. Rows of classes without a matched proposal are zero."""
        return self.sums / np.maximum(self.counts, 1)[:, None]


def write_confusion(path: Path, total: Sums) -> None:
    """`matrix` (C, C) float32, `seen` (C,) matched proposals, and PwB three ways: `pwb` of the matrix with rows divided by their
    sums, which changes nothing for a softmax; `pwb_seen` of that without the columns of classes not seen; `pwb_raw` as it is.
    """
    matrix, seen = torch.from_numpy(total.matrix), torch.from_numpy(total.counts > 0)
    rows = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    with atomic(path) as temporary:
        np.savez(temporary, matrix=total.matrix.astype(np.float32), seen=total.counts, pwb=pairwise_bias(rows).item(),
                 pwb_seen=pairwise_bias(rows[seen][:, seen]).item(), pwb_raw=pairwise_bias(matrix).item())
