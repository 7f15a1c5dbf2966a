"""All losses besides softmax with PCB: against the equations, and at their edges."""

from __future__ import annotations

import inspect

import method_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from cuda_autocast import CudaAutocast
from loss_cases import ACTIVE, CASES, C

import pcb.confusion
from pcb.errors import UserError
from pcb.losses import (
    BAGSLoss,
    EQLv2Loss,
    EquilibriumLoss,
    LabelSmoothingLoss,
    OnlineLabelSmoothingLoss,
    PCBCrossEntropyLoss,
    PCBEQLv2Loss,
    PCBSeesawLoss,
    Regulariser,
    SeesawLoss,
)

N, R = 20, 3


def check(ours, truth, channels, alpha, after=lambda: None, iterations=3, **of_truth):
    """Compare values and gradients over several iterations of three steps, so with their state."""
    matrix = of_truth.get("matrix")
    for z, label in oracle.batches(iterations, N, C, channels):
        for step in range(R):
            if matrix is not None:
                of_truth["alpha"] = alpha * step / (R - 1)
            a = oracle.value_and_grad(
                ours, z.roll(step, 0), label, torch.ones(N), avg_factor=N, step=step
            )
            b = oracle.value_and_grad(truth, z.roll(step, 0), label, **of_truth)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
            after()


def test_eqlv2_follows_its_equations():
    loss, truth = EQLv2Loss(C).double(), oracle.EQLv2(C)

    def sums():
        torch.testing.assert_close(loss.pos.tolist(), truth.pos)
        torch.testing.assert_close(loss.neg.tolist(), truth.neg)

    check(loss, truth, C + 1, 0, sums, iterations=4)


@pytest.mark.parametrize("literal", [False, True])
def test_eqlv2_with_pcb_follows_the_equations(literal):
    loss = PCBEQLv2Loss(C, 0.2, literal=literal, **ACTIVE).double()
    matrix = oracle.Matrix(C, 0.9, normalise=False)
    check(loss, oracle.EQLv2(C), C + 1, 0.2, matrix=matrix, literal=literal)
    torch.testing.assert_close(loss.confusion.matrix, matrix.m)


def test_mixing_targets_and_mixing_losses_differ_only_by_the_weights():
    """The released EQL v2 + PCB minus Eq. 15 is α Σ (w⁺ - w⁻)(M_iy - y_i) BCE(z_i, t_i)."""
    first, (z, label) = oracle.batches(2, N, C, C + 1)
    losses = [
        PCBEQLv2Loss(C, 0.2, literal=x, num_steps=1, **ACTIVE).double() for x in (False, True)
    ]
    losses[0](*first)
    losses[1].load_state_dict(losses[0].state_dict())
    plus, minus = losses[0].class_weights()
    mixed, literal = (loss(z, label) for loss in losses)
    m = losses[0].confusion.matrix
    difference = 0
    for k, y in enumerate(label.tolist()):
        for i in range(C) if y < C else ():
            t = 0.2 * m[i, y] + 0.8 * (i == y)
            bce = F.binary_cross_entropy_with_logits(z[k, i], t)
            difference += 0.2 * (plus[i] - minus[i]) * (m[i, y] - float(i == y)) * bce / N
    torch.testing.assert_close(mixed - literal, difference, rtol=1e-6, atol=1e-9)


def test_eqlv2_weighs_by_the_ratio_however_small_the_gradients_are():
    """Weights are 1 in the first iteration alone; without negatives they are the same limit."""
    loss = EQLv2Loss(C).double()
    assert all(torch.equal(w, torch.ones(C + 1, dtype=w.dtype)) for w in loss.class_weights())
    loss(torch.full((1, C + 1), -5.0).double(), torch.tensor([C]))
    assert (loss.pos + loss.neg < 0.01).all()
    plus, minus = loss.class_weights()
    never_positive = torch.tensor(-12 * 0.8).double().sigmoid()
    torch.testing.assert_close(minus[:C], never_positive.expand(C))
    torch.testing.assert_close(plus[:C], (1 + 4 * (1 - never_positive)).expand(C))
    loss.pos[0], loss.neg[0] = 1.0, 0.0
    assert [w[0].item() for w in loss.class_weights()] == [1, 1]


def test_eqlv2_scores_are_sigmoids_times_foreground():
    z = torch.randn(4, C + 1)
    scores = EQLv2Loss(C).get_activation(z)
    torch.testing.assert_close(scores[:, :-1], z[:, :-1].sigmoid() * (1 - z[:, -1:].sigmoid()))
    torch.testing.assert_close(scores[:, -1], z[:, -1].sigmoid())


def test_seesaw_follows_eq_16():
    loss, truth = SeesawLoss(C).double(), oracle.Seesaw(C)

    def counts():
        torch.testing.assert_close(loss.cum_samples.tolist(), [float(n) for n in truth.counts])

    check(loss, truth, C + 2, 0, counts)


@pytest.mark.parametrize("factors", ["label", "class"])
def test_seesaw_with_pcb_follows_the_equations(factors):
    loss, matrix = PCBSeesawLoss(C, 0.3, factors=factors, **ACTIVE).double(), oracle.Matrix(C, 0.9)
    check(loss, oracle.Seesaw(C), C + 2, 0.3, matrix=matrix, factors=factors)
    torch.testing.assert_close(loss.confusion.matrix, matrix.m)


def test_seesaw_equals_that_of_mmdet():
    from mmdet.models.losses import SeesawLoss as Stock

    ours, stock = SeesawLoss(C), Stock(num_classes=C)
    for z, label in oracle.batches(3, N, C, C + 2):
        z = z.float()
        a, b = (loss(z, label, torch.ones(N), avg_factor=N) for loss in (ours, stock))
        assert set(a) == set(b)
        for key in a:
            torch.testing.assert_close(a[key], b[key])
        torch.testing.assert_close(ours.get_activation(z), stock.get_activation(z))
        mine, theirs = ours.get_accuracy(z, label), stock.get_accuracy(z, label)
        for key in mine:
            torch.testing.assert_close(mine[key].view(1), theirs[key].view(1))


@pytest.mark.parametrize(
    "base, regularised, channels",
    [(EQLv2Loss, PCBEQLv2Loss, C + 1), (SeesawLoss, PCBSeesawLoss, C + 2)],
)
def test_alpha_zero_is_exactly_the_base_loss(base, regularised, channels):
    plain, ours = base(C), regularised(C, 0.0, **ACTIVE)
    for z, label in oracle.batches(3, N, C, channels):
        a, b = (
            oracle.value_and_grad(f, z.float(), label, torch.ones(N), avg_factor=N)
            for f in (plain, ours)
        )
        assert all(map(torch.equal, a, b))
    assert ours.confusion.matrix.any()


@pytest.mark.parametrize(
    "loss, strength", [(LabelSmoothingLoss, 0.1), (OnlineLabelSmoothingLoss, 0.5)]
)
def test_smoothing_starts_with_pcb_or_with_training(loss, strength):
    from_17_on, from_1_on = loss(C), loss(C, start="first")
    for epoch, expected in ((1, (0, strength)), (16, (0, strength)), (17, (strength, strength))):
        for each, alpha in zip((from_17_on, from_1_on), expected, strict=True):
            each.set_epoch(epoch)
            assert each.alpha_at(0) == each.alpha_at(None) == alpha


def test_label_smoothing_follows_its_equation():
    fg = LabelSmoothingLoss(C, start_epoch=1).double()
    all_rois = LabelSmoothingLoss(C, scope="all", start_epoch=1).double()
    later = LabelSmoothingLoss(C)
    uniform = torch.full((C, C), 1 / C, dtype=torch.float64)
    check(fg, oracle.smoothed, C + 1, 0, targets=uniform, strength=0.1)
    (z, label), *_ = oracle.batches(1, N, C, C + 1)
    onehot = F.one_hot(label, C + 1) * 0.9 + 0.1 / (C + 1)
    torch.testing.assert_close(all_rois(z, label), -(onehot * z.log_softmax(1)).sum(1).mean())
    assert torch.equal(later(z, label), F.cross_entropy(z, label, reduction="none").mean())


def test_online_label_smoothing_uses_the_correct_predictions_of_the_last_epoch():
    loss = OnlineLabelSmoothingLoss(C, start_epoch=2).double()
    targets = torch.full((C, C), 1 / C, dtype=torch.float64)
    for epoch in (1, 2, 3):
        loss.set_epoch(epoch)
        correct = {c: [] for c in range(C)}
        for z, label in oracle.batches(3, N, C, C + 1, seed=epoch):
            z[torch.arange(N), label] += 2  # so that some are correct
            label = label.where(label != 4, 3)  # class 4 never appears
            strength = 0.5 if epoch > 1 else 0.0
            ours = oracle.value_and_grad(loss, z, label)
            truth = oracle.value_and_grad(oracle.smoothed, z, label, targets, strength)
            torch.testing.assert_close(ours, truth)
            for k, y in enumerate(label.tolist()):
                if y < C and z[k, :C].argmax() == y:
                    correct[y].append(oracle.softmax(z[k, :C]))
        uniform = torch.full((C,), 1 / C, dtype=torch.float64)
        means = [torch.stack(p).mean(0) if p else uniform for p in correct.values()]
        targets = torch.stack(means)
    loss.set_epoch(4)
    torch.testing.assert_close(loss.soft_labels.labels, targets)
    loss.set_epoch(4)  # again, as after a resume
    torch.testing.assert_close(loss.soft_labels.labels, targets)


def test_online_label_smoothing_branches_from_a_softmax_trunk():
    trunk = PCBCrossEntropyLoss(C, 0.0, soft_labels=True, start_epoch=2)
    alone, branch = (OnlineLabelSmoothingLoss(C, start_epoch=2) for _ in range(2))
    for z, label in oracle.batches(3, N, C, C + 1):
        trunk(z.float(), label)
        alone(z.float(), label)
    report = branch.load_state_dict(trunk.state_dict(), strict=False)
    assert not report.missing_keys
    for loss in (branch, alone):
        loss.set_epoch(2)
    z, label = oracle.batches(1, N, C, C + 1, seed=5)[0]
    assert torch.equal(branch(z, label), alone(z, label)) and branch.alpha_at(None) == 0.5


COUNTS = [3, 50, 2000, 7, 400, 60]  # groups {0, 3}, {1, 5}, {4}, {2}


def bags(**kwargs):
    return BAGSLoss(6, COUNTS, **kwargs)


def test_bags_groups_by_instances():
    loss = bags()
    groups = [loss.group(g)[0].tolist() for g in range(loss.num_groups)]
    assert groups == [[0, 3], [1, 5], [4], [2]]
    assert loss.get_cls_channels(6) == 6 + 4 + 2
    assert not loss.state_dict()  # groups follow from the data set, not from a checkpoint
    assert BAGSLoss(3, [1, 2, 3]).get_cls_channels(3) == 3 + 1 + 2  # empty groups do not exist


def test_bags_edges_are_the_smallest_counts_of_the_later_groups():
    loss = BAGSLoss(7, [9, 10, 99, 100, 999, 1000, 5000])
    groups = [loss.group(g)[0].tolist() for g in range(loss.num_groups)]
    assert groups == [[0], [1, 2], [3, 4], [5, 6]]


def test_bags_is_a_sum_of_group_softmaxes():
    loss = bags(others_ratio=1e9).double()  # all other RoIs are drawn: nothing is random
    g = torch.Generator().manual_seed(0)
    z = torch.randn(N, 12, generator=g, dtype=torch.float64)
    label = torch.randint(0, 7, (N,), generator=g)
    label[label == 4] = 6  # the third group has no positives
    losses = loss(z, label)
    assert losses["loss_cls_group2"] == 0
    expected = F.cross_entropy(z[:, 10:], (label == 6).long())
    for members, others in (([0, 3], 6), ([1, 5], 7), ([2], 9)):
        for k, y in enumerate(label.tolist()):
            target = members.index(y) if y in members else len(members)
            expected = expected - oracle.softmax(z[k, [*members, others]])[target].log() / N
    torch.testing.assert_close(sum(losses.values()), expected)


def test_bags_draws_eight_others_for_each_positive():
    rows = bags().draw(torch.arange(100) < 3)
    assert rows[:3].tolist() == [0, 1, 2] and len(rows) == 27 and len(set(rows.tolist())) == 27


def test_bags_scores_are_a_group_softmax_times_p_object():
    loss, z = bags(), torch.randn(4, 12)
    scores, objectness = loss.get_activation(z), z[:, 10:].softmax(1)
    torch.testing.assert_close(scores[:, 6], objectness[:, 1])
    second_group = z[:, [1, 5, 7]].softmax(1)[:, :2]
    torch.testing.assert_close(scores[:, [1, 5]], second_group * objectness[:, :1])
    assert scores.shape == (4, 7) and loss.get_accuracy(z, torch.tensor([0, 1, 2, 6]))["acc"] >= 0


def test_bags_predictions_hold_where_all_scores_underflow():
    """P(object), and each group's classes beside its "others", are 0 in float32."""
    loss, z = bags(), torch.randn(4, 12)
    fg = loss.get_activation(z.double())[:, :6]
    truth = fg / fg.sum(dim=1, keepdim=True)
    torch.testing.assert_close(loss.foreground(z), truth.float(), rtol=0, atol=1e-6)
    z[1, 11] = z[2, 6:10] = z[3, 11] = z[3, 6:10] = 120.0  # background, "others", both
    fg = loss.get_activation(z.double())[:, :6]
    truth = fg / fg.sum(dim=1, keepdim=True)
    torch.testing.assert_close(loss.foreground(z), truth.float(), rtol=0, atol=2e-5)


def test_equilibrium_loss_follows_its_equation():
    loss = EquilibriumLoss(C).double()
    truth = [0.01] * (C + 1)
    for z, label in oracle.batches(3, N, C, C + 1):
        rows = [k for k, y in enumerate(label.tolist()) if y < C]
        p = torch.stack([oracle.softmax(z[k])[label[k]] for k in rows])
        loss.update_scores(p, label[rows])
        for c in range(C):
            mine = [float(q) for q, k in zip(p, rows, strict=True) if label[k] == c]
            if mine:
                decay = 0.9 ** len(mine)
                truth[c] = decay * truth[c] + (1 - decay) * sum(mine) / len(mine)
        torch.testing.assert_close(loss.scores.tolist(), truth)
        s = torch.tensor(truth, dtype=torch.float64)
        weighted = s * z.exp()
        p = torch.stack([row[y] / row.sum() for row, y in zip(weighted, label, strict=True)])
        torch.testing.assert_close(loss(z, label), -p.log().mean())


ALL = {"loss_weight": 1.0, "reduction": "mean"}
EQL = {"gamma": 12.0, "mu": 0.8, "weight_of_positives": 4.0}
SEESAW = {"p": 0.8, "q": 2.0, "eps": 0.01}


@pytest.mark.parametrize(
    "loss, values",
    [
        (Regulariser, {"momentum": 0.99, "num_steps": 3, "start_epoch": 17}),
        (EQLv2Loss, EQL | ALL),
        (PCBEQLv2Loss, EQL | ALL),
        (SeesawLoss, SEESAW | ALL),
        (PCBSeesawLoss, SEESAW | ALL),
        (BAGSLoss, {"edges": (10, 100, 1000), "others_ratio": 8.0} | ALL),
        (EquilibriumLoss, {"momentum": 0.9} | ALL),
        (LabelSmoothingLoss, {"epsilon": 0.1, "start_epoch": 17}),
        (OnlineLabelSmoothingLoss, {"alpha": 0.5, "start_epoch": 17}),
    ],
)
def test_the_defaults_are_those_of_the_sources(loss, values):
    parameters = inspect.signature(loss).parameters
    assert {name: parameters[name].default for name in values} == values


@pytest.mark.parametrize(
    "loss, option",
    [
        (PCBCrossEntropyLoss, {"space": "background"}),
        (PCBCrossEntropyLoss, {"gate": "always"}),
        (PCBCrossEntropyLoss, {"update": "first"}),
        (PCBCrossEntropyLoss, {"normalise": "rows"}),
        (PCBEQLv2Loss, {"literal": "eq15"}),
        (SeesawLoss, {"counts": "machine"}),
        (PCBSeesawLoss, {"factors": "row"}),
        (LabelSmoothingLoss, {"scope": "bg"}),
        (LabelSmoothingLoss, {"start": "now"}),
        (OnlineLabelSmoothingLoss, {"start": "now"}),
    ],
)
def test_an_unknown_option_is_refused(loss, option):
    with pytest.raises(UserError, match=next(iter(option))):
        loss(C, **option)


@pytest.mark.parametrize("value", [1.5, -0.3, float("nan")])
@pytest.mark.parametrize(
    "loss, option",
    [
        (PCBCrossEntropyLoss, "alpha"),
        (PCBEQLv2Loss, "alpha"),
        (PCBSeesawLoss, "alpha"),
        (OnlineLabelSmoothingLoss, "alpha"),
        (LabelSmoothingLoss, "epsilon"),
    ],
)
def test_a_weight_outside_0_to_1_is_refused(loss, option, value):
    with pytest.raises(UserError, match=f"{option}={value}"):
        loss(C, **{option: value})
    for allowed in (0, 0.5, 1):
        loss(C, **{option: allowed})


@pytest.mark.parametrize("loss", [PCBCrossEntropyLoss, PCBSeesawLoss])
def test_a_softmax_refuses_targets_that_do_not_sum_to_one(loss):
    """Its fused losses take log Σ exp once, not times the sum of the targets."""
    with pytest.raises(UserError, match="posterior=False") as caught:
        loss(C, posterior=False)
    assert "PCBEQLv2Loss" in caught.value.fix
    assert loss(C, posterior=True).pcb.posterior and not PCBEQLv2Loss(C).pcb.posterior


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, channels = CASES[request.param]
    return build(), build(), channels


def total(value):
    return sum(value.values()) if isinstance(value, dict) else value


def test_a_batch_without_positives_trains_background(case):
    loss, _, channels = case
    value, grad = oracle.value_and_grad(loss, torch.randn(6, channels), torch.full((6,), C))
    assert value.isfinite() and grad.isfinite().all() and grad.any()
    z, label = torch.zeros(0, channels, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for weighted in ((z, label, torch.zeros(0), 1.0), (z, label)):
        empty = total(loss(*weighted))
        assert empty == 0 and empty.requires_grad


def test_huge_logits_stay_finite_and_correct(case):
    loss, exact, channels = case
    exact.double()
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        z = 50 * torch.randn(N, channels, generator=g).sign()
        label = torch.randint(0, C + 1, (N,), generator=g)
        state = torch.get_rng_state()
        value, grad = oracle.value_and_grad(loss, z, label)
        torch.set_rng_state(state)
        value64, grad64 = oracle.value_and_grad(exact, z.double(), label)
        assert value.isfinite() and grad.isfinite().all()
        torch.testing.assert_close(
            (value.double(), grad.double()), (value64, grad64), rtol=1e-4, atol=1e-4
        )


def test_autocast_changes_nothing(case):
    inside, outside, channels = case
    for z, label in oracle.batches(2, N, C, channels):
        half = z.to(torch.float16)
        state = torch.get_rng_state()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a = total(inside(half, label))
        torch.set_rng_state(state)
        assert torch.equal(a, total(outside(half.float(), label)))
    for a, b in zip(inside.buffers(), outside.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [-100, -1, C + 1])
def test_a_label_of_no_class_is_refused_before_the_loss_learns_from_it(case, wrong):
    loss, untouched, channels = case
    label = torch.tensor([0, wrong, C])
    with pytest.raises(UserError, match=f"got the label {wrong}"):
        loss(torch.randn(3, channels), label)
    assert all(map(torch.equal, loss.buffers(), untouched.buffers()))


@pytest.mark.parametrize("start_epoch", [1, 17])
def test_where_labels_cannot_be_read_they_are_out_of_bounds_from_the_start(
    start_epoch, monkeypatch
):
    """Not only from the epoch on in which PCB acts."""
    monkeypatch.setattr(pcb.confusion, "SYNC_FREE_DEVICES", set())
    loss = PCBCrossEntropyLoss(C, start_epoch=start_epoch)
    loss.set_epoch(1)
    with pytest.raises(RuntimeError, match="out of bounds"):
        loss(torch.randn(3, C + 1), torch.tensor([0, -100, C]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_converting_the_model_changes_nothing(case, dtype):
    converted, loss, channels = case
    converted = torch.nn.Sequential(converted).to(dtype)[0]
    for z, label in oracle.batches(3, N, C, channels):
        state = torch.get_rng_state()
        a = total(converted(z.to(dtype), label))
        torch.set_rng_state(state)
        assert torch.equal(a, total(loss(z.to(dtype).float(), label)))
    for a, b in zip(converted.buffers(), loss.buffers(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("method", ["get_activation", "foreground", "get_accuracy"])
def test_scores_and_accuracy_come_out_where_autocast_mixes_types(case, method):
    loss, _, channels = case
    if not hasattr(loss, method):
        pytest.skip("the loss leaves it to the head")
    ((z, label),) = oracle.batches(1, N, C, channels)
    half, labels = z.half(), (label,) if method == "get_accuracy" else ()
    with CudaAutocast():
        inside = getattr(loss, method)(half, *labels)
    outside = getattr(loss, method)(half.float(), *labels)
    torch.testing.assert_close(inside, outside, rtol=1e-2, atol=1e-3, check_dtype=False)


def test_a_loaded_loss_continues_identically(case, tmp_path):
    one, two, channels = case
    first, *rest = oracle.batches(3, N, C, channels)
    one(*first)
    torch.save(one.state_dict(), tmp_path / "loss.pth")
    two.load_state_dict(torch.load(tmp_path / "loss.pth"))
    for z, label in rest:
        state = torch.get_rng_state()
        a = total(one(z, label))
        torch.set_rng_state(state)
        assert torch.equal(a, total(two(z, label)))


def test_scores_are_probabilities_with_background_last(case):
    loss, _, channels = case
    assert loss.get_cls_channels(C) == channels
    scores = loss.get_activation(5 * torch.randn(7, channels))
    assert scores.shape == (7, C + 1) and (scores >= 0).all() and (scores <= 1).all()
    grid = torch.randn(2, 3, channels)  # of any arrangement, as `...` in the code says
    for compute in (loss.get_activation, loss.foreground):
        by_roi = compute(grid.flatten(0, 1))
        torch.testing.assert_close(compute(grid).flatten(0, 1), by_roi)


def test_the_rows_of_the_matrix_are_distributions_over_classes(case):
    """Eq. 1, but for sigmoids."""
    loss, _, channels = case
    z = 3 * torch.randn(7, channels)
    p = loss.foreground(z)
    assert p.shape == (7, C) and (p > 0).all() and (p < 1).all()
    if loss.score_kind != "sigmoid":
        torch.testing.assert_close(p.sum(1), torch.ones(7))
    scores = loss.get_activation(z)[:, :C]  # they have the same order, as objectness is common
    assert torch.equal(p.argsort(1), scores.argsort(1))


def test_what_mmdet_and_our_heads_read_of_a_loss(case):
    loss, _, _ = case
    assert loss.takes_step and loss.custom_cls_channels
    # Else MMDetection takes the argmax over C+1 logits, which is right for a softmax over them.
    assert loss.custom_activation == hasattr(loss, "get_accuracy")


@pytest.mark.parametrize("build, channels", [CASES["softmax"], CASES["seesaw"]])
def test_values_and_gradients_hold_where_a_probability_underflows(build, channels):
    """exp(-300) is 0 in float32; the same logits in float64 have the true values."""
    z = torch.randn(N, channels)
    z[:, 0] += 300
    label = torch.arange(N) % (C + 1)
    low, high = (
        oracle.value_and_grad(build().to(dtype), z.to(dtype), label, step=R - 1)
        for dtype in (torch.float32, torch.float64)
    )
    assert low[0] > 50
    torch.testing.assert_close(low, high, check_dtype=False, rtol=1e-5, atol=1e-6)
