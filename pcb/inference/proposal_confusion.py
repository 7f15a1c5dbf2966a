"""Eq. 3 over the proposals of a data set: how much a proposal of class i is predicted as class j, after training.

Protocol: the test-time proposals of the RPN (before any R-CNN suppression, no ground-truth boxes among them, not refined) are
matched to the ground-truth box of highest IoU, from 0.5 on; row i is the mean of p̂ (Eq. 1) over those that got class i. It is
a plain mean, another object than the moving average of training. From it come PwB and the post-hoc calibrations.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
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


def match(
    proposals: Tensor, boxes: Tensor, labels: Tensor, iou: float = IOU
) -> tuple[Tensor, Tensor]:
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

    @property
    def matrix(self) -> np.ndarray:
        """M of Eq. 3, (C, C): row = ground truth. Rows of classes without a matched proposal are zero."""
        return self.sums / np.maximum(self.counts, 1)[:, None]


class Tally:
    """The sums of a split, kept on disk part by part, so that an interrupted pass does not count an image twice or never.

    A part is a list of image ids; what was counted with another `fingerprint` does not stand.
    """

    def __init__(self, folder: str | Path, fingerprint: str, classes: int):
        self.folder, self.fingerprint, self.classes = Path(folder), fingerprint, classes

    def path(self, part: Sequence[int]) -> Path:
        return self.folder / f"images-{part[0]:012d}.npz"

    def has(self, part: Sequence[int]) -> bool:
        try:
            with np.load(self.path(part)) as found:
                return str(found["fingerprint"]) == self.fingerprint and found[
                    "images"
                ].tolist() == list(part)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def save(self, part: Sequence[int], sums: Sums) -> None:
        rows = sums.counts.nonzero()[0]
        with atomic(self.path(part)) as temporary:
            np.savez(
                temporary,
                rows=rows,
                sums=sums.sums[rows],
                counts=sums.counts[rows],
                fingerprint=self.fingerprint,
                images=part,
            )

    def total(self, parts: Sequence[Sequence[int]]) -> Sums:
        """The sums over all parts, added in their order."""
        total = Sums(self.classes)
        for part in parts:
            with np.load(self.path(part)) as found:
                total.sums[found["rows"]] += found["sums"]
                total.counts[found["rows"]] += found["counts"]
        return total


def write_confusion(path: Path, total: Sums) -> None:
    """`matrix` (C, C) float32, `seen` (C,) matched proposals, and PwB three ways: `pwb` of the matrix with rows divided by their
    sums, which changes nothing for a softmax; `pwb_seen` of that without the columns of classes not seen; `pwb_raw` as it is.
    """
    matrix, seen = torch.from_numpy(total.matrix), torch.from_numpy(total.counts > 0)
    rows = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    with atomic(path) as temporary:
        np.savez(
            temporary,
            matrix=total.matrix.astype(np.float32),
            seen=total.counts,
            pwb=pairwise_bias(rows).item(),
            pwb_seen=pairwise_bias(rows[seen][:, seen]).item(),
            pwb_raw=pairwise_bias(matrix).item(),
        )
