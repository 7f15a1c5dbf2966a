"""What PCB costs in the losses: forward and backward of three steps, on one CPU thread, beside the losses without it.

The RoIs of two LVIS images, as one GPU has them: 1024, of which 256 are positives, of 20 objects in 6 classes (the mean of a hundred images
of LVIS val is 9.8 objects in 3.0 classes), with logits as a half-trained classifier gives them. Work on the matrix is
proportional to the classes present, so the other extreme is shown too: each positive's class is drawn by itself.

The reference is the base loss (cross entropy of torch, EQL v2 and Seesaw of pcb/losses); "ours" is the loss with PCB acting, or in its
place benchmarks/naive.py. Seconds are of the CPU, so that a busy machine matters less.
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from harness import Figure, by_turns, main
from naive import NaiveCrossEntropy, NaiveEQLv2, NaiveSeesaw
from torch import Tensor

from pcb.losses import EQLv2Loss, PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss, SeesawLoss

ROIS, POSITIVES, OBJECTS, PRESENT, CLASSES, STEPS = 1024, 256, 20, 6, 1230, 3


def draw(two_images: bool, classes: int, g: torch.Generator) -> Tensor:
    """Classes of the positives, by a power law: of two images, or each for itself."""
    tail = 1.0 / torch.arange(1, classes + 1) ** 0.9
    if not two_images:
        return torch.multinomial(tail, POSITIVES, replacement=True, generator=g)
    present = torch.multinomial(tail, PRESENT, generator=g)
    objects = torch.cat(
        [present, present[torch.randint(PRESENT, (OBJECTS - PRESENT,), generator=g)]]
    )
    return objects[torch.randint(OBJECTS, (POSITIVES,), generator=g)]


def batch(
    channels: int, two_images: bool = True, classes: int = CLASSES, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Logits of every step (N, channels), and labels (N,): positives, then background."""
    g = torch.Generator().manual_seed(seed)
    label = torch.cat([draw(two_images, classes, g), torch.full((ROIS - POSITIVES,), classes)])
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
        "softmax": (
            CLASSES + 1,
            cross_entropy,
            PCBCrossEntropyLoss(CLASSES, 0.4, **acting),
            NaiveCrossEntropy(CLASSES, 0.4),
            2.5,
        ),
        "EQL v2": (
            CLASSES + 1,
            EQLv2Loss(CLASSES),
            PCBEQLv2Loss(CLASSES, 0.2, **acting),
            NaiveEQLv2(CLASSES, 0.2),
            1.3,
        ),
        "Seesaw": (
            CLASSES + 2,
            SeesawLoss(CLASSES),
            PCBSeesawLoss(CLASSES, 0.05, **acting),
            NaiveSeesaw(CLASSES, 0.05),
            1.3,
        ),
    }
    figures = []
    for name, (channels, base, ours, naive, target) in cases.items():
        for two_images in (True, False):
            steps, label = batch(channels, two_images)
            sides = {"base": base, "ours": ours, "naive": naive}
            seconds = by_turns(
                5 if quick else 60,
                time.process_time,
                **{side: partial(train, loss, steps, label) for side, loss in sides.items()},
            )
            base_ms, ours_ms, naive_ms = (1e3 * seconds[side] for side in sides)
            present = f"{len(label.unique()) - 1} classes present"
            figures += [
                Figure(
                    f"{name} + PCB, {present}",
                    ours_ms,
                    base_ms,
                    "ms",
                    target if two_images else None,
                ),
                Figure(f"naive {name} + PCB, {present}", naive_ms, base_ms, "ms"),
            ]
    return figures


if __name__ == "__main__":
    main("losses", measure)
