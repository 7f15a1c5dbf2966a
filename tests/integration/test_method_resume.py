"""Each method resumes bit for bit: all of its state is in the checkpoint."""

from __future__ import annotations

import pytest
import torch
import training
from training import assert_same_bits, final_state, interrupted, tiny_study, without_trunk

from pcb.training.checkpoint import Checkpoints
from pcb.training.train import train

RUNS = {  # run -> state of the method that must have changed
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
    whole, cut = (
        without_trunk(tiny_study(tmp_path / name, datasets), run) for name in ("whole", "cut")
    )
    train(whole, run, 0)
    interrupted(monkeypatch, cut, run, 10)  # in the third epoch, when PCB is active
    train(cut, run, 0)
    assert_same_bits(final_state(whole, run), final_state(cut, run))
    assert final_state(whole, run)["state_dict"][STATE + RUNS[run]].unique().numel() > 1


def test_online_label_smoothing_branches_from_its_trunk(tmp_path, datasets):
    shared, alone = (
        tiny_study(tmp_path / "shared", datasets),
        without_trunk(tiny_study(tmp_path / "alone", datasets), OLS),
    )
    train(shared, OLS_TRUNK, 0, trunk=True)
    train(shared, OLS, 0)
    train(alone, OLS, 0)
    assert_same_bits(final_state(shared, OLS), final_state(alone, OLS))


@pytest.mark.parametrize(
    ("run", "trained"),
    [
        ("v05_r50_random_bags_plain", ("roi_head.bbox_head.fc_cls",)),
        ("v05_r50_random_loce_plain", ("roi_head.bbox_head.fc_", "roi_head.mask_head")),
    ],
)
def test_a_second_stage_resumes_and_trains_only_its_heads(
    tmp_path, datasets, monkeypatch, run, trained
):
    """Interrupted after 14 iterations: the first stage has 12.

    LOCE's mean scores and feature memory are in the checkpoint too.
    """
    whole, cut = (tiny_study(tmp_path / name, datasets) for name in ("whole", "cut"))
    train(whole, run, 0)
    interrupted(monkeypatch, cut, run, 14)
    _, first = Checkpoints(cut.paths.work(cut.fingerprint(run, 0)) / "first").load_named("final")
    train(cut, run, 0)
    last = final_state(whole, run)["state_dict"]
    assert_same_bits(final_state(whole, run), final_state(cut, run))
    first = first["state_dict"]
    moved = {
        key
        for key in last
        if key not in first
        or first[key].shape != last[key].shape
        or not torch.equal(first[key], last[key])
    }
    assert {
        key for key in moved if ".loss_cls." not in key and not key.startswith(trained)
    } == set()
    assert all(any(key.startswith(part) for key in moved) for part in trained)
