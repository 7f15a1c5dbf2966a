"""Protocols of scoring: AP-Fixed against a brute force, other negatives, limits, densities."""

import copy
import json

import lvis_oracle as oracle
import numpy as np
import pytest

from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import match
from pcb.evaluation.protocols import Density, fixed_limit, means, rules, short_classes
from pcb.evaluation.score import evaluate

TEST = {"score_thr": 0.15, "max_per_image": 12, "keep_score_thr": 0.0, "keep_per_image": 40}


@pytest.fixture(params=[0, 1])
def case(tmp_path, request):
    """Annotations, their file's ground truth, and detections of which scores tie."""
    truth = oracle.federated_set(20 + request.param, negatives=3)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(truth))
    return truth, GroundTruth(path), oracle.perturbed(truth, request.param, per_object=5)


def iou(a, b):
    """IoU of two boxes x, y, width, height."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def brute_force_fixed(truth, detections, per_class):
    """Box AP-Fixed of each class by loops, after §4 of arXiv 2102.01066.

    The `per_class` detections of a class with the highest scores over the data set are evaluated,
    however many an image has; then AP is what LVIS's rule makes of them.
    """
    found = sorted(  # by image id, as lvis-api orders equal scores
        (
            (int(rows.image_id[k]), k, int(rows.category_id[k]), float(rows.score[k]), rows.box[k])
            for rows in detections
            for k in range(len(rows))
        ),
        key=lambda d: (d[0], d[1]),
    )
    images = {image["id"]: image for image in truth["images"]}
    out = []
    for category in (c["id"] for c in truth["categories"]):
        ranked = sorted((d for d in found if d[2] == category), key=lambda d: -d[3])[:per_class]
        objects = {
            i: [
                a["bbox"]
                for a in truth["annotations"]
                if (a["image_id"], a["category_id"]) == (i, category)
            ]
            for i in images
        }
        total = sum(map(len, objects.values()))
        if not total:
            out.append(np.nan)
            continue
        precisions = []
        for threshold in np.arange(0.5, 1, 0.05):
            free = {i: list(boxes) for i, boxes in objects.items()}
            right, wrong, curve = 0, 0, []
            for i, _, _, _, box in ranked:
                if not objects[i] and category not in images[i]["neg_category_ids"]:
                    continue
                overlaps = [iou(box.astype(float), other) for other in free[i]]
                if overlaps and max(overlaps) >= threshold - 1e-12:
                    del free[i][int(np.argmax(overlaps))]
                    right += 1
                elif category in images[i]["not_exhaustive_category_ids"]:
                    continue
                else:
                    wrong += 1
                curve.append((right / total, right / (right + wrong)))
            for level in np.linspace(0, 1, 101):
                reached = [precision for recall, precision in curve if recall >= level]
                precisions.append(max(reached, default=0.0))
        out.append(100 * np.mean(precisions))
    return np.array(out)


@pytest.mark.parametrize("per_class", [3, 10, 25, 10_000])
def test_ap_fixed_equals_a_brute_force(case, per_class):
    truth, gt, detections = case
    matches = match(gt, detections, "plain", "bbox")
    ap = matches.average_precision(per_class=per_class)
    np.testing.assert_allclose(ap, brute_force_fixed(truth, detections, per_class), atol=1e-9)
    if per_class == 3:
        assert (ap[:8] < matches.average_precision()[:8]).any()


def test_the_limit_per_class_counts_detections_that_no_image_knows(case):
    _, gt, detections = case
    matches = match(gt, detections, "plain", "bbox")
    unknown = ~(matches.present | matches.negative)
    assert (matches.rank_in_class[unknown] < 10).any()  # they take places of the ten


def test_the_scored_protocol_and_the_looser_one_differ_in_limits_alone(case):
    _, gt, detections = case
    of_data = rules(gt, TEST, whole_truth=True)
    assert list(of_data) == ["lvis", "verified", "fixed", "loose"]
    masks, boxes = (match(gt, detections, "plain", t) for t in ("segm", "bbox"))
    scored = means(masks, boxes, of_data["lvis"])
    limited = [rows.where(rows.score > 0.15) for rows in detections]
    limited = [rows.where(gt.relevant(rows, per_image=12)) for rows in limited]
    for name, iou_type in (("AP", "segm"), ("APb", "bbox")):
        reference = evaluate(gt, limited, iou_type=iou_type)
        assert scored[name] == pytest.approx(reference["AP"], abs=1e-9)
    loose = means(masks, boxes, of_data["loose"])
    assert loose["AP"] != scored["AP"]


def test_without_the_whole_truth_nothing_more_is_verified(case):
    _, gt, _ = case
    assert list(rules(gt, TEST, whole_truth=False)) == ["lvis", "fixed", "loose"]


def test_the_limit_per_class_follows_the_images_wherever_every_absent_class_counts(case):
    _, gt, _ = case
    everywhere = fixed_limit(len(gt.image_ids), whole_truth=True)
    assert not gt.exhaustive and everywhere < 10_000
    assert rules(gt, TEST, whole_truth=True)["fixed"] == {"per_class": everywhere}
    assert rules(gt, TEST, whole_truth=False)["fixed"] == {"per_class": 10_000}
    of_coco = copy.copy(gt)  # by COCO's rule every absent class counts, whole truth or not
    of_coco.exhaustive = True
    assert rules(of_coco, TEST, whole_truth=False)["fixed"] == {"per_class": everywhere}


def test_the_limit_per_class_scales_with_the_images_of_generated_data():
    assert fixed_limit(240, whole_truth=True) == 121
    assert fixed_limit(19_809, whole_truth=True) == 10_000
    assert fixed_limit(5_000, whole_truth=False) == 10_000


def test_classes_with_fewer_detections_than_the_limit_are_counted(case):
    _, gt, detections = case
    matches = match(gt, detections, "plain", "bbox")
    kept = np.bincount(matches.label, minlength=9)
    assert short_classes(matches, int(kept.min())) == 0
    assert short_classes(matches, int(kept.max()) + 1) == 9


def test_densities_run_from_no_verified_negative_to_all(case):
    truth, gt, detections = case
    density, limits = Density(gt), {"per_image": 40}
    present = len({(a["image_id"], a["category_id"]) for a in truth["annotations"]})
    assert density.own == pytest.approx(3 * 12 / (12 * 9 - present))
    assert density.shares == sorted(density.shares) and density.own in density.shares
    matches = match(gt, detections, "plain", "segm")
    curves = density.curves(matches, limits)
    for k, known in ((0, np.zeros((12, 9), bool)), (-1, np.ones((12, 9), bool))):
        ap = matches.average_precision(known=known, **limits)
        assert curves["AP"][k] == pytest.approx(np.nanmean(ap), abs=0.01)
    # More verified negatives never help: each can only add wrong detections.
    assert (np.diff(curves["AP"]) <= 0.01).all() and curves["AP"][0] > curves["AP"][-1] + 1


def test_several_sets_of_negatives_at_once_equal_each_alone(case):
    _, gt, detections = case
    sets = np.random.default_rng(0).random((5, 12, 9)) < 0.5
    matches = match(gt, detections, "plain", "segm")
    together = matches.average_precision(known=sets, per_image=12)
    for known, ap in zip(sets, together, strict=True):
        np.testing.assert_allclose(matches.average_precision(known=known, per_image=12), ap)
