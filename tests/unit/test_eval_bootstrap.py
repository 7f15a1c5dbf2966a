"""Resamples of the validation images: drawn once for all runs, scored as copies of images."""

import copy
import json
from dataclasses import replace

import hotcoco
import lvis_oracle as oracle
import numpy as np
import pytest

from pcb.errors import UserError
from pcb.evaluation.bootstrap import (
    read_bootstrap,
    resample_ap,
    resample_bias,
    resamples,
    write_bootstrap,
)
from pcb.evaluation.confusion_metrics import Confusion, bias_metrics
from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import match


def saved(folder, truth, name="val.json"):
    path = folder / name
    path.write_text(json.dumps(truth))
    return path


def example(folder, seed=3):
    """Ground truth and detections with distinct scores: copies of an image would tie."""
    truth, rng = oracle.federated_set(seed), np.random.default_rng(seed)
    detections = [
        replace(rows, score=rng.random(len(rows), np.float32))
        for rows in oracle.perturbed(truth, seed)
    ]
    return truth, detections, GroundTruth(saved(folder, truth))


def copied(truth, detections, times):
    """A data set in which image i is there `times[i]` times, and its detections."""
    out, copies = copy.deepcopy(truth), []
    for key, number in (("images", "id"), ("annotations", "image_id")):
        out[key] = [
            entry | {number: entry[number] * 100 + k}
            for entry in truth[key]
            for k in range(times[entry[number]])
        ]
    for n, annotation in enumerate(out["annotations"]):
        annotation["id"] = n + 1
    for rows in detections:
        for k in range(max(times.values())):
            ids = [i for i in rows.images if times[i] > k]
            part = rows.where(np.isin(rows.image_id, ids))
            image_id = part.image_id * 100 + k
            copies.append(replace(part, images=[i * 100 + k for i in ids], image_id=image_id))
    return out, copies


def test_resamples_depend_on_the_number_of_images_alone():
    weights = resamples(50)
    assert (weights.sum(1) == 50).all() and weights.shape == (200, 50)
    assert (weights == resamples(50)).all() and len(np.unique(weights, axis=0)) == 200
    assert weights.var() == pytest.approx(0.98, abs=0.05)  # of a multinomial: 1 - 1/50


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_a_resample_scores_as_lvis_api_scores_copies_of_images(tmp_path, iou_type):
    truth, detections, gt = example(tmp_path)
    weights = resamples(len(truth["images"]), 4)
    matches = {kind: match(gt, detections, "plain", kind) for kind in ("segm", "bbox")}
    resampled = resample_ap(matches["segm"], matches["bbox"], weights)
    names = ("AP", "APr", "APc", "APf")
    for b, row in enumerate(weights.tolist()):
        times = dict(zip(gt.image_ids.tolist(), row, strict=True))
        truth_copy, copies = copied(truth, detections, times)
        reference, *_ = oracle.lvis_api(saved(tmp_path, truth_copy, "c.json"), copies, iou_type)
        for name in names:
            key = name if iou_type == "segm" else f"APb{name[2:]}"
            expected = reference[name]
            assert resampled[key][b] == pytest.approx(
                np.nan if expected is None else expected, abs=1e-6, nan_ok=True
            )


def test_each_image_counts_as_often_as_it_is_drawn(tmp_path):
    """hotcoco's `compare` counts it once, so its standard errors are smaller (docs/methods.md)."""
    truth, detections, gt = example(tmp_path)
    file = hotcoco.COCO(str(gt.path))
    models = []
    for drop in (0, 2):  # two models: the second misses every third detection
        rows = [r.where(np.arange(len(r)) % 3 != 2) if drop else r for r in detections]
        found = [
            {"image_id": i, "category_id": c, "bbox": box, "score": s}
            for r in rows
            for i, c, box, s in zip(
                r.image_id.tolist(),
                r.category_id.tolist(),
                r.box.tolist(),
                r.score.tolist(),
                strict=True,
            )
        ]
        evaluation = hotcoco.LVISeval(file, hotcoco.LVISResults(file, found), "bbox")
        evaluation.evaluate()
        models.append((evaluation, match(gt, rows, "plain", "bbox")))
    theirs = hotcoco.compare(models[0][0], models[1][0], n_bootstrap=1000, seed=0)
    error = 100 * theirs["ci"]["AP"]["std_err"]
    weights = resamples(len(truth["images"]), 1000)

    def standard_error(weights):
        a, b = (resample_ap(m, m, weights)["APb"] for _, m in models)
        return (b - a).std(ddof=1)

    assert error == pytest.approx(standard_error(np.minimum(weights, 1)), rel=0.1)
    assert standard_error(weights) > 1.1 * error


def test_bias_metrics_on_a_resample_are_those_of_its_images():
    """Against the matrix of a set in which the images are there as often as they are drawn."""
    rng, classes, images = np.random.default_rng(0), 6, np.array([7, 11, 30, 31])
    measured = Confusion(np.eye(classes), np.ones(classes), [""] * 6, list("rrccff"), range(6))
    image, label = np.repeat(images, 3), np.concatenate([rng.permutation(6)[:3] for _ in images])
    sums = rng.random((12, classes))
    weights = rng.multinomial(4, np.full(4, 0.25), 5)
    arrays = {"image": image, "label": label, "image_sums": sums}
    found = resample_bias(arrays, measured, images, weights)
    for b, row in enumerate(weights.tolist()):
        total = np.zeros((classes, classes))
        for i, k, s in zip(image, label, sums, strict=True):
            total[k] += row[list(images).index(i)] * s
        seen = total.sum(1) > 0
        matrix = total / np.where(seen, total.sum(1), 1)[:, None]
        expected = bias_metrics(replace(measured, matrix=matrix, seen=seen))
        assert found["PwB"][b] == pytest.approx(((matrix - matrix.T) ** 2).sum() ** 0.5)
        for name, value in expected.items():
            value = np.nan if value is None else value
            assert found[name][b] == pytest.approx(value, nan_ok=True)


def test_a_changed_file_is_refused(tmp_path):
    path, values = tmp_path / "bootstrap.npz", {"AP": np.array([1.0, np.nan, 3.0])}
    digest = write_bootstrap(path, {("lvis", "plain"): values})
    read = read_bootstrap(path, digest)
    np.testing.assert_array_equal(read["lvis", "plain"]["AP"], values["AP"])
    write_bootstrap(path, {("lvis", "plain"): {"AP": np.zeros(3)}})
    with pytest.raises(UserError, match="damaged"):
        read_bootstrap(path, digest)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_bootstrap(path, digest)
