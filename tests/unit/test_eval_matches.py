"""AP from the table of matches equals the evaluator's, under every filter and weight."""

import copy
import json
from dataclasses import replace

import lvis_oracle as oracle
import numpy as np
import pytest

from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import _Overlaps as Overlaps
from pcb.evaluation.matches import group_means, match, match_columns
from pcb.evaluation.score import evaluate
from pcb.evaluation.shards import BOX, SCORE, Rows, Shards, ShardWriter

IOU_TYPES = pytest.mark.parametrize("iou_type", ["segm", "bbox"])


def saved(folder, truth):
    path = folder / "val.json"
    path.write_text(json.dumps(truth))
    return GroundTruth(path)


def assert_equal(ap, groups, reference):
    """AP of classes and its means, against the result of `evaluate`, to 1e-9 points."""
    expected = np.array([np.nan if x is None else x for x in reference["classes"].values()])
    np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-9)
    for name, value in group_means(ap, groups).items():
        assert np.isnan(value) if reference[name] is None else abs(value - reference[name]) < 1e-9


@IOU_TYPES
@pytest.mark.parametrize("seed, negatives", [(1, 2), (2, 0), (3, 5), (4, 3)])
def test_equals_the_evaluator_under_lvis_rules(tmp_path, seed, negatives, iou_type):
    truth = oracle.federated_set(seed, negatives)
    gt, detections = saved(tmp_path, truth), oracle.perturbed(truth, seed)
    matches = match(gt, detections, "plain", iou_type)
    reference = evaluate(gt, detections, iou_type=iou_type)
    assert 5 < reference["AP"] < 95
    assert_equal(matches.average_precision(), matches.groups, reference)


@IOU_TYPES
@pytest.mark.parametrize("flag", ["ignore", "iscrowd"])
@pytest.mark.parametrize("seed", [1, 2])
def test_ignored_objects_equal_the_evaluators(tmp_path, seed, flag, iou_type):
    truth = oracle.flagged(oracle.federated_set(seed), seed, flag)
    for image in truth["images"][::2]:
        image["not_exhaustive_category_ids"] = [1, 2, 3]
        image["neg_category_ids"] = image["neg_category_ids"][::2]
    gt, detections = saved(tmp_path, truth), oracle.perturbed(truth, seed, per_object=5)
    matches = match(gt, detections, "plain", iou_type)
    assert matches.void.any()
    reference = evaluate(gt, detections, iou_type=iou_type)
    assert_equal(matches.average_precision(), matches.groups, reference)
    weights = np.ones((3, matches.images))
    for ap in matches.average_precision(weights=weights):
        assert_equal(ap, matches.groups, reference)


def test_a_limit_an_image_equals_the_evaluators(tmp_path):
    truth = oracle.federated_set(5)
    gt, detections = saved(tmp_path, truth), oracle.perturbed(truth, 5, per_object=60)
    matches = match(gt, detections, "plain", "bbox")
    limited = matches.average_precision(per_image=300)
    assert_equal(limited, matches.groups, evaluate(gt, detections, iou_type="bbox"))
    assert (limited[:8] != matches.average_precision()[:8]).any()


@IOU_TYPES
def test_other_negatives_are_a_filter(tmp_path, iou_type):
    truth = oracle.federated_set(6)
    gt, detections = saved(tmp_path, truth), oracle.perturbed(truth, 6)
    known = np.random.default_rng(6).random((12, 9)) < 0.5
    matches = match(gt, detections, "plain", iou_type)
    shown = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    for image, row in zip(truth["images"], known, strict=True):
        absent = [k for k in range(1, 10) if (image["id"], k) not in shown]
        image["neg_category_ids"] = [k for k in absent if row[k - 1]]
    reference = evaluate(saved(tmp_path, truth), detections, iou_type=iou_type)
    assert_equal(matches.average_precision(known), matches.groups, reference)


def test_an_unlabelled_object_of_an_absent_class_stays_ignored(tmp_path):
    truth = oracle.federated_set(7, negatives=0)
    gt, detections = saved(tmp_path, truth), oracle.perturbed(truth, 7)
    known = np.ones((12, 9), bool)
    everything = match(gt, detections, "plain", "bbox").average_precision(known)
    for image in truth["images"]:
        image["not_exhaustive_category_ids"] = list(range(1, 10))
    lenient = match(saved(tmp_path, truth), detections, "plain", "bbox").average_precision(known)
    assert (lenient >= everything)[:8].all() and (lenient > everything)[:8].any()


@IOU_TYPES
def test_weights_equal_a_set_with_repeated_images(tmp_path, iou_type):
    truth = oracle.federated_set(8)
    rng = np.random.default_rng(8)
    detections = oracle.perturbed(truth, 8)
    detections = [  # distinct, since the order of equal scores differs between image and copy
        replace(rows, score=rng.random(len(rows), np.float32)) for rows in detections
    ]
    matches = match(saved(tmp_path, truth), detections, "plain", iou_type)
    weights = rng.multinomial(12, np.ones(12) / 12, size=3)
    together = matches.average_precision(weights=weights)
    for row, ap in zip(weights, together, strict=True):
        times = dict(zip((image["id"] for image in truth["images"]), row.tolist(), strict=True))
        repeated, copies = copy.deepcopy(truth), []
        for key, number in (("images", "id"), ("annotations", "image_id")):
            repeated[key] = [
                entry | {number: entry[number] * 100 + k}
                for entry in truth[key]
                for k in range(times[entry[number]])
            ]
        for n, annotation in enumerate(repeated["annotations"]):
            annotation["id"] = n + 1
        for rows in detections:
            for k in range(max(times.values())):
                ids = [i for i in rows.images if times[i] > k]
                part = rows.where(np.isin(rows.image_id, ids))
                copies.append(
                    replace(
                        part, images=[i * 100 + k for i in ids], image_id=part.image_id * 100 + k
                    )
                )
        reference = evaluate(saved(tmp_path, repeated), copies, iou_type=iou_type)
        assert_equal(ap, matches.groups, reference)
        np.testing.assert_allclose(matches.average_precision(weights=row), ap, atol=1e-9)


def test_columns_of_shards_are_matched_alone_or_together(tmp_path):
    truth = oracle.federated_set(9)
    gt, rng = saved(tmp_path, truth), np.random.default_rng(9)
    writer = ShardWriter(tmp_path / "detections", "", ["plain", "cm-val"])
    found = oracle.perturbed(truth, 9)
    for rows in found:
        columns = dict(zip(BOX, rows.box.T, strict=True)) | {
            "image_id": rows.image_id,
            "category_id": rows.category_id,
            "height": rows.size[:, 0],
            "width": rows.size[:, 1],
            "rle": rows.rle,
        }
        for name in writer.columns:
            score = rng.random(len(rows)).astype(np.float32).round(1)
            columns[SCORE + name] = np.where(rng.random(len(rows)) < 0.2, np.nan, score)
        writer.write(rows.images, columns)
    shards = Shards(writer.folder, writer.finish([rows.images for rows in found]))
    together = match_columns(gt, shards, writer.columns, ["segm", "bbox"])
    assert len(together) == 4
    for (column, iou_type), matches in together.items():
        alone = match(gt, shards, column, iou_type)
        np.testing.assert_array_equal(alone.hits, matches.hits)
        reference = evaluate(gt, shards, column, iou_type)
        assert_equal(matches.average_precision(), matches.groups, reference)


def test_an_iou_equal_to_a_threshold_is_a_hit():
    ious = np.array([[np.nextafter(0.5, 0)], [0.5], [0.55], [1.0]])
    flags = np.zeros((2, 1), bool)
    pairs = [(np.array([row]), iou[None], flags) for row, iou in enumerate(ious)]
    hits, _ = Overlaps(pairs, len(ious)).hits(np.full(len(ious), 0.9))
    assert [int(h).bit_count() for h in hits] == [0, 1, 2, 10]


def test_a_score_equal_to_the_limit_does_not_count(tmp_path):
    truth = oracle.federated_set(11)
    matches = match(saved(tmp_path, truth), oracle.perturbed(truth, 11), "plain", "bbox")
    limit = np.median(matches.score[matches.counted()])
    counted = matches.score[matches.counted(score_thr=limit)]
    assert limit in matches.score and counted.min() > limit


def test_without_detections_ap_is_0_where_there_is_ground_truth(tmp_path):
    truth = oracle.federated_set(10)
    gt = saved(tmp_path, truth)
    rows = oracle.perturbed(truth, 10)
    nothing: list[Rows] = [part.where(np.zeros(len(part), bool)) for part in rows]
    for iou_type in ("segm", "bbox"):
        ap = match(gt, nothing, "plain", iou_type).average_precision(weights=np.ones((2, 12)))
        np.testing.assert_array_equal(ap, [[0.0] * 8 + [np.nan]] * 2)
