"""`pcb measure`: real iterations are timed and leave nothing behind; without a GPU or LVIS, sizes come from the detector's shapes alone."""

import json

import pytest
from training import PLAIN, scenes, tiny_study

from pcb.planning import measure
from pcb.planning.timings import WHAT, Pace, method, place
from pcb.study import load_study


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("data"))


def test_a_training_is_timed_and_plan_finds_what_it_took(data, tmp_path, monkeypatch):
    study = tiny_study(tmp_path, data)
    monkeypatch.setattr(measure, "representatives", lambda study: [PLAIN])
    path = measure.measure(study, iterations=2)
    record = json.loads(path.read_text())
    found = record["figures"][place(study.experiments[PLAIN])][method(study.experiments[PLAIN])]
    assert record["timed"] and record["date"] and record["versions"] and set(found) == set(WHAT)
    assert 0 < found["final"] < found["state"] and found["iteration"] > 0 and found["image"] > 0
    assert Pace.of(study).get("iteration", "v05_r50", "softmax_plain") == found["iteration"]
    assert not study.paths.work("").exists() and not (tmp_path / "smoke/runs").exists()


def test_sizes_without_gpu_and_data(tmp_path):
    """R50-FPN on 1,230 classes, in four bytes each: the 44.4 M parameters of COCO's detector, wider predictors, a confusion matrix."""
    study = load_study("lvis", overrides={"results": str(tmp_path)})
    found = measure.sizes(study, PLAIN)
    per_class = 5 * 1025 + 257  # a score and four deltas from 1,024 units each, a mask from 256
    assert found["final"] == pytest.approx(
        4 * (44.4e6 + (1230 - 80) * per_class + 1230**2), rel=0.005
    )
    assert 1.9 < found["state"] / found["final"] < 2  # stem and first stage are frozen
    assert found["detections"] == 300 * measure.DETECTION


def test_each_loss_and_paradigm_is_measured_once_and_each_backbone_and_data_set(tmp_path):
    study = load_study("mini", overrides={"results": str(tmp_path)})
    kinds = [
        (place(study.experiments[run]), method(study.experiments[run]))
        for run in measure.representatives(study)
    ]
    assert len(set(kinds)) == len(kinds) and {where for where, _ in kinds} == {
        "v05_r50",
        "v1_r50",
        "v1_r101",
    }
    assert {name for _, name in kinds} >= {
        "softmax_iterative",
        "eqlv2_plain",
        "seesaw_iterative",
        "softmax_dsn",
        "softmax_rm",
        "ols_plain",
    }
