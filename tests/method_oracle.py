"""The equations of the paper once more, in float64, one RoI and one class at a time: what the tests hold the code against.

Slow on purpose. Nothing here is shared with `pcb`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Matrix:
    """Eq. 3 and 9: EMA rows over the classes present; `normalise` divides updated rows by their sum."""

    def __init__(self, classes: int, gamma: float, normalise: bool = True):
        self.m = torch.zeros(classes, classes, dtype=torch.float64)
        self.gamma, self.normalise = gamma, normalise

    def update(self, probs: Tensor, labels: list[int]) -> None:
        for c in sorted(set(labels)):
            mean = torch.stack([p for p, y in zip(probs, labels, strict=True) if y == c]).mean(0)
            row = self.gamma * self.m[c] + (1 - self.gamma) * mean.detach()
            self.m[c] = row / row.sum() if self.normalise else row

    def posterior_column(self, y: int) -> Tensor:
        """Eq. 5: [M̂_{i,y} for all i]."""
        return torch.stack([self.m[i, y] / sum(self.m[k, y] for k in range(len(self.m))) for i in range(len(self.m))])


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max().detach()).exp()
    return e / e.sum()


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def pcb_cross_entropy(z: Tensor, label: Tensor, matrix: Matrix, alpha: float, space: str = "full") -> Tensor:
    """Eq. 11, averaged over RoIs; the matrix learns first. z: (N, C+1) float64."""
    classes = len(matrix.m)
    fg = [k for k, y in enumerate(label.tolist()) if y < classes]
    matrix.update(torch.stack([softmax(z[k, :classes]) for k in fg]) if fg else z[:0], [int(label[k]) for k in fg])
    total = z.sum() * 0
    for k, y in enumerate(label.tolist()):
        ce = -softmax(z[k])[y].log()
        if y == classes:
            total = total + ce
            continue
        p = softmax(z[k, :classes]) if space == "fg" else softmax(z[k])
        target = matrix.posterior_column(y) if alpha else torch.zeros(classes, dtype=torch.float64)
        regularised = -sum(target[i] * p[i].log() for i in range(classes))
        total = total + alpha * regularised + (1 - alpha) * ce
    return total / len(label)


def batches(iterations: int, n: int, classes: int, channels: int, seed: int = 0, scale: float = 2.0) -> list[tuple[Tensor, Tensor]]:
    """Logits (n, channels) float64 and labels (n,); about half background, class frequencies long-tailed."""
    g = torch.Generator().manual_seed(seed)
    tail = torch.cat([1.0 / torch.arange(1, classes + 1), torch.tensor([2.0])])
    return [(scale * torch.randn(n, channels, generator=g, dtype=torch.float64), torch.multinomial(tail, n, replacement=True, generator=g))
            for _ in range(iterations)]


def value_and_grad(loss, z: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Loss (a dict is summed over its losses) and its gradient with respect to the logits."""
    z = z.clone().requires_grad_()
    value = loss(z, *args, **kwargs)
    value = sum(v for k, v in value.items() if "loss" in k) if isinstance(value, dict) else value
    (grad,) = torch.autograd.grad(value, z)
    return value.detach(), grad
