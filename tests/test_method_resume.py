"""Killed and continued, each method's training ends with the same bits: all of its state is in the checkpoint."""

from __future__ import annotations

import pytest
import training
from training import assert_same_bits, final_state, interrupted, tiny_study, without_trunk

from pcb.engine.train import train

RUNS = {  # run -> state of the method that must have moved
    "v05_r50_random_eqlv2_iterative_pcb-a0.2-g0.99": "pos",
    "v05_r50_rfs_seesaw_iterative_pcb-a0.05-g0.99": "cum_samples",
}
OLS, OLS_TRUNK = "v05_r50_rfs_ols_plain", "v05_r50_rfs_softmax_plain"
STATE = "roi_head.bbox_head.loss_cls."


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize("run", RUNS)
def test_resumed_equals_uninterrupted(tmp_path, datasets, monkeypatch, run):
    whole, cut = (without_trunk(tiny_study(tmp_path / name, datasets), run) for name in ("whole", "cut"))
    train(whole, run, 0)
    interrupted(monkeypatch, cut, run, 10)  # within the third epoch, in which the regularisation acts
    train(cut, run, 0)
    assert_same_bits(final_state(whole, run), final_state(cut, run))
    assert final_state(whole, run)["state_dict"][STATE + RUNS[run]].unique().numel() > 1


def test_online_label_smoothing_branches_from_its_trunk(tmp_path, datasets):
    shared, alone = tiny_study(tmp_path / "shared", datasets), without_trunk(tiny_study(tmp_path / "alone", datasets), OLS)
    train(shared, OLS_TRUNK, 0, trunk=True)
    train(shared, OLS, 0)
    train(alone, OLS, 0)
    assert_same_bits(final_state(shared, OLS), final_state(alone, OLS))
