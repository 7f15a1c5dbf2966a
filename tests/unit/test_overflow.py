"""One overflow in float16 must not stay in what a training keeps, nor in its checkpoints."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import method_oracle as oracle
import pytest
import ranks
import torch
from loss_cases import CASES, C

import pcb.confusion
from pcb.confusion import ConfusionMatrix
from pcb.errors import UserError
from pcb.heads.loce import FeatureMemory
from pcb.training import hooks
from pcb.training.hooks import FiniteLossHook, SaveHook, require_finite

N, SPOILED = 18, 1  # the iteration with an overflow
KEEPS_STATE = [name for name in CASES if name not in ("ls", "bags")]


def train(name: str, spoil=None, rank: int = 0, world: int = 1) -> tuple[list, dict]:
    """Loss of each iteration and final state; `spoil` changes the logits of one iteration."""
    build, channels = CASES[name]
    loss, values = build(), []
    for i, (z, label) in enumerate(oracle.batches(4, N, C, channels)):
        z = z.float()
        if spoil and i == SPOILED:
            z = spoil(z, label)
        z, label = z[rank::world], label[rank::world]
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(i + 1)
        for step in range(3):
            if name == "loce":
                fg = label < C
                scores = z.softmax(1)[fg].gather(1, label[fg, None]).squeeze(1)
                loss.update_scores(scores, label[fg])
            value = loss(z, label, step=step)
            total = sum(value.values()) if isinstance(value, dict) else value
        values.append(float(total))
    return values, loss.state_dict()


def overflow(z: torch.Tensor, label: torch.Tensor, value: float = float("nan")) -> torch.Tensor:
    """The logits of one positive RoI overflow, or follow from features that did."""
    z = z.clone()
    z[int((label < C).nonzero()[0])] = value
    return z


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static shapes"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", KEEPS_STATE)
def test_statistics_stay_finite(name, value, static, monkeypatch):
    if static:
        monkeypatch.setattr(pcb.confusion, "SYNC_FREE_DEVICES", set())
    values, state = train(name, partial(overflow, value=value))
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    later = torch.tensor(values[SPOILED + 1 :])
    assert later.isfinite().all()
    clean, _ = train(name)
    torch.testing.assert_close(later, torch.tensor(clean[SPOILED + 1 :]), rtol=0.2, atol=0.1)


def states_of_ranks(rank: int, world: int) -> dict:
    return {name: train(name, overflow, rank, world)[1] for name in KEEPS_STATE}


def test_ranks_agree_on_what_they_leave_out(tmp_path):
    """The overflow is on one rank only."""
    one, other = ranks.run(states_of_ranks, 2, tmp_path)
    for name in KEEPS_STATE:
        for key, value in one[name].items():
            assert not value.is_floating_point() or value.isfinite().all()
            assert torch.equal(value, other[name][key]), (name, key)


def test_a_class_with_an_overflow_counts_as_absent():
    matrix, reference = ConfusionMatrix(3, 0.9), ConfusionMatrix(3, 0.9)
    probs, labels = torch.full((4, 3), 1 / 3), torch.tensor([0, 1, 1, 2])
    for m in (matrix, reference):
        m.update(torch.eye(3)[labels], labels)
    spoiled = probs.clone()
    spoiled[1] = float("nan")
    matrix.update(spoiled, labels)
    reference.update(probs[[0, 3]], labels[[0, 3]])
    assert torch.equal(matrix.bank, reference.bank) and torch.equal(matrix.seen, reference.seen)


def test_loce_stores_no_feature_with_an_overflow():
    memory = FeatureMemory(3, 4, (2, 1, 1))
    features = torch.arange(6.0).view(3, 2, 1, 1)
    features[1, 0] = float("inf")
    memory.write(features, torch.zeros(3, 4), torch.tensor([1, 1, 2]))
    assert memory.written.tolist() == [0, 1, 1] and memory.features.isfinite().all()


class FakeRunner(SimpleNamespace):
    """The parts of a runner that the hooks read."""

    def __init__(self, scale=None):
        wrapper = SimpleNamespace()
        if scale:
            wrapper.loss_scaler = SimpleNamespace(get_scale=lambda: scale)
        cfg = SimpleNamespace(meta=SimpleNamespace(run="RUN"))
        super().__init__(iter=0, unchecked=[], overflows=0, optim_wrapper=wrapper, cfg=cfg)

    def iterate(self, hook, *losses):
        for loss in losses:
            hook.after_train_iter(self, 0, outputs={"loss": torch.tensor(loss)})
            self.iter += 1
            hook.between_iterations(self)


INF, NAN = float("inf"), float("nan")


def test_without_a_loss_scale_each_iteration_must_be_finite_whenever_it_is_read():
    runner, hook = FakeRunner(), FiniteLossHook(interval=20)
    with pytest.raises(UserError, match=r"not finite at iteration 3 "):
        runner.iterate(hook, 1.0, 1.0, NAN, *[1.0] * 17)


def test_a_loss_scale_forgives_single_overflows():
    """Also at an iteration at which the losses are read, or a checkpoint is saved."""
    runner, hook = FakeRunner(scale=1024.0), FiniteLossHook(interval=20)
    runner.iterate(hook, *[1.0] * 19, INF, *[1.0] * 5, NAN)
    require_finite(runner)


def test_overflows_in_a_row_stop_a_training_with_a_loss_scale():
    runner, hook = FakeRunner(scale=1024.0), FiniteLossHook(interval=4)
    with pytest.raises(UserError, match=r"not finite at iteration 12, after 9 others in a row"):
        runner.iterate(hook, 1.0, 1.0, *[INF] * 20)
    assert "train.lr" in hooks.diverged(runner, "").fix


def test_a_loss_scale_that_collapsed_stops_the_training():
    runner, hook = FakeRunner(scale=0.5), FiniteLossHook(interval=2)
    with pytest.raises(UserError, match=r"loss scale has fallen to 0\.5"):
        runner.iterate(hook, 1.0, 1.0)


def test_losses_are_read_at_intervals_only(monkeypatch):
    """Reading a loss on a GPU waits for the GPU: one read in 20 iterations."""
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or tolist(self))
    runner, hook = FakeRunner(), FiniteLossHook(interval=20)
    runner.iterate(hook, *[1.0] * 40)
    assert len(reads) == 2


def test_a_state_that_is_not_finite_is_not_saved(monkeypatch):
    saved = []
    bank = torch.zeros(2, 2)
    state = {"iter": 3, "meta": {"run": "RUN"}, "state_dict": {"confusion.bank": bank}}
    runner = FakeRunner()
    runner.loop = SimpleNamespace(iter=3, max_iters=3, at_epoch_end=True)
    runner.stop = SimpleNamespace(agreed=lambda: 0)
    runner.state = lambda: state
    runner.checkpoints = SimpleNamespace(save=lambda state, iteration: saved.append(iteration))
    hook = SaveHook()
    hook.before_train(runner)
    hook.between_iterations(runner)
    bank[1, 0] = NAN
    with pytest.raises(UserError, match=r"confusion.bank is not finite after iteration 3"):
        hook.between_iterations(runner)
    assert saved == [3]
