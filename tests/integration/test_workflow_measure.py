"""`pcb measure`: it times real iterations, and needs neither GPU nor LVIS for sizes."""

import gc
import json
import multiprocessing

import pytest
import small_lvis
from mmdet.models.detectors import TwoStageDetector
from training import PLAIN, scenes, tiny_study

from pcb.planning import measure
from pcb.planning.timings import QUANTITIES, Timings, method, setting
from pcb.study import load_study


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("data"))


def test_a_training_is_timed_and_leaves_nothing(data, tmp_path, monkeypatch):
    study = tiny_study(tmp_path, data)
    monkeypatch.setattr(measure, "representatives", lambda study: [PLAIN])
    record = json.loads(measure.measure(study, iterations=2).read_text())
    key = setting(study.experiments[PLAIN])
    found = {
        quantity: settings[key][method(study.experiments[PLAIN])]
        for quantity, settings in record["timings"].items()
    }
    assert record["timed"] and record["date"] and record["versions"]
    assert set(found) == set(QUANTITIES) and min(found.values()) > 0
    assert found["final"] < found["checkpoint"]
    assert Timings.of(study).get("iteration", "v05_r50", "softmax_plain") == found["iteration"]
    assert not study.paths.work("").exists() and not (tmp_path / "smoke/runs").exists()


def test_sizes_without_gpu_and_data(tmp_path):
    """R50-FPN: COCO's 44.4 M parameters, wider predictors and a confusion matrix, 4 bytes each."""
    study = load_study("lvis", overrides={"results": str(tmp_path)})
    found = measure.sizes(study, PLAIN)
    per_class = 5 * 1025 + 257  # a score and four deltas from 1,024 units each, a mask from 256
    parameters = 44.4e6 + (1230 - 80) * per_class + 1230**2
    assert found["final"] == pytest.approx(4 * parameters, rel=0.005)
    assert 1.9 < found["checkpoint"] / found["final"] < 2  # stem and first stage are frozen
    masks, boxes = measure.BYTES_PER_DETECTION, measure.BYTES_WITHOUT_MASK
    assert found["detections"] == 300 * masks + 1000 * boxes  # scored, and kept beside them


def test_each_method_is_measured_once_and_each_backbone_and_data_set(tmp_path):
    study = load_study("mini", overrides={"results": str(tmp_path)})
    experiments = [study.experiments[run] for run in measure.representatives(study)]
    kinds = [(setting(e), method(e)) for e in experiments]
    assert len(set(kinds)) == len(kinds)
    assert {where for where, _ in kinds} == {"v05_r50", "v1_r50", "v1_r101"}
    steps = {"softmax_iterative", "seesaw_iterative", "softmax_dsn", "softmax_rm"}
    assert {name for _, name in kinds} >= steps | {"eqlv2_plain", "ols_plain"}


def test_ten_kinds_leave_no_detector_and_no_process_behind(data, tmp_path, monkeypatch):
    """At lvis, 13 kinds on 8 GPUs with 4 workers each were 416 processes and 13 detectors."""
    study = small_lvis.small_study(tmp_path, data)
    study.scale["hardware"].update(gpus_per_job=0, workers=1)
    monkeypatch.setattr(measure, "representatives", lambda study: small_lvis.kinds(study)[:10])
    monkeypatch.setattr(measure, "detections", lambda *arguments: {"detections": 1.0})
    alive = []
    monkeypatch.setattr(measure, "print_once", lambda line: alive.append(what_is_alive()))
    measure.measure(study, iterations=1)
    gc.collect()
    assert len(alive) == 10
    # The line of a kind is printed before its detector is freed.
    assert all(detectors <= 1 and processes == 0 for detectors, processes in alive)
    assert what_is_alive() == (0, 0)


def what_is_alive():
    detectors = sum(isinstance(thing, TwoStageDetector) for thing in gc.get_objects())
    return detectors, len(multiprocessing.active_children())
