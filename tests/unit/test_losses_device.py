"""What the losses ask of a GPU and of other ranks: never a value in the middle of a step, and one collective a step."""

from __future__ import annotations

from contextlib import nullcontext

import method_oracle as oracle
import pytest
import torch
from test_losses_base import EVERY, C, N

import pcb.confusion
from pcb.losses import PCBCrossEntropyLoss, eqlv2, regulariser, seesaw

PCB = {name: EVERY[name] for name in ("softmax", "softmax-fg", "eqlv2", "seesaw", "ols")}
PCB["trunk"] = (
    lambda **k: PCBCrossEntropyLoss(C, 0.0, soft_labels=True, start_epoch=1, absent=range(C)),
    C + 1,
)
PCB["eqlv2-literal"] = (lambda **k: EVERY["eqlv2"][0](literal=True), C + 1)


def train(name: str, batches: list) -> list:
    build, _ = PCB[name]
    loss, seen = build().double(), []
    for epoch, (z, label) in enumerate(batches, 1):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        for step in range(3):
            seen += oracle.value_and_grad(
                loss,
                z.roll(step, 0),
                label,
                torch.linspace(0.5, 1, len(label)),
                avg_factor=7.0,
                step=step,
            )
    return seen + list(loss.buffers())


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


@pytest.mark.parametrize("acting", [True, False])
@pytest.mark.parametrize("name", PCB)
def test_no_value_is_asked_for(name, acting, monkeypatch):
    """Tensors of the device "meta" have no values: whatever would wait for one on a GPU is an error there, forward and backward."""
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # which that device lacks
    build, channels = PCB[name]
    loss = build().to("meta")
    if hasattr(loss, "pcb"):
        loss.pcb.all_seen = acting  # found out once, when the gate opens
        loss.pcb.start_epoch = 1 if acting else 17
    label = torch.zeros(N, dtype=torch.long, device="meta")
    for step in range(3):
        z = torch.zeros(N, channels, device="meta", requires_grad=True)
        value = loss(
            z,
            label,
            torch.ones(N, device="meta"),
            avg_factor=torch.ones((), device="meta"),
            step=step,
        )
        (sum(value.values()) if isinstance(value, dict) else value).backward()
        assert z.grad.shape == z.shape


def test_meta_tensors_do_refuse_values():
    with pytest.raises(RuntimeError):
        torch.zeros(3, device="meta")[torch.ones(3, dtype=torch.bool, device="meta")].sum().item()


@pytest.mark.parametrize(
    "label", [torch.arange(N) % (C + 1), torch.full((N,), C)], ids=["positives", "none"]
)
@pytest.mark.parametrize("name, calls", [("softmax", 1), ("seesaw", 1), ("eqlv2", 2)])
def test_one_collective_a_step(name, calls, label, monkeypatch):
    """EQL v2 needs a second one: which gradients it collects depends on the targets that the first one completes."""
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
