"""PCB on a softmax classifier: against the equations, and at its edges."""

from __future__ import annotations

import copy
import sys
import warnings

import method_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub

from pcb.errors import UserError
from pcb.losses import PCBCrossEntropyLoss, PCBEQLv2Loss, PCBSeesawLoss

C, N, R = 5, 24, 3


def build(alpha=0.4, **kwargs) -> PCBCrossEntropyLoss:
    """A loss in which PCB is active from the first iteration on."""
    return PCBCrossEntropyLoss(C, alpha, **{"start_epoch": 1, "absent": range(C), **kwargs})


@pytest.mark.parametrize("space", ["full", "fg"])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_value_gradient_and_matrix_follow_the_equations(space, gamma):
    loss, matrix = build(space=space, momentum=gamma).double(), oracle.Matrix(C, gamma)
    for z, label in oracle.batches(4, N, C, C + 1):
        for step in range(R):
            z = z.roll(step, 0)
            ours = oracle.value_and_grad(loss, z, label, torch.ones(N), avg_factor=N, step=step)
            truth = oracle.value_and_grad(
                oracle.pcb_cross_entropy, z, label, matrix, 0.4 * step / (R - 1), space
            )
            torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(loss.confusion.matrix, matrix.m, rtol=0, atol=1e-12)


@pytest.mark.parametrize("space", ["full", "fg"])
def test_gradients_equal_finite_differences(space):
    (z, label), *_ = oracle.batches(1, 8, C, C + 1)
    loss = build(space=space, momentum=0.0).double()
    loss(z, label)
    frozen = loss.confusion.bank.clone()

    def again(z):
        loss.confusion.bank.copy_(frozen)
        loss.confusion.update = lambda *_: None
        return loss(z, label)

    assert torch.autograd.gradcheck(again, z.requires_grad_())


def test_the_released_term_is_eq_10_plus_a_term_against_background():
    """L_PCB over C+1 logits (released code) = L_PCB over C logits (paper) - log(1 - p_bg)."""
    (z, label), *_ = oracle.batches(1, N, C, C + 1)
    label = label.clamp(max=C - 1)  # positives only
    full, fg = (build(1.0, space=space).double()(z, label) for space in ("full", "fg"))
    background = z.softmax(1)[:, C]
    torch.testing.assert_close(full, fg - (1 - background).log().mean())


@pytest.mark.parametrize("step", [0, 1, 2, None])
def test_alpha_zero_is_exactly_cross_entropy_and_still_keeps_the_matrix(step):
    loss, weight = build(0.0), torch.ones(N)
    for z, label in oracle.batches(3, N, C, C + 1):
        ours = oracle.value_and_grad(loss, z.float(), label, weight, avg_factor=float(N), step=step)
        plain = oracle.value_and_grad(
            lambda z, y: (F.cross_entropy(z, y, reduction="none") * weight).sum() / N,
            z.float(),
            label,
        )
        assert all(map(torch.equal, ours, plain))
    assert loss.confusion.matrix.any()


def test_step_zero_is_cross_entropy_and_no_step_means_full_alpha():
    (z, label), *_ = oracle.batches(1, N, C, C + 1)
    values = {step: copy.deepcopy(build())(z, label, step=step) for step in (0, 1, 2, None)}
    assert values[0] == F.cross_entropy(z, label, reduction="none").mean()
    assert values[None] == values[2] != values[0]
    torch.testing.assert_close(values[1], (values[0] + values[2]) / 2)
    assert build(num_steps=1)(z, label, step=0) == values[2]  # R = 1: one step, the last


def test_pcb_becomes_active_in_epoch_17_once_every_class_has_been_seen():
    z = torch.randn(C, C + 1)
    loss = build(start_epoch=17, absent=(), momentum=0.5)

    def plain(label):
        return torch.equal(loss(z, label), F.cross_entropy(z, label, reduction="none").mean())

    loss.set_epoch(16)
    assert plain(torch.tensor([0, 1, 2, 3, 0])) and not loss.pcb.is_active
    loss.set_epoch(17)
    assert plain(torch.tensor([0, 1, 2, 3, 0])) and loss.pcb.unseen_classes() == [4]
    assert not plain(torch.tensor([0, 1, 2, 3, 4])) and loss.pcb.is_active

    fewer = build(start_epoch=17, absent=(4,))
    fewer.set_epoch(17)
    fewer(z, torch.tensor([0, 1, 2, 3, 5]))
    assert fewer.pcb.is_active


@pytest.mark.parametrize(
    "loss, alpha", [(PCBCrossEntropyLoss, 0.4), (PCBEQLv2Loss, 0.2), (PCBSeesawLoss, 0.05)]
)
def test_the_defaults_are_those_of_the_paper(loss, alpha):
    """α of each classifier, γ = 0.99, three steps, "after the 16th epoch"."""
    pcb = loss(C).pcb
    assert (pcb.alpha, pcb.num_steps, pcb.start_epoch) == (alpha, 3, 17)
    assert pcb.confusion.momenta.tolist() == [0.99]


@pytest.fixture
def trained_by_a_runner():
    """The iteration of MMEngine's runner, as it tells it to whoever asks."""
    import mmengine.runner  # noqa: F401  as in every training by one

    hub = MessageHub.get_current_instance()
    yield lambda iteration: hub.update_info("iter", iteration)
    hub.pop_info("iter")


def test_a_runner_that_never_sets_the_epoch_is_noticed(trained_by_a_runner):
    """PCB would stay inactive without a word."""
    z, label = torch.randn(C, C + 1), torch.arange(C)
    without_hook, with_hook = build(start_epoch=17), build(start_epoch=17)
    with_hook.set_epoch(1)
    for iteration in (0, 0, 1):  # several losses of an iteration, then the next
        trained_by_a_runner(iteration)
        with_hook(z, label)
        if iteration == 0:
            without_hook(z, label)
    with pytest.raises(UserError, match="nothing sets the epoch") as caught:
        without_hook(z, label)
    assert "PCBEpochHook" in caught.value.fix


def test_a_training_loop_of_ones_own_is_told_once_to_set_the_epoch(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmengine.runner", raising=False)
    z, label, loss = torch.randn(C, C + 1), torch.arange(C), build(start_epoch=17)
    with pytest.warns(UserWarning, match=r"PCB starts in epoch 17.*set_epoch"):
        loss(z, label)
    with warnings.catch_warnings(action="error"):
        loss(z, label)
        loss.set_epoch(1)
        build(start_epoch=1)(z, label)


def test_micro_batches_are_one_batch_for_the_matrix():
    """Eq. 9 counts an iteration once: each step's micro-batches together, in the steps' order."""
    whole, split = build(momentum=0.9), build(momentum=0.9)
    for z, label in oracle.batches(2, N, C, C + 1):
        with split.pcb.deferred_updates():
            for part in (slice(0, 7), slice(7, None)):
                for step in range(R):
                    split(z[part] * (step + 1), label[part], step=step)
        for step in range(R):
            whole(z * (step + 1), label, step=step)
    torch.testing.assert_close(split.confusion.bank, whole.confusion.bank)
    assert torch.equal(split.confusion.seen, whole.confusion.seen)


def test_gate_epoch_does_not_wait_for_unseen_classes():
    z, label = torch.randn(C, C + 1), torch.tensor([0, 1, 2, 3, 0])
    loss = build(start_epoch=17, absent=(), momentum=0.5, gate="epoch")
    plain = F.cross_entropy(z, label, reduction="none").mean()
    loss.set_epoch(16)
    assert torch.equal(loss(z, label), plain)
    loss.set_epoch(17)
    assert loss.pcb.unseen_classes() == [4] and not torch.equal(loss(z, label), plain)


def test_without_row_normalisation_the_matrix_is_eq_9_as_printed():
    """From the zero matrix, k updates leave a row with the sum 1 - γ^k; Eq. 5 then differs."""
    gamma = 0.9
    printed, released = (build(momentum=gamma, normalise=n).double() for n in (False, True))
    m, updates = torch.zeros(C, C, dtype=torch.float64), torch.zeros(C)
    for z, label in oracle.batches(4, N, C, C + 1):
        printed(z, label)
        released(z, label)
        p = z[:, :C].softmax(1)
        for y in label[label < C].unique():
            m[y] = gamma * m[y] + (1 - gamma) * p[label == y].mean(0)
            updates[y] += 1
    torch.testing.assert_close(printed.confusion.matrix, m)
    torch.testing.assert_close(m.sum(1).float(), 1 - gamma**updates)
    targets = [loss.pcb.soft_targets(torch.arange(C)) for loss in (printed, released)]
    torch.testing.assert_close(targets[0], (m / m.sum(0)).T)
    assert len(set(updates.tolist())) > 1 and (targets[0] - targets[1]).abs().max() > 0.01


def test_update_last_learns_once_per_iteration():
    each, last, only = build(momentum=0.9), build(momentum=0.9, update="last"), build(momentum=0.9)
    (z, label), *_ = oracle.batches(1, N, C, C + 1)
    for step in range(R):
        each(z + step, label, step=step)
        last(z * (step + 1), label, step=step)
    only(z * R, label)
    assert torch.equal(last.confusion.bank, only.confusion.bank)
    assert each.confusion.seen.sum() == 3 * last.confusion.seen.sum()


def test_weights_and_averages_are_those_of_mmdet():
    (z, label), *_ = oracle.batches(1, N, C, C + 1)
    weight = torch.rand(N, dtype=torch.float64)
    loss = build(0.0)
    ce = F.cross_entropy(z, label, reduction="none")
    torch.testing.assert_close(
        loss(z, label, weight, avg_factor=7.0), (ce * weight).sum() / 7, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(loss(z, label, weight, reduction_override="none"), ce * weight)
    torch.testing.assert_close(
        loss(z, label, weight, reduction_override="sum"), (ce * weight).sum()
    )
    torch.testing.assert_close(build(0.0, loss_weight=2.0)(z, label), 2 * ce.mean())


@pytest.mark.parametrize("space", ["full", "fg"])
def test_without_positives_only_background_is_trained(space):
    loss, z = build(space=space), torch.randn(4, C + 1)
    label = torch.full((4,), C)
    value, grad = oracle.value_and_grad(loss, z, label)
    torch.testing.assert_close(value, F.cross_entropy(z, label))
    assert grad.any() and not loss.confusion.bank.any()
    empty = loss(
        torch.zeros(0, C + 1, requires_grad=True),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0),
        avg_factor=1.0,
    )
    assert empty == 0 and empty.requires_grad


@pytest.mark.parametrize("space", ["full", "fg"])
def test_huge_logits_stay_finite_and_correct(space):
    loss, exact = build(space=space), build(space=space).double()
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        z = 50 * torch.randn(N, C + 1, generator=g).sign()
        label = torch.randint(0, C + 1, (N,), generator=g)
        value, grad = oracle.value_and_grad(loss, z, label)
        value64, grad64 = oracle.value_and_grad(exact, z.double(), label)
        assert value.isfinite() and grad.isfinite().all() and loss.confusion.bank.isfinite().all()
        torch.testing.assert_close(
            (value.double(), grad.double()), (value64, grad64), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    inside, outside = build(), build()
    for z, label in oracle.batches(3, N, C, C + 1):
        half = z.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a = inside(half, label)
        b = outside(half.float(), label)
        assert a.dtype == torch.float32 and torch.equal(a, b)
    assert torch.equal(inside.confusion.bank, outside.confusion.bank)


def test_a_loaded_loss_continues_identically(tmp_path):
    first, *rest = oracle.batches(4, N, C, C + 1)
    one, two = build(momentum=[0.9, 0.99], active=0.99), build(momentum=[0.9, 0.99], active=0.99)
    one(*first)
    torch.save(one.state_dict(), tmp_path / "loss.pth")
    two.load_state_dict(torch.load(tmp_path / "loss.pth"))
    for z, label in rest:
        assert torch.equal(one(z, label), two(z, label))
    assert torch.equal(one.confusion.bank, two.confusion.bank)


def test_a_single_class_is_plain_cross_entropy():
    loss = PCBCrossEntropyLoss(1, 0.4, start_epoch=1)
    z, label = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    torch.testing.assert_close(loss(z, label), F.cross_entropy(z, label))


def test_the_box_head_gets_channels_and_scores_from_the_loss():
    loss = build()
    assert loss.get_cls_channels(C) == C + 1
    z = torch.randn(3, C + 1)
    assert torch.equal(loss.get_activation(z), z.softmax(1))
    with pytest.raises(UserError, match="built for 5"):
        loss.get_cls_channels(7)
