"""The small experiments in configs/experiments are well formed, and their results match them."""

from __future__ import annotations

import json

import experiments
import pytest

from pcb.files import ROOT
from pcb.study.load import read_yaml

FILES = sorted(p for p in (ROOT / "configs/experiments").glob("*.yaml") if "_" not in p.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_is_a_run_of_every_condition(file, tmp_path):
    content = read_yaml(file)
    rows = content["rows"]
    assert all(row in rows for pair in content["differences"].values() for row in pair)
    for condition, changes in content["conditions"].items():
        study = experiments.condition_study(file, content, condition, tmp_path)
        assert set((changes or {}).get("rows", rows)) <= set(rows)
        assert {row.split("/")[0] for row in rows.values()} <= set(study.experiments)


def test_conditions_change_the_scale_and_the_schedule(tmp_path):
    file = ROOT / "configs/experiments/recipe.yaml"
    content = read_yaml(file)
    studies = {
        c: experiments.condition_study(file, content, c, tmp_path) for c in content["conditions"]
    }
    assert studies["learning rate drops to 0.1"].scale["train"]["lr_drop"] == 0.1
    assert studies["memory as at LVIS"].scale["pcb"]["ema_memory_scale"] == 1
    assert studies["twice the epochs"].schedule["epochs"] == 48
    roots = {study.paths.root for study in studies.values()}
    assert len(roots) == len(studies), "each condition has results of its own"
    shared = {study.paths.data("v05").resolve() for study in studies.values()}
    assert len(shared) == 1, "all conditions use the same images"


def test_a_difference_is_taken_within_each_seed():
    values = {"a": {"AP": [3.0, 5.0]}, "b": {"AP": [1.0, 4.0]}}
    found = experiments.difference(values, "a", "b", "AP")
    assert found["seeds"] == [2.0, 1.0] and found["mean"] == 1.5
    assert found["sd"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_committed_results_are_of_the_experiments_as_they_are_written(file):
    result = json.loads((experiments.OUT / f"{file.stem}.json").read_text(encoding="utf-8"))
    content = read_yaml(file)
    assert result["file"] == str(file.relative_to(ROOT)) and result["seeds"] == content["seeds"]
    assert result["question"] == content["question"] and result["split"] == "dev"
    assert result["conditions"] == {k: v or {} for k, v in content["conditions"].items()}
    rows = {
        label: f"{row}/plain" if "/" not in row else row for label, row in content["rows"].items()
    }
    assert result["rows"] == rows
