"""The scorer equals lvis-api, on real annotations and on a made-up federated data set."""

import json
import subprocess
import sys

import lvis_oracle as oracle
import numpy as np
import pyarrow as pa
import pytest

from pcb.average_precision import points
from pcb.errors import UserError
from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.score import SplitDetections, evaluate
from pcb.evaluation.shards import Rows


def assert_equal(path, detections, iou_type):
    ours = evaluate(path, detections, iou_type=iou_type)
    metrics, classes, curves = oracle.lvis_api(path, detections, iou_type)
    assert len(metrics) == 13
    for name, value in metrics.items():
        assert ours[name] == (value if value is None else pytest.approx(value, abs=1e-6)), name
    for category, value in classes.items():
        assert ours["classes"][category] == (
            value if value is None else pytest.approx(value, abs=1e-6)
        ), category
    for category, curve in curves.items():
        kept = [] if curve[0] < 0 else (1000 * curve[::5]).tolist()
        assert ours["precision"][category] == pytest.approx(kept, abs=0.51), category
    return ours


@pytest.fixture(scope="module")
def federated(tmp_path_factory):
    path, truth = tmp_path_factory.mktemp("federated") / "val.json", oracle.federated_set(3)
    path.write_text(json.dumps(truth))
    return path, truth


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_equals_lvis_api_on_a_federated_set(federated, iou_type):
    path, truth = federated
    ours = assert_equal(path, oracle.perturbed(truth, seed=1), iou_type)
    assert 5 < ours["AP"] < 95 and ours["classes"][9] is None


def test_equals_lvis_api_beyond_300_detections_an_image(federated):
    path, truth = federated
    detections = oracle.perturbed(truth, seed=2, per_object=60)
    image_ids = np.concatenate([rows.image_id for rows in detections])
    assert np.unique(image_ids, return_counts=True)[1].max() > 300
    assert_equal(path, detections, "bbox")


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_ignored_objects_equal_lvis_api(tmp_path, federated, iou_type):
    path, truth = tmp_path / "val.json", oracle.flagged(federated[1], 4, "ignore")
    path.write_text(json.dumps(truth))
    detections = oracle.perturbed(truth, seed=3)
    ours = assert_equal(path, detections, iou_type)
    assert abs(ours["AP"] - evaluate(federated[0], detections, iou_type=iou_type)["AP"]) > 1


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_crowds_equal_pycocotools(tmp_path, federated, iou_type):
    path, truth = tmp_path / "val.json", oracle.flagged(federated[1], 5, "iscrowd")
    path.write_text(json.dumps(truth))
    detections = oracle.perturbed(truth, seed=4)
    ours = evaluate(path, detections, iou_type=iou_type)["AP"]
    assert ours == pytest.approx(oracle.pycocotools_ap(path, detections, iou_type), abs=1e-6)
    for annotation in truth["annotations"]:
        annotation["ignore"] = annotation.pop("iscrowd")
    path.write_text(json.dumps(truth))
    assert abs(ours - evaluate(path, detections, iou_type=iou_type)["AP"]) > 0.1  # another rule


@pytest.mark.skipif(
    not oracle.SAMPLE.exists(),
    reason=f"the sample of real LVIS annotations is not at {oracle.SAMPLE}",
)
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_lvis_api_on_real_annotations(iou_type, seed):
    truth = json.loads(oracle.SAMPLE.read_text())
    ours = assert_equal(oracle.SAMPLE, oracle.perturbed(truth, seed), iou_type)
    assert 5 < ours["AP"] < 95


def test_a_perfect_detector_scores_100_and_none_scores_0(federated):
    path, truth = federated
    size = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    ids, boxes = [i["id"] for i in truth["images"]], [a["bbox"] for a in truth["annotations"]]
    image = np.array([a["image_id"] for a in truth["annotations"]])
    masks = pa.array(
        [oracle.rle(a, {"height": 80, "width": 100}) for a in truth["annotations"]], pa.binary()
    )
    perfect = Rows(
        ids,
        image,
        np.array([a["category_id"] for a in truth["annotations"]]),
        np.array(boxes),
        np.ones(len(image)),
        np.array([size[i] for i in image]),
        masks,
    )
    nothing = Rows(
        ids,
        *(np.zeros((0, *shape)) for shape in [(), (), (4,), (), (2,)]),
        pa.array([], pa.binary()),
    )
    for iou_type in ("segm", "bbox"):
        assert evaluate(path, [perfect], iou_type=iou_type)["AP"] == pytest.approx(100)
        assert evaluate(path, [nothing], iou_type=iou_type)["AP"] == 0


def test_an_empty_group_is_none_not_minus_one():
    assert points(np.full((10, 101, 3), -1.0)) is None and points(np.zeros((10, 101, 0))) is None
    assert points(np.array([-1.0, 0.5, 1.0])) == 75


def test_detections_must_cover_exactly_the_images(federated):
    path, truth = federated
    detections = oracle.perturbed(truth, seed=1)
    with pytest.raises(UserError, match="do not cover 4 images"):
        evaluate(path, detections[:-1], iou_type="bbox")
    with pytest.raises(UserError, match="has no image"):
        evaluate(path, [*detections, detections[0]], iou_type="bbox")


COCO = json.dumps(
    {
        "images": [{"id": 1, "width": 9, "height": 9, "file_name": "1.jpg"}],
        "annotations": [],
        "categories": [],
    }
)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        ('{"images": [', "not valid JSON"),
        ("{}", "images, annotations"),
        (COCO, "neg_category_ids"),
    ],
)
def test_bad_ground_truth_is_named(tmp_path, content, message):
    path = tmp_path / "val.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        GroundTruth(path)


def test_scoring_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import pcb.evaluation.score"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("ap", "variant", "best"),
    [
        ({"plain": 10.0, "norcal-0.5": 12.0, "norcal-1": 11.0}, "norcal", 0.5),
        ({"plain": 12.0, "norcal-0.5": 10.0, "norcal-1": 11.0}, "norcal", 0.0),
        ({"plain": 12.0, "norcal-0.5": 10.0, "norcal-1": 11.0}, "norcal-positive", 1.0),
        ({"plain": 10.0, "norcal-0.5": 12.0, "norcal-1": 12.0}, "norcal", 0.5),  # of equals
        ({"plain": None, "norcal-0.5": None, "norcal-1": 1.0}, "norcal", 1.0),
        ({"plain": None, "norcal-0.5": None, "norcal-1": None}, "norcal", 0.0),  # no ground truth
    ],
)
def test_norcal_s_gamma_is_that_of_the_highest_ap(ap, variant, best):
    detections = SplitDetections.__new__(SplitDetections)  # without files
    detections.manifest = {"variants": ["plain", "norcal"], "columns": [*ap, "cm-val"]}
    detections.evaluate = lambda column, iou_type: {"AP": ap[column]}
    chosen = detections.choose_gamma(variant)
    assert chosen["gamma"] == best
    assert chosen["column"] == (f"norcal-{best:g}" if best else "plain")
    assert chosen["AP"] == [[0.0, ap["plain"]], [0.5, ap["norcal-0.5"]], [1.0, ap["norcal-1"]]]
