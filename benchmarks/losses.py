"""The cost of PCB in the losses: forward and backward of three steps, beside the base losses.

The RoIs of two LVIS images, as one GPU has them: 1024, of which 256 are positives, of 20 objects in
6 classes (the mean of 100 images of LVIS val is 9.8 objects in 3.0 classes), with logits like those
of a half-trained classifier. Work on the matrix is proportional to the classes present, so the
other extreme is measured too: the class of each positive is drawn independently.

The reference is the base loss (torch's cross entropy, EQL v2 and Seesaw of pcb/losses); "ours" is
the loss with PCB active, "naive" that of benchmarks/naive.py. One CPU thread, in CPU time, so that
a busy machine matters less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from harness import Figure, by_turns, main
from naive import NaiveCrossEntropy, NaiveEQLv2, NaiveSeesaw
from torch import Tensor

from pcb.losses import EQLv2Loss, PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss, SeesawLoss

ROIS, POSITIVES, OBJECTS, PRESENT, CLASSES, STEPS = 1024, 256, 20, 6, 1230, 3


def draw(two_images: bool, classes: int, g: torch.Generator) -> Tensor:
    """Draw the classes of the positives by a power law: of two images, or independently."""
    tail = 1.0 / torch.arange(1, classes + 1) ** 0.9
    if not two_images:
        return torch.multinomial(tail, POSITIVES, replacement=True, generator=g)
    present = torch.multinomial(tail, PRESENT, generator=g)
    repeated = present[torch.randint(PRESENT, (OBJECTS - PRESENT,), generator=g)]
    objects = torch.cat([present, repeated])
    return objects[torch.randint(OBJECTS, (POSITIVES,), generator=g)]


def batch(
    channels: int, two_images: bool = True, classes: int = CLASSES, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Make logits (N, channels) of every step, and labels (N,): positives, then background."""
    g = torch.Generator().manual_seed(seed)
    label = torch.cat([draw(two_images, classes, g), torch.full((ROIS - POSITIVES,), classes)])
    steps = [torch.randn(ROIS, channels, generator=g) for _ in range(STEPS)]
    for z in steps:
        z[torch.arange(ROIS), label.clamp(max=channels - 1)] += 4
    return [z.requires_grad_() for z in steps], label


def train(loss, steps: list[Tensor], label: Tensor) -> None:
    """Compute three steps of a loss and their gradients with respect to the logits."""
    for step, z in enumerate(steps):
        z.grad = None
        value = loss(z, label, step=step)
        (sum(value.values()) if isinstance(value, dict) else value).backward()


def cross_entropy(z: Tensor, label: Tensor, step: int) -> Tensor:
    """Compute torch's cross entropy; `step` has no effect."""
    return F.cross_entropy(z, label)


@dataclass
class Case:
    """A base loss, with PCB and with the naive PCB.

    Attributes:
        channels: Number of logits.
        target: Most that ours may cost, as a multiple of the base loss, on two images.
    """

    channels: int
    base: Callable
    ours: Callable
    naive: Callable
    target: float


def cases() -> dict[str, Case]:
    """Build the losses, with PCB active from the first call on."""
    active = {"start_epoch": 1, "absent": range(CLASSES)}
    softmax = PCBCrossEntropyLoss(CLASSES, 0.4, **active)
    eqlv2 = PCBEQLv2Loss(CLASSES, 0.2, **active)
    seesaw = PCBSeesawLoss(CLASSES, 0.05, **active)
    return {
        "softmax": Case(CLASSES + 1, cross_entropy, softmax, NaiveCrossEntropy(CLASSES, 0.4), 2.5),
        "EQL v2": Case(CLASSES + 1, EQLv2Loss(CLASSES), eqlv2, NaiveEQLv2(CLASSES, 0.2), 1.3),
        "Seesaw": Case(CLASSES + 2, SeesawLoss(CLASSES), seesaw, NaiveSeesaw(CLASSES, 0.05), 1.3),
    }


def measure(quick: bool) -> list[Figure]:
    """Time every loss on both kinds of batches."""
    torch.set_num_threads(1)
    figures = []
    for name, case in cases().items():
        for two_images in (True, False):
            steps, label = batch(case.channels, two_images)
            seconds = by_turns(
                5 if quick else 60,
                time.process_time,
                base=partial(train, case.base, steps, label),
                ours=partial(train, case.ours, steps, label),
                naive=partial(train, case.naive, steps, label),
            )
            base, ours, naive = (1e3 * seconds[side] for side in ("base", "ours", "naive"))
            what = f"{name} + PCB, {len(label.unique()) - 1} classes present"
            target = case.target if two_images else None
            figures.append(Figure(what, ours, base, "ms", target))
            figures.append(Figure(f"naive {what}", naive, base, "ms"))
    return figures


if __name__ == "__main__":
    main("losses", measure)
