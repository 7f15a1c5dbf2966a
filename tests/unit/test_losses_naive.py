"""The PCB losses, at many classes and in float32, equal the naive ones of benchmarks/naive.py."""

from __future__ import annotations

import method_oracle as oracle
import naive
import pytest
import torch

from pcb.losses import PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss

C, N = 97, 64
ACTIVE = {"start_epoch": 1, "absent": range(C)}


@pytest.mark.parametrize(
    "ours, theirs, channels",
    [
        (PCBCrossEntropyLoss(C, 0.4, **ACTIVE), naive.NaiveCrossEntropy(C, 0.4), C + 1),
        (PCBEQLv2Loss(C, 0.2, **ACTIVE), naive.NaiveEQLv2(C, 0.2), C + 1),
        (PCBSeesawLoss(C, 0.05, **ACTIVE), naive.NaiveSeesaw(C, 0.05), C + 2),
    ],
    ids=["softmax", "eqlv2", "seesaw"],
)
def test_equal_to_the_naive_formulation(ours, theirs, channels):
    for z, label in oracle.batches(4, N, C, channels):
        for step in range(3):
            a, b = (
                oracle.value_and_grad(loss, z.float().roll(step, 0), label, step=step)
                for loss in (ours, theirs)
            )
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
            torch.testing.assert_close(
                ours.confusion.matrix, theirs.confusion.matrix, rtol=1e-5, atol=1e-7
            )
    assert len(label.unique()) > 20 and ours.confusion.matrix.any()
