"""The records of losses: one for each epoch here, without gaps or repeats after interruptions."""

from __future__ import annotations

import json

import pytest
import torch
import training
from training import PLAIN, interrupted, tiny_study

from pcb.reporting import curves
from pcb.training.hooks import ProgressHook, TrainingLog, mean_losses
from pcb.training.train import train

BAGS = "v05_r50_random_bags_plain"
CLOCKS = {"seconds", "seconds_per_iteration", "memory_mib"}
KEYS = {"stage", "epoch", "iteration", "lr", "loss", "losses", "pwb"} | CLOCKS


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


def records(study, run):
    lines = study.paths.training_log(run, 0).read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_clocks(found):
    return [{key: value for key, value in r.items() if key not in CLOCKS} for r in found]


def test_a_resumed_training_logs_each_iteration_once(tmp_path, datasets, monkeypatch, capsys):
    whole, cut = (tiny_study(tmp_path / name, datasets) for name in ("whole", "cut"))
    train(whole, PLAIN, 0)
    interrupted(monkeypatch, cut, PLAIN, 8)  # saves
    interrupted(monkeypatch, cut, PLAIN, 11, clean=False)  # what follows iteration 9 is lost
    work = cut.paths.work(cut.fingerprint(PLAIN, 0))
    with open(work / "log.jsonl", "a") as file:
        file.write('{"stage": 0, "epo')  # what a killed process was writing
    train(cut, PLAIN, 0)
    found = records(whole, PLAIN)
    assert [(r["epoch"], r["iteration"]) for r in found] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert set(found[0]) == KEYS and set(found[0]["pwb"]) == {"0.9"}
    first = found[0]
    assert first["loss"] == pytest.approx(sum(first["losses"].values()), rel=1e-3)
    resumed = without_clocks(records(cut, PLAIN))
    assert resumed[:2] == without_clocks(found)[:2] and resumed[3] == without_clocks(found)[3]
    # The record of the epoch with the interruption holds means of what followed it.
    assert resumed[2]["iteration"] == 9
    seconds = [r["seconds"] for r in records(cut, PLAIN)]
    assert seconds == sorted(seconds)
    line = f"{PLAIN}  epoch 4/4  loss {found[3]['loss']:.3f} (bbox "
    assert line in capsys.readouterr().out


def test_both_stages_of_a_training_are_in_one_log(tmp_path, datasets, monkeypatch):
    study = tiny_study(tmp_path, datasets)
    interrupted(monkeypatch, study, BAGS, 14)  # the first stage has 12 iterations
    train(study, BAGS, 0)
    found = [(r["stage"], r["iteration"]) for r in records(study, BAGS)]
    assert found == [(0, 3 * k) for k in range(1, 5)] + [(1, 3 * k) for k in range(1, 13)]
    read = curves.read_curves(study, BAGS, 0)
    assert read.epochs == list(range(1, 17)) and read.second_stage == 4
    assert len(read.by_epoch()) == 16 and read["pwb"][3] > 0


def test_a_long_epoch_is_logged_within(tmp_path, datasets, monkeypatch, capsys):
    study = tiny_study(tmp_path, datasets)
    monkeypatch.setattr(ProgressHook.__init__, "__defaults__", (2,))
    train(study, PLAIN, 0)
    found = [(r["epoch"], r["iteration"]) for r in records(study, PLAIN)]
    assert found[:4] == [(1, 2), (1, 3), (2, 5), (2, 6)]
    assert "pwb" not in records(study, PLAIN)[0]
    assert f"{PLAIN}  epoch 1/4  2/3  loss " in capsys.readouterr().out


def test_means_are_of_finite_losses_and_of_those_that_exist():
    """An overflow in float16 must not make a file that JSON parsers refuse."""

    def of(loss, **parts):
        return {k: torch.tensor(v) for k, v in {**parts, "loss": loss}.items()}

    means = mean_losses([of(2.0, loss_cls=1.0), of(float("inf"), loss_cls=3.0, loss_pcb=5.0)])
    assert means == {"loss": 2.0, "losses": {"loss_cls": 2.0, "loss_pcb": 5.0}}
    assert mean_losses([of(float("nan"))])["loss"] is None


def test_a_log_drops_what_a_resumed_training_repeats(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl", 0)
    for iteration in (50, 100, 150):
        log.append({"iteration": iteration})
    TrainingLog(log.path, 1).resume(0)
    assert len(log.path.read_text().splitlines()) == 3
    log.resume(100)
    kept = [json.loads(line)["iteration"] for line in log.path.read_text().splitlines()]
    assert kept == [50, 100]
