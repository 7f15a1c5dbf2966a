"""The moving average of the confusion matrix: Eq. 3, 5 and 9, banks and checkpoints."""

import copy

import method_oracle as oracle
import pytest
import torch

import pcb.confusion
from pcb.confusion import ConfusionMatrix, class_sums, pairwise_bias, posterior
from pcb.errors import UserError

C = 6


def positives(n=20, seed=0, classes=C):
    g = torch.Generator().manual_seed(seed)
    probs = torch.randn(n, classes, generator=g).softmax(1)
    labels = torch.randint(0, classes - 1, (n,), generator=g)  # the last class never appears
    return probs, labels


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_updates_follow_eq_9(normalise, gamma):
    matrix = ConfusionMatrix(C, gamma, normalise=normalise).double()
    truth = oracle.Matrix(C, gamma, normalise)
    for i in range(5):
        probs, labels = positives(seed=i)
        matrix.update(probs.double(), labels)
        truth.update(probs.double(), labels.tolist())
        torch.testing.assert_close(matrix.matrix, truth.m, rtol=0, atol=1e-12)


def test_the_first_update_is_the_batch_mean_and_rows_sum_to_one():
    matrix = ConfusionMatrix(C, 0.99)
    probs, labels = positives()
    matrix.update(probs, labels)
    for c in labels.unique():
        torch.testing.assert_close(matrix.matrix[c], probs[labels == c].mean(0))
    for i in range(20):
        matrix.update(*positives(seed=i))
    torch.testing.assert_close(matrix.matrix[:-1].sum(1), torch.ones(C - 1))
    assert not matrix.matrix[-1].any() and matrix.unseen().tolist() == [False] * (C - 1) + [True]


def test_rows_without_normalisation_grow_as_one_minus_gamma_to_the_k():
    matrix = ConfusionMatrix(C, 0.9, normalise=False)
    for k in range(1, 4):
        matrix.update(torch.full((2, C), 0.5), torch.tensor([3, 3]))
        torch.testing.assert_close(matrix.matrix[3], torch.full((C,), 0.5 * (1 - 0.9**k)))


def test_absent_classes_are_untouched_and_an_empty_batch_changes_nothing():
    matrix = ConfusionMatrix(C)
    matrix.update(*positives())
    before = matrix.bank.clone()
    matrix.update(torch.zeros(0, C), torch.zeros(0, dtype=torch.long))
    assert torch.equal(matrix.bank, before)
    matrix.update(torch.full((1, C), 1 / C), torch.tensor([2]))
    changed = (matrix.bank != before).any(2)[0]
    assert changed.tolist() == [False, False, True, False, False, False]


def test_sums_are_of_the_classes_present_alone():
    """So one process pays for the classes of its batch, not for all C."""
    rows, labels = torch.rand(4, 2), torch.tensor([4, 1, 4, 4])
    classes, sums, counts = class_sums(rows, labels, C)
    assert classes.tolist() == [1, 4] and counts.tolist() == [1, 3]
    torch.testing.assert_close(sums, torch.stack([rows[1], rows[[0, 2, 3]].sum(0)]))


def test_a_bank_equals_its_matrices_alone():
    bank = ConfusionMatrix(C, [0.9, 0.99, 0.999], active=0.99)
    alone = [ConfusionMatrix(C, g) for g in (0.9, 0.99, 0.999)]
    for i in range(4):
        for matrix in (bank, *alone):
            matrix.update(*positives(seed=i))
    for i, matrix in enumerate(alone):
        assert torch.equal(bank.bank[i], matrix.matrix)
    assert torch.equal(bank.matrix, alone[1].matrix)
    assert torch.equal(ConfusionMatrix(C, [0.9, 0.99], active=1).momenta[1], bank.momenta[1])


def test_a_branch_loads_its_own_matrix_from_the_bank_of_its_trunk():
    trunk = ConfusionMatrix(C, [0.9, 0.99, 0.999], active=0)
    trunk.update(*positives())
    trunk.update(*positives(seed=1))
    branch = ConfusionMatrix(C, 0.999)
    branch.load_state_dict(trunk.state_dict())
    assert torch.equal(branch.matrix, trunk.bank[2]) and torch.equal(branch.seen, trunk.seen)
    with pytest.raises(UserError, match=r"0\.5"):
        ConfusionMatrix(C, 0.5).load_state_dict(trunk.state_dict())


def test_a_bank_is_not_loaded_if_the_checkpoint_lacks_one_of_its_momenta():
    trunk = ConfusionMatrix(C, [0.9, 0.99], active=0)
    trunk.update(*positives())
    with pytest.raises(UserError, match=r"0\.5"):
        ConfusionMatrix(C, [0.9, 0.5], active=0).load_state_dict(trunk.state_dict())


def test_seen_counts_positives_not_batches():
    matrix = ConfusionMatrix(C)
    for _ in range(2):
        matrix.update(torch.full((4, C), 1 / C), torch.tensor([3, 1, 3, 3]))
    assert matrix.seen.tolist() == [0, 2, 0, 6, 0, 0]


def test_a_loaded_matrix_continues_identically(tmp_path):
    one, two = ConfusionMatrix(C, [0.9, 0.99], active=0), ConfusionMatrix(C, [0.9, 0.99], active=0)
    for i in range(3):
        one.update(*positives(seed=i))
    torch.save(one.state_dict(), tmp_path / "m.pth")
    two.load_state_dict(torch.load(tmp_path / "m.pth"))
    for matrix in (one, two):
        matrix.update(*positives(seed=9))
    assert torch.equal(one.bank, two.bank) and torch.equal(one.seen, two.seen)


@pytest.mark.parametrize(
    "momentum, active",
    [
        (1.0, None),
        (-0.1, None),
        (float("nan"), None),
        ([], None),
        ([0.9, 0.99], None),
        ([0.9, 0.99], 0.5),
        ([0.9], 3),
    ],
)
def test_an_invalid_momentum_is_refused(momentum, active):
    with pytest.raises(UserError):
        ConfusionMatrix(C, momentum, active)


def test_posterior_is_bayes_with_a_uniform_prior():
    m = torch.rand(C, C, dtype=torch.float64)
    m /= m.sum(1, keepdim=True)
    torch.testing.assert_close(posterior(m).sum(0), torch.ones(C, dtype=torch.float64))
    torch.testing.assert_close(posterior(m)[2, 4], m[2, 4] / m[:, 4].sum())
    m[:, 1] = 0
    assert not posterior(m)[:, 1].any() and posterior(m).isfinite().all()


def test_columns_are_those_of_the_posterior():
    matrix = ConfusionMatrix(C).double()
    matrix.update(*positives(60))
    labels = torch.tensor([3, 0, 3, 1])
    torch.testing.assert_close(matrix.columns(labels), posterior(matrix.matrix)[:, labels].T)
    assert torch.equal(matrix.columns(labels, posterior=False), matrix.matrix[:, labels].T)
    of_an_empty_column = ConfusionMatrix(C).columns(torch.tensor([2]))
    torch.testing.assert_close(of_an_empty_column, torch.eye(C)[[2]])


CONVERSIONS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.to(torch.bfloat16),
    "float": lambda module: module.float(),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_no_conversion_makes_the_matrix_coarser(convert):
    """In bfloat16 a row stops moving, as 1 % of it is rounded off; in float16 1e-20 is 0."""
    matrix, converted = ConfusionMatrix(C), convert(torch.nn.Sequential(ConfusionMatrix(C)))[0]
    for i in range(500):
        matrix.update(*positives(seed=i))
        converted.update(*positives(seed=i))
    converted = convert(copy.deepcopy(converted))
    state = matrix.state_dict()
    assert list(state) == list(converted.state_dict()) == ["bank", "seen", "momenta"]
    for name, value in converted.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name])
    never_predicted = convert(ConfusionMatrix(C)).columns(torch.tensor([2]))
    assert torch.equal(never_predicted, torch.eye(C)[[2]])
    convert(ConfusionMatrix(C)).load_state_dict(state)  # finds its momentum


def test_the_matrix_moves_to_a_device_and_to_float64():
    matrix = ConfusionMatrix(C).to("meta", torch.float16)
    assert {(name, b.device.type, b.dtype) for name, b in matrix.named_buffers()} == {
        ("bank", "meta", torch.float32),
        ("seen", "meta", torch.int64),
        ("momenta", "meta", torch.float64),
    }
    assert matrix.to_empty(device="cpu").bank.device.type == "cpu"
    assert ConfusionMatrix(C).double().bank.dtype == torch.float64


def test_pairwise_bias_is_the_norm_of_the_asymmetry():
    m = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    assert pairwise_bias(m).item() == pytest.approx((2 * 0.2**2) ** 0.5)
    assert pairwise_bias(m + m.T) == 0


def test_the_matrix_holds_no_graph():
    matrix = ConfusionMatrix(C)
    probs, labels = positives()
    matrix.update(probs.requires_grad_(), labels)
    assert not matrix.bank.requires_grad and not matrix.columns(labels).requires_grad


@pytest.mark.parametrize("devices", [{"cpu"}, set()], ids=["dynamic shapes", "static shapes"])
@pytest.mark.parametrize("labels", [[C, C, C], [1, C, C], [C, 0, 1]])
def test_ignored_rows_are_in_no_sum(labels, devices, monkeypatch):
    monkeypatch.setattr(pcb.confusion, "SYNC_FREE_DEVICES", devices)
    rows, labels = torch.rand(3, 2), torch.tensor(labels)
    if devices:
        rows, labels = rows[labels < C], labels[labels < C]
    classes, sums, _ = class_sums(rows, labels, C)
    total = torch.zeros(C, 2).index_copy_(0, classes, sums)
    expected = torch.zeros(C + 1, 2).index_add_(0, labels, rows)[:-1]
    torch.testing.assert_close(total, expected)
