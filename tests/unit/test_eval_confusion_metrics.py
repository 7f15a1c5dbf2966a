"""The metrics of a confusion matrix, computed by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pcb.errors import UserError
from pcb.evaluation.confusion_metrics import (
    Confusion,
    bias_metrics,
    read_confusion,
    score_count_correlation,
)

RARE_TO_FREQUENT = np.array([[0.5, 0.1, 0.4], [0.0, 0.8, 0.2], [0.05, 0.0, 0.95]])
ONE_OF_EACH = np.array([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.05, 0.0, 0.95]])


def confusion(matrix, frequency, seen=(3, 3, 3)):
    return Confusion(matrix, np.array(seen), ["a", "b", "c"], list(frequency), [1, 5, 30])


def test_the_most_one_sided_pairs_come_first():
    assert confusion(RARE_TO_FREQUENT, "rrf").most_one_sided(2) == [(0, 2), (1, 2)]


def test_classes_that_the_split_does_not_show_are_ignored():
    unseen = confusion(RARE_TO_FREQUENT, "rrf", seen=(0, 3, 3))
    assert unseen.choose(10) == [1, 2]
    assert unseen.most_one_sided(5) == [(1, 2)]


def test_groups_are_means_over_shown_classes():
    expected = [[0.7, 0, 0.3], [0, 0, 0], [0.05, 0, 0.95]]
    assert confusion(RARE_TO_FREQUENT, "rrf").by_group() == pytest.approx(np.array(expected))


def test_groups_leave_out_the_rows_of_classes_that_the_split_does_not_show():
    of_rare = confusion(RARE_TO_FREQUENT, "rrf", seen=(0, 3, 3)).by_group()[0]
    assert of_rare == pytest.approx(np.array([0.8, 0, 0.2]))  # those of the second class


def test_both_ways_lists_each_pair_of_groups_once():
    pairs = confusion(ONE_OF_EACH, "rcf").both_ways()
    assert pairs.groups.tolist() == ["rc", "rf", "cf"]
    assert pairs.up.tolist() == [0.1, 0.3, 0.1] and pairs.down.tolist() == [0.2, 0.05, 0.0]
    assert confusion(ONE_OF_EACH, "rcf").both_ways(0.15).groups.tolist() == ["rc", "rf"]


def test_bias_metrics_are_percentages():
    """Of the pairs rare-common, rare-frequent and common-frequent, two lean to the frequent one."""
    metrics = bias_metrics(confusion(ONE_OF_EACH, "rcf"))
    assert metrics == pytest.approx({"Mrf": 30.0, "Mfr": 5.0, "Mup": 200 / 3, "Mcor": 1.0})


def test_rare_against_frequent_needs_no_common_class():
    metrics = bias_metrics(confusion(RARE_TO_FREQUENT, "rrf"))
    assert (metrics["Mrf"], metrics["Mfr"]) == pytest.approx((30.0, 5.0))
    assert metrics["Mup"] == 100.0


def test_chosen_classes_are_distinct_and_shown():
    seen, names = np.arange(40) % 4, [""] * 40
    measured = Confusion(np.eye(40), seen, names, ["r"] * 40, list(range(40, 0, -1)))
    for seed in range(5):
        chosen = measured.choose(20, seed)
        assert len(set(chosen)) == 20 and (seen[chosen] > 0).all()
        assert chosen == sorted(chosen, reverse=True)  # fewest training images first
    assert len(measured.choose(50)) == (seen > 0).sum()


def test_a_matrix_is_read_with_rows_that_sum_to_one(tmp_path):
    """Rows of sigmoids do not; a class without a proposal keeps zeros."""
    matrix, path = np.array([[0.5, 0.3], [0.0, 0.0]]), tmp_path / "confusion.npz"
    np.savez(path, matrix=matrix, seen=[3, 0])
    classes = [dict(name=n, frequency=f, train_images=k) for n, f, k in ("ar1", "bf9")]
    read = read_confusion(path, classes, "run it again")
    np.testing.assert_allclose(read.matrix, [[0.625, 0.375], [0, 0]])
    assert (read.names, read.frequency, read.train_images) == (["a", "b"], ["r", "f"], ["1", "9"])
    with pytest.raises(UserError, match="3 classes"):
        read_confusion(path, [*classes, classes[0]], "run it again")


def test_bias_metrics_without_a_rare_class_are_none():
    metrics = bias_metrics(confusion(ONE_OF_EACH, "rcf", seen=(0, 3, 3)))
    assert metrics == {"Mrf": None, "Mfr": None, "Mup": 100.0, "Mcor": 1.0}


def test_the_correlation_with_counts_is_spearmans_over_shown_classes():
    rng = np.random.default_rng(0)
    scores, images = rng.integers(1, 9, 20) / 10, rng.integers(1, 30, 20)  # with ties
    seen = rng.integers(0, 2, 20)
    measured = Confusion(np.diag(scores), seen, [""] * 20, ["r"] * 20, images.tolist())
    expected = spearmanr(scores[seen > 0], images[seen > 0]).statistic
    assert score_count_correlation(measured) == pytest.approx(expected)
    constant = Confusion(np.eye(20), seen, [""] * 20, ["r"] * 20, images.tolist())
    assert score_count_correlation(constant) is None
