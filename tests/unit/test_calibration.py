"""Calibration of scores: Eq. 6, Eq. 8 and NorCal against their formulas on logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pcb.calibration import (
    ConfusionMatrixCalibration,
    MeanScoreCalibration,
    NorCal,
    mean_predictions,
)
from pcb.errors import UserError

C, N = 5, 12


@pytest.fixture
def logits():
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, C + 1, generator=g, dtype=torch.float64)


def matrix():
    m = torch.rand(C, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return m / m.sum(1, keepdim=True)


def test_confusion_matrix_follows_eq_4_to_6(logits):
    m, scores = matrix(), logits.softmax(1)
    ours = ConfusionMatrixCalibration(m)(scores)
    for k in range(N):
        p = logits[k, :C].softmax(0)
        total = [sum(m[i, j] / m[:, j].sum() * p[j] for j in range(C)) for i in range(C)]
        expected = torch.stack(total) / sum(total) * (1 - scores[k, C])
        torch.testing.assert_close(ours[k, :C], expected)
    assert torch.equal(ours[:, C], scores[:, C])


def test_scores_of_a_perfect_classifier_do_not_change(logits):
    scores = logits.softmax(1)
    by_matrix = ConfusionMatrixCalibration(torch.eye(C, dtype=torch.float64))
    torch.testing.assert_close(by_matrix(scores), scores)
    torch.testing.assert_close(MeanScoreCalibration(torch.ones(C))(scores), scores)


def test_a_class_that_is_never_predicted_keeps_its_score(logits):
    m, scores = torch.eye(C, dtype=torch.float64), logits.softmax(1)
    m[2] = 0  # without a sample in the split: neither row nor column
    torch.testing.assert_close(ConfusionMatrixCalibration(m)(scores), scores)


def test_mean_scores_follow_eq_8(logits):
    s, scores = matrix().diagonal().clone(), logits.softmax(1)
    s[3] = 0
    ours = MeanScoreCalibration(s)(scores)
    p = logits[:, :C].softmax(1) / torch.where(s > 0, s, 1.0)
    torch.testing.assert_close(ours[:, :C], p / p.sum(1, keepdim=True) * (1 - scores[:, C:]))
    assert torch.equal(ours[:, C], scores[:, C])


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_norcal_shifts_logits(logits, gamma):
    counts = torch.tensor([1, 10, 100, 1000, 0])
    shift = gamma * counts.clamp(min=1).double().log()
    lowered = torch.cat([logits[:, :C] - shift, logits[:, C:]], 1)
    torch.testing.assert_close(NorCal(counts, gamma)(logits.softmax(1)), lowered.softmax(1))

    background = torch.full((N, 1), 0.7, dtype=torch.float64)
    scores = torch.cat([logits[:, :C].softmax(1) * 0.3, background], 1)
    ours = NorCal(counts, gamma, "seesaw")(scores)
    torch.testing.assert_close(ours[:, :C], lowered[:, :C].softmax(1) * 0.3)

    background = logits[:, C:].sigmoid()
    scores = torch.cat([logits[:, :C].sigmoid() * (1 - background), background], 1)
    ours = NorCal(counts, gamma, "sigmoid")(scores)
    expected = torch.cat([lowered[:, :C].sigmoid() * (1 - background), background], 1)
    torch.testing.assert_close(ours, expected)


EVERY_CALIBRATION = [
    ConfusionMatrixCalibration(matrix()),
    MeanScoreCalibration(matrix().diagonal()),
    *(NorCal(torch.arange(C), 1.0, c) for c in ("softmax", "seesaw", "sigmoid")),
]
CERTAIN = torch.cat([torch.eye(C + 1), torch.full((1, C + 1), 1 / (C + 1))])


@pytest.mark.parametrize("calibrate", EVERY_CALIBRATION)
def test_certain_scores_stay_finite(calibrate):
    out = calibrate(CERTAIN)
    assert out.shape == CERTAIN.shape and out.dtype == CERTAIN.dtype
    assert out.isfinite().all() and (out >= 0).all()
    assert calibrate(CERTAIN[:0]).shape == (0, C + 1)


@pytest.mark.parametrize("calibrate", EVERY_CALIBRATION)
def test_arrays_give_arrays(calibrate):
    out = calibrate(CERTAIN.numpy()[::-1])  # negative strides, which torch cannot share
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    np.testing.assert_array_equal(out, calibrate(CERTAIN).numpy()[::-1])


@pytest.mark.parametrize("calibrate", EVERY_CALIBRATION)
def test_scores_without_background_are_refused(calibrate):
    with pytest.raises(UserError, match="background last"):
        calibrate(CERTAIN[:, :-1])
    with pytest.raises(UserError, match="scores have 0 columns"):
        calibrate(torch.tensor(0.5))


@pytest.mark.parametrize("calibrate", EVERY_CALIBRATION)
def test_scores_are_calibrated_one_by_one(calibrate, logits):
    scores = logits.softmax(1)
    alone = torch.cat([calibrate(row) for row in scores.split(1)])
    torch.testing.assert_close(calibrate(scores), alone)
    torch.testing.assert_close(calibrate(scores.view(3, 4, -1)).flatten(0, 1), alone)


def test_an_unknown_classifier_is_refused():
    with pytest.raises(UserError, match="classifier"):
        NorCal(torch.arange(C), 1.0, "relu")


def test_statistics_may_be_arrays(logits):
    m, scores = matrix(), logits.softmax(1)
    for ours, theirs in (
        (ConfusionMatrixCalibration(m), ConfusionMatrixCalibration(m.numpy())),
        (MeanScoreCalibration(m.diagonal()), MeanScoreCalibration(m.numpy().diagonal())),
        (NorCal(torch.arange(C), 0.3), NorCal(np.arange(C), 0.3)),
    ):
        assert torch.equal(ours(scores), theirs(scores))


def test_mean_predictions_follow_eq_3(logits):
    labels = torch.tensor([0, 1, C, 1, 3, 4, 4, -1, 0, 0, C, 3])
    found = mean_predictions(logits.softmax(1), labels)
    for i in range(C):
        rows = [logits[k, :C].softmax(0) for k in range(N) if labels[k] == i]
        mean = sum(rows) / len(rows) if rows else torch.zeros(C, dtype=torch.float64)
        torch.testing.assert_close(found[i], mean)
    array = mean_predictions(logits.softmax(1).float().numpy(), labels.numpy())
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    np.testing.assert_allclose(array, found.numpy(), atol=1e-6)
