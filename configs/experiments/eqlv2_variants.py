"""Variants of EQL v2 with PCB, for configs/experiments/eqlv2.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pcb.losses.eqlv2 import PCBEQLv2Loss
from pcb.losses.regulariser import Regulariser


class TargetRegulariser(Regulariser):
    """`Regulariser` of EQL v2 with a choice of soft targets, see `EQLv2Variant`."""

    targets = "raw"

    def soft_targets(self, labels: Tensor) -> Tensor:
        """Return the soft targets (n, C) of positives with labels (n,)."""
        columns = self.confusion.columns(labels, posterior=self.targets == "posterior")
        if self.targets == "full":
            columns = columns.scatter(1, labels[:, None], torch.ones_like(columns[:, :1]))
        return columns


class EQLv2Variant(PCBEQLv2Loss):
    """EQL v2 with PCB and other soft targets than column y of M.

    Args:
        num_classes: C.
        alpha: See `PCBEQLv2Loss`.
        momentum: See `PCBEQLv2Loss`.
        num_steps: See `PCBEQLv2Loss`.
        start_epoch: See `PCBEQLv2Loss`.
        targets: 'raw' (the paper's): column y of M. 'posterior': that column divided by its sum, as
            with softmax (Eq. 5). 'full': column y of M, but 1 for the label itself, so that PCB
            only adds positives and takes nothing from the label.
        **pcb: Further arguments of `Regulariser`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.2,
        momentum: float | Sequence[float] = 0.99,
        num_steps: int = 3,
        start_epoch: int = 17,
        *,
        targets: str = "raw",
        **pcb,
    ):
        super().__init__(num_classes, alpha, momentum, num_steps, start_epoch, **pcb)
        self.pcb = TargetRegulariser(
            num_classes, alpha, momentum, num_steps, start_epoch, posterior=False, **pcb
        )
        self.pcb.targets = targets


class HighPriorEQLv2(EQLv2Variant):
    """The same; sigmoids start at 1/60, one of C classes, as 0.001 is about one of LVIS's 1,230."""

    box_head: ClassVar[dict] = {
        "init_cfg": [
            {"type": "Normal", "std": 0.01, "bias": -4.08, "override": {"name": "fc_cls"}},
            *PCBEQLv2Loss.box_head["init_cfg"][1:],
        ]
    }
