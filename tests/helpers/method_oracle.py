"""The oracle of the method's tests: the paper's equations in float64, one RoI and class at a time.

Slow and simple on purpose; it shares no code with `pcb`.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Matrix:
    """Eq. 3 and 9; `normalise` divides updated rows by their sum."""

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
        total = sum(self.m[k, y] for k in range(len(self.m)))
        return torch.stack([self.m[i, y] / total for i in range(len(self.m))])


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max().detach()).exp()
    return e / e.sum()


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def pcb_cross_entropy(
    z: Tensor, label: Tensor, matrix: Matrix, alpha: float, space: str = "full"
) -> Tensor:
    """Eq. 11, averaged over RoIs; the matrix learns first. z: (N, C+1) float64."""
    classes = len(matrix.m)
    fg = [k for k, y in enumerate(label.tolist()) if y < classes]
    matrix.update(
        torch.stack([softmax(z[k, :classes]) for k in fg]) if fg else z[:0],
        [int(label[k]) for k in fg],
    )
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


def batches(
    iterations: int, n: int, classes: int, channels: int, seed: int = 0, scale: float = 2.0
) -> list[tuple[Tensor, Tensor]]:
    """Logits (n, channels) float64 and labels (n,): about half background, long-tailed classes."""
    g = torch.Generator().manual_seed(seed)
    tail = torch.cat([1.0 / torch.arange(1, classes + 1), torch.tensor([2.0])])
    return [
        (
            scale * torch.randn(n, channels, generator=g, dtype=torch.float64),
            torch.multinomial(tail, n, replacement=True, generator=g),
        )
        for _ in range(iterations)
    ]


def value_and_grad(loss, z: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Loss (a dict is summed over its losses) and its gradient with respect to the logits."""
    z = z.clone().requires_grad_()
    value = loss(z, *args, **kwargs)
    value = sum(v for k, v in value.items() if "loss" in k) if isinstance(value, dict) else value
    (grad,) = torch.autograd.grad(value, z)
    return value.detach(), grad


class EQLv2:
    """Equalization loss v2, with PCB as released or as Eq. 15 is printed (`literal`)."""

    def __init__(self, classes: int, gamma: float = 12.0, mu: float = 0.8, a: float = 4.0):
        self.classes, self.gamma, self.mu, self.a = classes, gamma, mu, a
        self.pos, self.neg, self.first = [0.0] * classes, [0.0] * classes, True

    def weights(self, j: int) -> tuple[float, float]:
        if j == self.classes or self.first:
            return 1.0, 1.0
        g = self.pos[j] / (self.neg[j] + 1e-10)
        minus = 1 / (
            1 + torch.tensor(-self.gamma * (g - self.mu), dtype=torch.float64).exp().item()
        )
        return 1 + self.a * (1 - minus), minus

    def __call__(
        self,
        z: Tensor,
        label: Tensor,
        matrix: Matrix | None = None,
        alpha: float = 0.0,
        literal: bool = False,
    ) -> Tensor:
        labels = label.tolist()
        fg = [k for k, y in enumerate(labels) if y < self.classes]
        if matrix is not None and fg:
            matrix.update(
                torch.stack([sigmoid(z[k, : self.classes]) for k in fg]), [labels[k] for k in fg]
            )
        weights = [self.weights(j) for j in range(self.classes + 1)]
        total, pos, neg = z.sum() * 0, [0.0] * self.classes, [0.0] * self.classes
        for k, y in enumerate(labels):
            for j in range(self.classes + 1):
                onehot = float(j == y)
                soft = (
                    float(matrix.m[j, y])
                    if alpha and y < self.classes and j < self.classes
                    else onehot
                )
                t = alpha * soft + (1 - alpha) * onehot
                counted = onehot if literal else t
                plus, minus = weights[j]
                w = plus * counted + minus * (1 - counted)
                s = sigmoid(z[k, j])
                total = total - w * (t * s.log() + (1 - t) * sigmoid(-z[k, j]).log())
                if j < self.classes:
                    gradient = abs(float(s.detach()) - t) * w
                    pos[j] += gradient * counted
                    neg[j] += gradient * (1 - counted)
        self.pos = [a + b for a, b in zip(self.pos, pos, strict=True)]
        self.neg = [a + b for a, b in zip(self.neg, neg, strict=True)]
        self.first = False
        return total / len(labels)


class Seesaw:
    """Seesaw loss (Eq. 16), with PCB as released or with the factors of Eq. 17 ('class')."""

    def __init__(self, classes: int, p: float = 0.8, q: float = 2.0, eps: float = 1e-2):
        self.classes, self.p, self.q, self.eps = classes, p, q, eps
        self.counts = [0] * (classes + 1)

    def factor(self, i: int, j: int, scores: Tensor) -> float:
        mitigation = min(1.0, max(self.counts[j], 1) / max(self.counts[i], 1)) ** self.p
        return mitigation * max(1.0, float(scores[j]) / max(float(scores[i]), self.eps)) ** self.q

    def log_p(self, z: Tensor, i: int, own: int) -> Tensor:
        """log p̂_i with the factors of class `own`: i in Eq. 16 and 17, y in the released L_PCB."""
        scores = softmax(z.detach())
        shift = z.max().detach()
        terms = [
            (1.0 if j == own else self.factor(own, j, scores)) * (z[j] - shift).exp()
            for j in range(self.classes)
        ]
        return terms[i].log() - sum(terms).log()

    def __call__(
        self,
        z: Tensor,
        label: Tensor,
        matrix: Matrix | None = None,
        alpha: float = 0.0,
        factors: str = "label",
    ) -> Tensor:
        labels = label.tolist()
        for y in labels:
            self.counts[y] += 1
        fg = [k for k, y in enumerate(labels) if y < self.classes]
        if matrix is not None and fg:
            matrix.update(
                torch.stack([softmax(z[k, : self.classes]) for k in fg]), [labels[k] for k in fg]
            )
        total = z.sum() * 0
        for k, y in enumerate(labels):
            total = total - softmax(z[k, self.classes :])[int(y == self.classes)].log()
            if y == self.classes:
                continue
            logits = z[k, : self.classes]
            total = total - (1 - alpha) * self.log_p(logits, y, y)
            if alpha:
                target = matrix.posterior_column(y)
                total = total - alpha * sum(
                    target[i] * self.log_p(logits, i, y if factors == "label" else i)
                    for i in range(self.classes)
                )
        return total / len(labels)


def smoothed(z: Tensor, label: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Mean of CE on background, (1 - a) CE + a Σ_i t_i (-log p_i) over C+1 classes on positives.

    `targets` are (C, C), by label.
    """
    total = z.sum() * 0
    for k, y in enumerate(label.tolist()):
        log_p = softmax(z[k]).log()
        if y == len(targets):
            total = total - log_p[y]
        else:
            soft = sum(targets[y, i] * log_p[i] for i in range(len(targets)))
            total = total - (1 - strength) * log_p[y] - strength * soft
    return total / len(label)
