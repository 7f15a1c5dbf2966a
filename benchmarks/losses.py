"""What PCB costs in the losses: forward and backward of three steps, on one CPU thread, beside the losses without it.

1024 RoIs of which 256 are positives of long-tailed classes, with logits as a half-trained classifier gives them. The reference is the base
loss (cross entropy of torch, EQL v2 and Seesaw of pcb/losses); "ours" is the loss with PCB acting, or in its place benchmarks/naive.py.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from harness import Figure, by_turns, main
from naive import NaiveCrossEntropy, NaiveEQLv2, NaiveSeesaw
from torch import Tensor

from pcb.losses import EQLv2Loss, PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss, SeesawLoss

ROIS, POSITIVES, CLASSES, STEPS = 1024, 256, 1230, 3


def batch(channels: int, classes: int = CLASSES, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Logits of every step (N, channels), and labels (N,): positives, then background."""
    g = torch.Generator().manual_seed(seed)
    tail = 1.0 / torch.arange(1, classes + 1) ** 0.9
    fg = torch.multinomial(tail, POSITIVES, replacement=True, generator=g)
    label = torch.cat([fg, torch.full((ROIS - POSITIVES,), classes)])
    steps = [torch.randn(ROIS, channels, generator=g) for _ in range(STEPS)]
    for z in steps:
        z[torch.arange(ROIS), label.clamp(max=channels - 1)] += 4
    return [z.requires_grad_() for z in steps], label


def train(loss, steps: list[Tensor], label: Tensor) -> None:
    """Three steps of a loss and their gradients with respect to the logits."""
    for step, z in enumerate(steps):
        z.grad = None
        value = loss(z, label, step=step)
        (sum(value.values()) if isinstance(value, dict) else value).backward()


def cross_entropy(z: Tensor, label: Tensor, step: int) -> Tensor:
    return F.cross_entropy(z, label)


def measure(quick: bool) -> list[Figure]:
    torch.set_num_threads(1)
    acting = {"start_epoch": 1, "absent": range(CLASSES)}  # the gate is open
    cases = {
        "softmax": (CLASSES + 1, cross_entropy, PCBCrossEntropyLoss(CLASSES, 0.4, **acting), NaiveCrossEntropy(CLASSES, 0.4), 2.5),
        "EQL v2": (CLASSES + 1, EQLv2Loss(CLASSES), PCBEQLv2Loss(CLASSES, 0.2, **acting), NaiveEQLv2(CLASSES, 0.2), 1.3),
        "Seesaw": (CLASSES + 2, SeesawLoss(CLASSES), PCBSeesawLoss(CLASSES, 0.05, **acting), NaiveSeesaw(CLASSES, 0.05), 1.3),
    }
    figures = []
    for name, (channels, base, ours, naive, target) in cases.items():
        steps, label = batch(channels)
        sides = {"base": base, "ours": ours, "naive": naive}
        seconds = by_turns(5 if quick else 60, **{side: partial(train, loss, steps, label) for side, loss in sides.items()})
        base, ours, naive = (1e3 * seconds[side] for side in sides)
        figures += [Figure(f"{name} + PCB beside {name}", ours, base, "ms", target),
                    Figure(f"the naive {name} + PCB beside {name}", naive, base, "ms")]
    return figures


if __name__ == "__main__":
    main("losses", measure)
