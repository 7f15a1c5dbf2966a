"""However a training is interrupted or branched, it ends with the same weights, bit for bit."""

import pytest
import torch
import training
from training import (
    BRANCH,
    PLAIN,
    TRUNK,
    assert_same_bits,
    final_state,
    interrupt,
    interrupted,
    tiny_study,
    without_trunk,
)

from pcb.study.records import read_record
from pcb.synthetic.generate import Recipe, write_dataset
from pcb.training import checkpoint
from pcb.training.pretrain import pretrain
from pcb.training.train import train


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, datasets):
    """A branch's experiment with RFS, iterative head and PCB, trained in one piece."""
    study = without_trunk(tiny_study(tmp_path_factory.mktemp("unbroken"), datasets), BRANCH)
    train(study, BRANCH, 0)
    return study


def test_the_record_has_the_iteration_from_which_pcb_is_active(unbroken):
    record = read_record(unbroken.paths.train(BRANCH, 0))
    assert record["gate_opened_at_iteration"] >= 2 * iterations_per_epoch(unbroken)
    assert record["repeat_factors"]["samples"] > record["repeat_factors"]["images"]


@pytest.mark.parametrize(("epochs", "more", "clean"), [(0, 2, True), (2, 1, True), (2, 2, False)])
def test_interrupted_training_equals_an_unbroken_one(
    tmp_path, datasets, unbroken, monkeypatch, capsys, epochs, more, clean
):
    """By SIGTERM, which saves at once, or by a kill, after which the last epoch's save counts."""
    study = without_trunk(tiny_study(tmp_path, datasets), BRANCH)
    whole = epochs * iterations_per_epoch(unbroken)
    error = interrupted(monkeypatch, study, BRANCH, whole + more, clean)
    assert not clean or error.code == 143
    assert not study.paths.train(BRANCH, 0).exists()
    train(study, BRANCH, 0)
    assert f"resumes from iteration {whole + more if clean else whole}\n" in capsys.readouterr().out
    assert_same_bits(final_state(study, BRANCH), final_state(unbroken, BRANCH))
    ours, theirs = (read_record(s.paths.train(BRANCH, 0)) for s in (study, unbroken))
    assert ours["weights"] == theirs["weights"], "later jobs need not run again"
    assert ours["sha256"] != theirs["sha256"], "the files have different times"


def test_branch_of_a_trunk_equals_an_unbroken_training(tmp_path, datasets, unbroken):
    """The trunk has α = 0 and a bank of three matrices; the branch takes its own γ from it."""
    study = tiny_study(tmp_path, datasets)
    train(study, TRUNK, 0, trunk=True)
    state = checkpoint.load(read_record(study.paths.trunk(TRUNK, 0))["checkpoint"])["state_dict"]
    assert (
        [len(state[key]) for key in state if key.endswith("confusion.bank")]
        == [len(study.momenta(TRUNK))]
        == [3]
    )
    train(study, BRANCH, 0)
    assert_same_bits(final_state(study, BRANCH), final_state(unbroken, BRANCH))
    assert read_record(study.paths.train(BRANCH, 0))["trunk"]["run"] == TRUNK


def test_interrupted_pretraining_equals_an_unbroken_one_and_trainings_start_from_it(
    tmp_path, datasets, monkeypatch
):
    """Here all layers are trained, and batch norm keeps statistics."""
    found = []
    for name in ("whole", "cut"):
        study = tiny_study(tmp_path / name, datasets)
        write_dataset(Recipe(pretrain_images=32), "pretrain", study.paths.data("pretrain"))
        study.scale["backbones"]["r50"]["weights"] = "pretrain"
        study.scale["pretrain"] = {
            "iterations": 3,
            "batch_size": 16,
            "lr": 1.5e-3,
            "weight_decay": 0.05,
        }  # two batches an epoch
        if name == "cut":
            interrupt(monkeypatch, lambda study=study: pretrain(study, "r50"), 1)
        found.append(checkpoint.load(pretrain(study, "r50")))
    whole, cut = found
    assert whole["meta"]["iterations"] == cut["meta"]["iterations"] == 3
    assert all(
        torch.equal(whole["state_dict"][key], cut["state_dict"][key]) for key in whole["state_dict"]
    )
    train(study, PLAIN, 0)
    trained = final_state(study, PLAIN)["state_dict"]
    assert torch.equal(
        trained["backbone.conv1.weight"], whole["state_dict"]["backbone.conv1.weight"]
    )


def iterations_per_epoch(study):
    record = read_record(study.paths.train(BRANCH, 0))
    return record["iterations"] // record["epochs"]
