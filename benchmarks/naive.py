"""The naive formulation of PCB: the reference of the benchmarks, and an oracle of the tests.

As in the paper and its released code: a dense (C, C) scatter, sums over ranks, copies of the matrix
and a normalisation of all its columns at every step; autograd differentiates each term of a loss.
PCB is active from the first call on. Results equal those of pcb/losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcb.distributed import all_sum


class NaiveMatrix(nn.Module):
    """The confusion matrix of Eq. 3, 5 and 9, each over all C² entries."""

    def __init__(self, num_classes: int, momentum: float = 0.99, normalise: bool = True):
        super().__init__()
        self.num_classes, self.momentum, self.normalise = num_classes, momentum, normalise
        self.register_buffer("matrix", torch.zeros(num_classes, num_classes))

    @torch.no_grad()
    def update(self, probs: Tensor, labels: Tensor) -> None:
        """Apply Eq. 9 with probabilities (n, C) of positives and their classes (n,)."""
        index, ones = labels[:, None].expand_as(probs), torch.ones_like(labels, dtype=probs.dtype)
        sums = torch.zeros_like(self.matrix).scatter_add_(0, index, probs)
        counts = sums.new_zeros(self.num_classes).scatter_add_(0, labels, ones)
        all_sum(sums)
        all_sum(counts)
        mean = sums / counts.clamp(min=1)[:, None]
        matrix = self.matrix.clone()
        present = counts > 0
        matrix[present] = self.momentum * matrix[present] + (1 - self.momentum) * mean[present]
        if self.normalise:
            matrix[present] = matrix[present] / matrix[present].sum(dim=1, keepdim=True)
        self.matrix.copy_(matrix)

    @torch.no_grad()
    def columns(self, labels: Tensor) -> Tensor:
        """Return the columns (n, C) of labels (n,): of M̂, or without normalisation of M."""
        matrix = self.matrix.clone()
        if self.normalise:
            tiny = torch.finfo(matrix.dtype).tiny
            matrix = matrix / matrix.sum(dim=0, keepdim=True).clamp(min=tiny)
        return matrix[:, labels].t()


class NaivePCB(nn.Module):
    """Base of the three losses: the matrix and α_r."""

    normalise = True

    def __init__(self, num_classes: int, alpha: float, momentum: float = 0.99, num_steps: int = 3):
        super().__init__()
        self.num_classes, self.alpha, self.num_steps = num_classes, alpha, num_steps
        self.confusion = NaiveMatrix(num_classes, momentum, self.normalise)

    def alpha_at(self, step: int) -> float:
        """Return α_r of the 0-based step."""
        return self.alpha * step / (self.num_steps - 1)


class NaiveCrossEntropy(NaivePCB):
    """Cross entropy on background, mixed with soft cross entropy on positives (Eq. 10, 11)."""

    def forward(self, z: Tensor, label: Tensor, step: int) -> Tensor:
        """Compute the mean loss of logits (N, channels) and labels (N,)."""
        fg, alpha = label < self.num_classes, self.alpha_at(step)
        self.confusion.update(z.detach()[fg][:, : self.num_classes].softmax(dim=1), label[fg])
        target = F.pad(self.confusion.columns(label[fg]), (0, 1))
        background = F.cross_entropy(z[~fg], label[~fg], reduction="sum")
        hard = F.cross_entropy(z[fg], label[fg], reduction="sum")
        soft = -(target * F.log_softmax(z[fg], dim=1)).sum()
        return (background + (1 - alpha) * hard + alpha * soft) / len(label)


class NaiveEQLv2(NaivePCB):
    """EQL v2 with the targets α_r M[:, y] + (1 - α_r) onehot."""

    normalise = False

    def __init__(self, num_classes: int, alpha: float, **kwargs):
        super().__init__(num_classes, alpha, **kwargs)
        self.register_buffer("pos", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("neg", torch.zeros(num_classes, dtype=torch.float64))

    def forward(self, z: Tensor, label: Tensor, step: int) -> Tensor:
        """Compute the mean loss of logits (N, channels) and labels (N,)."""
        fg, alpha = label < self.num_classes, self.alpha_at(step)
        self.confusion.update(z.detach()[fg][:, : self.num_classes].sigmoid(), label[fg])
        target = F.one_hot(label, self.num_classes + 1).to(z.dtype)
        soft = F.pad(self.confusion.columns(label[fg]), (0, 1))
        target[fg] = alpha * soft + (1 - alpha) * target[fg]
        ratio = torch.where(self.pos + self.neg > 0, self.pos / (self.neg + 1e-10), 100.0)
        minus = F.pad(1 / (1 + torch.exp(-12 * (ratio - 0.8))), (0, 1), value=1.0)
        plus = 1 + 4 * (1 - minus)
        weight = (plus * target + minus * (1 - target)).to(z.dtype)
        loss = (weight * F.binary_cross_entropy_with_logits(z, target, reduction="none")).sum()
        gradient = ((z.detach().sigmoid() - target).abs() * weight)[:, : self.num_classes]
        target = target[:, : self.num_classes]
        self.pos += all_sum((gradient * target).sum(dim=0, dtype=torch.float64))
        self.neg += all_sum((gradient * (1 - target)).sum(dim=0, dtype=torch.float64))
        return loss / len(label)


class NaiveSeesaw(NaivePCB):
    """Seesaw with PCB on the same scaled logits (Eq. 18 as released), and objectness."""

    def __init__(self, num_classes: int, alpha: float, **kwargs):
        super().__init__(num_classes, alpha, **kwargs)
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    def forward(self, z: Tensor, label: Tensor, step: int) -> Tensor:
        """Compute the mean loss of logits (N, channels) and labels (N,)."""
        fg, alpha = label < self.num_classes, self.alpha_at(step)
        counts = F.one_hot(label, self.num_classes + 1).sum(dim=0)
        self.cum_samples += all_sum(counts.to(self.cum_samples.dtype))
        objectness = F.cross_entropy(z[:, -2:], (~fg).long(), reduction="sum")
        classes, logits = label[fg], z[fg][:, : self.num_classes]
        scores = logits.detach().softmax(dim=1)
        self.confusion.update(scores, classes)
        seen = self.cum_samples[:-1].clamp(min=1)
        mitigation = (seen[None, :] / seen[classes][:, None]).clamp(max=1) ** 0.8
        own = scores.gather(1, classes[:, None]).clamp(min=1e-2)
        compensation = (scores / own).clamp(min=1) ** 2
        factors = (mitigation * compensation).scatter(1, classes[:, None], 1.0)
        logits = logits + factors.log()
        hard = F.cross_entropy(logits, classes, reduction="sum")
        soft = -(self.confusion.columns(classes) * F.log_softmax(logits, dim=1)).sum()
        return (objectness + (1 - alpha) * hard + alpha * soft) / len(label)
