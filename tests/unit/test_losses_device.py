"""The losses never synchronise with a GPU, and need one collective per step."""

from __future__ import annotations

from contextlib import nullcontext

import method_oracle as oracle
import pytest
import torch
from loss_cases import CASES, C

import pcb.confusion
from pcb.losses import PCBCrossEntropyLoss, eqlv2, regulariser, seesaw

N = 20
PCB = {name: CASES[name] for name in ("softmax", "softmax-fg", "eqlv2", "seesaw", "ols")}
PCB["trunk"] = (
    lambda **k: PCBCrossEntropyLoss(C, 0.0, soft_labels=True, start_epoch=1, absent=range(C)),
    C + 1,
)
PCB["eqlv2-literal"] = (lambda **k: CASES["eqlv2"][0](literal=True), C + 1)


def train(name: str, batches: list) -> list:
    build, _ = PCB[name]
    loss, results = build().double(), []
    for epoch, (z, label) in enumerate(batches, 1):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        for step in range(3):
            rolled, weight = z.roll(step, 0), torch.linspace(0.5, 1, len(label))
            results += oracle.value_and_grad(loss, rolled, label, weight, avg_factor=7.0, step=step)
    return results + list(loss.buffers())


def inputs(channels: int) -> list:
    batches = oracle.batches(4, N, C, channels)
    batches[1][1][:] = C  # background alone
    batches[2][1][:] = C - 1  # positives alone, of the last class
    return batches


@pytest.mark.parametrize("name", PCB)
def test_static_shapes_change_no_result(name, monkeypatch):
    compact = train(name, inputs(PCB[name][1]))
    monkeypatch.setattr(pcb.confusion, "SYNC_FREE_DEVICES", set())
    torch.testing.assert_close(train(name, inputs(PCB[name][1])), compact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("name", PCB)
def test_no_value_is_read(name, active, monkeypatch):
    """The device "meta" has no values, so anything that would synchronise a GPU is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # "meta" has none
    build, channels = PCB[name]
    loss = build().to("meta")
    if hasattr(loss, "pcb"):
        loss.pcb.all_seen = active  # read once, when PCB becomes active
        loss.pcb.start_epoch = 1 if active else 17
    label = torch.zeros(N, dtype=torch.long, device="meta")
    weight, average = torch.ones(N, device="meta"), torch.ones((), device="meta")
    for step in range(3):
        z = torch.zeros(N, channels, device="meta", requires_grad=True)
        value = loss(z, label, weight, avg_factor=average, step=step)
        (sum(value.values()) if isinstance(value, dict) else value).backward()
        assert z.grad.shape == z.shape


def test_reading_a_value_of_a_meta_tensor_is_an_error():
    with pytest.raises(RuntimeError):
        torch.zeros(3, device="meta")[torch.ones(3, dtype=torch.bool, device="meta")].sum().item()


@pytest.mark.parametrize(
    "label", [torch.arange(N) % (C + 1), torch.full((N,), C)], ids=["positives", "none"]
)
@pytest.mark.parametrize("name, calls", [("softmax", 1), ("seesaw", 1), ("eqlv2", 2)])
def test_a_step_needs_one_collective(name, calls, label, monkeypatch):
    """EQL v2 needs a second one, since its gradients depend on the targets of the first."""
    build, channels = PCB[name]
    made = []

    def count(tensor, *more):
        made.append(1 + len(more))
        return tensor

    for module in (pcb.confusion, eqlv2, seesaw, regulariser):
        monkeypatch.setattr(module, "all_sum", count)
    monkeypatch.setattr(pcb.confusion, "world_size", lambda: 2)
    loss = build()
    for step in range(3):
        loss(torch.randn(N, channels), label, step=step)
        assert len(made) == calls * (step + 1)
