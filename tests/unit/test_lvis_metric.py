"""`type="PCBLVISMetric"` equals lvis-api, on one rank and on several."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys

import lvis_oracle as oracle
import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import pcb.mmdet  # noqa: F401  registers
from pcb.errors import UserError
from pcb.files import ROOT

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.fixture(scope="module")
def federated(tmp_path_factory):
    """An annotation file, its categories and images not in the order of ids, and its content."""
    path, truth = tmp_path_factory.mktemp("federated") / "val.json", oracle.federated_set(3)
    truth["categories"] = [truth["categories"][k] for k in (4, 0, 8, 2, 1, 7, 3, 6, 5)]
    truth["images"].reverse()
    truth["annotations"][5]["ignore"] = 1
    truth["annotations"][9]["iscrowd"] = 1
    path.write_text(json.dumps(truth))
    return path, truth


def samples(detections, truth, masks="rle"):
    """The detections as MMDetection's evaluator hands them on: a dict for each image."""
    label = {c["id"]: k for k, c in enumerate(truth["categories"])}
    for rows in detections:
        for image in rows.images:
            of = np.flatnonzero(rows.image_id == image)
            boxes = torch.tensor(rows.box[of])
            boxes[:, 2:] += boxes[:, :2]
            size = rows.size[of].tolist()
            rles = [
                {"size": s, "counts": rows.rle[int(k)].as_py()}
                for s, k in zip(size, of, strict=True)
            ]
            found = {
                "bboxes": boxes,
                "scores": torch.tensor(rows.score[of]),
                "labels": torch.tensor([label[c] for c in rows.category_id[of].tolist()]).long(),
                "masks": rles if masks == "rle" else decoded(rles),
            }
            yield {"img_id": image, "pred_instances": found}


def decoded(rles):
    from pycocotools import mask

    shape = tuple(rles[0]["size"]) if rles else (80, 100)
    return torch.tensor(np.array([mask.decode(r) for r in rles])).bool().reshape(-1, *shape)


def build(path, **kwargs):
    return METRICS.build(dict(type="PCBLVISMetric", ann_file=str(path), **kwargs))


def test_at_least_one_metric_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"metric=\[\] asks for no metric"):
        build(tmp_path / "any.json", metric=[])


def measured(path, truth, detections, masks="rle", **kwargs):
    metric = build(path, metric=["bbox", "segm"], classwise=True, **kwargs)
    for sample in samples(detections, truth, masks):
        metric.process({}, [sample])
    return metric.evaluate(len(truth["images"]))


def assert_equal(ours, path, truth, detections):
    for kind in ("bbox", "segm"):
        metrics, classes, _ = oracle.lvis_api(path, detections, kind)
        expected = {name: metrics[name] for name in NAMES}
        expected.update({f"AP/{c['name']}": classes[c["id"]] for c in truth["categories"]})
        for name, value in expected.items():
            value = -1 if value is None else value / 100
            assert ours[f"lvis/{kind}_{name}"] == pytest.approx(value, abs=1e-6), (kind, name)


@pytest.mark.parametrize("per_object", [3, 60])
@pytest.mark.parametrize("masks", ["rle", "tensor"])
def test_equals_lvis_api(federated, per_object, masks):
    path, truth = federated
    detections = oracle.perturbed(truth, 1, per_object)
    ours = measured(path, truth, detections, masks)
    assert_equal(ours, path, truth, detections)
    assert 0.05 < ours["lvis/segm_AP"] < 0.95 and ours["lvis/bbox_AP/class9"] == -1
    assert len(ours) == 2 * (len(NAMES) + 9)


@pytest.mark.skipif(not oracle.SAMPLE.exists(), reason="no sample of real LVIS annotations")
def test_equals_lvis_api_on_real_annotations():
    truth = json.loads(oracle.SAMPLE.read_text())
    detections = oracle.perturbed(truth, 0)
    assert_equal(measured(oracle.SAMPLE, truth, detections), oracle.SAMPLE, truth, detections)


def test_ids_that_no_float_holds(tmp_path):
    truth = oracle.federated_set(3)
    detections = list(samples(oracle.perturbed(truth, 1), truth))
    (tmp_path / "small.json").write_text(json.dumps(truth))
    for entry, key in ((truth["images"], "id"), (truth["annotations"], "image_id")):
        for one in entry:
            one[key] = 2**60 + (one[key] - 100) // 7
    (tmp_path / "huge.json").write_text(json.dumps(truth))
    metrics = []
    for name, offset in (("small", None), ("huge", 2**60)):
        metric = build(tmp_path / f"{name}.json", metric="segm")
        for s in detections:
            image = s["img_id"] if offset is None else offset + (s["img_id"] - 100) // 7
            metric.process({}, [{**s, "img_id": image}])
        metrics.append(metric.evaluate(12))
    assert metrics[0] == metrics[1] and metrics[0]["lvis/segm_AP"] > 0.05


def test_a_second_validation_starts_anew(federated):
    path, truth = federated
    metric, results = build(path), []
    for _ in range(2):
        for sample in samples(oracle.perturbed(truth, 1), truth):
            metric.process({}, [sample])
        results.append(metric.evaluate(12))
    assert results[0] == results[1]


def test_ranks_are_merged_and_an_image_counts_once(federated, monkeypatch):
    """Each of two ranks has half of the images; the sampler gave one of them to both."""
    path, truth = federated
    detections = list(samples(oracle.perturbed(truth, 1), truth))
    one = measured(path, truth, oracle.perturbed(truth, 1))
    ranks = [build(path, metric=["bbox", "segm"], classwise=True) for _ in range(2)]
    for rank, part in zip(ranks, (detections[:7], detections[6:]), strict=True):
        for sample in part:
            rank.process({}, [sample])
    kept = [pickle.loads(pickle.dumps((rank.streams, rank.seen))) for rank in ranks]
    merged = ranks[0].compute_metrics(kept)
    assert {f"lvis/{k}": v for k, v in merged.items()} == one


TWO_RANKS = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/tests/helpers", sys.argv[1] + "/tests/unit"]
import lvis_oracle, torch.distributed as dist
from test_lvis_metric import build, init_default_scope, samples
dist.init_process_group("gloo")
init_default_scope("mmdet")
truth = json.load(open(sys.argv[2]))
metric = build(sys.argv[2], metric=["bbox", "segm"])
for k, sample in enumerate(samples(lvis_oracle.perturbed(truth, 1), truth)):
    if k % 2 == dist.get_rank():
        metric.process({}, [sample])
metrics = metric.evaluate(12)
with open(f"rank{dist.get_rank()}.json", "w") as file:  # lines of two ranks may run together
    json.dump(metrics, file)
"""


def test_two_processes_return_the_metrics_of_one(federated, tmp_path):
    path, truth = federated
    (tmp_path / "program.py").write_text(TWO_RANKS)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, "program.py", str(ROOT), str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    one = measured(path, truth, oracle.perturbed(truth, 1))
    assert results[0] == results[1] == {k: v for k, v in one.items() if "AP/" not in k}


def test_images_without_a_result_are_left_out_with_a_warning(federated, monkeypatch):
    path, truth = federated
    logger, lines = MMLogger.get_current_instance(), []
    monkeypatch.setattr(logger, "warning", lines.append)
    metric = build(path)
    some = list(samples(oracle.perturbed(truth, 1), truth))[:9]
    for sample in some:
        metric.process({}, [sample])
    metric.evaluate(9)
    assert len(lines) == 1 and "3 of 12 images" in lines[0]


def test_mask_scores_rank_masks_only(federated):
    path, truth = federated
    plain = measured(path, truth, oracle.perturbed(truth, 1))
    metric = build(path, metric=["bbox", "segm"], classwise=True)
    for sample in samples(oracle.perturbed(truth, 1), truth):
        found = sample["pred_instances"]
        found["mask_scores"] = 1 - found["scores"]
        metric.process({}, [sample])
    other = metric.evaluate(12)
    assert other["lvis/bbox_AP"] == plain["lvis/bbox_AP"]
    assert other["lvis/segm_AP"] != plain["lvis/segm_AP"]


def test_a_data_set_with_some_of_the_classes(federated):
    """Labels are then places among the chosen classes, and the others do not count."""
    path, truth = federated
    chosen = {"class1", "class3", "class4"}
    subset = {**truth, "categories": [c for c in truth["categories"] if c["name"] in chosen]}
    ids = {c["id"] for c in subset["categories"]}
    metric = build(path, classwise=True)
    metric.dataset_meta = {"classes": ("class4", "class1", "class3")}
    detections = oracle.perturbed(truth, 1)
    kept = [rows.where(np.isin(rows.category_id, list(ids))) for rows in detections]
    for sample in samples(kept, subset):
        metric.process({}, [sample])
    ours = metric.evaluate(12)
    _, classes, _ = oracle.lvis_api(path, kept, "bbox")
    for category in subset["categories"]:
        value = classes[category["id"]] / 100
        assert ours[f"lvis/bbox_AP/{category['name']}"] == pytest.approx(value, abs=1e-6)
    assert len(ours) == 9 + 3


def change(content, key):
    if key == "COCO":
        for image in content["images"]:
            del image["neg_category_ids"]
    elif key == "frequency":
        del content["categories"][0]["frequency"]
    elif key == "mask":
        content["annotations"][4]["segmentation"] = []
    return content


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("COCO", "no neg_category_ids(?s:.)*fix:(?s:.)*CocoMetric"),
        ("frequency", "'class5' has no frequency r, c or f(?s:.)*fix: add one of them"),
        ("mask", "annotation 5 has no mask(?s:.)*fix: use metric='bbox'"),
    ],
)
def test_what_it_cannot_evaluate_is_refused_before_the_training(federated, tmp_path, key, message):
    content = change(json.loads(federated[0].read_text()), key)
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build(tmp_path / "val.json", metric="segm")


def test_missing_things_are_refused_before_the_training(federated, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere.json(?s:.)*fix: give ann_file"):
        build(tmp_path / "nowhere.json")
    with_nan = federated[0].read_text().replace('"bbox": [', '"bbox": [NaN, ')
    (tmp_path / "nan.json").write_text(with_nan)
    with pytest.raises(UserError, match=r"nan\.json: not valid JSON: it holds NaN"):
        build(tmp_path / "nan.json")
    with pytest.raises(UserError, match="metric='proposal'"):
        build(federated[0], metric="proposal")
    metric = build(federated[0])
    with pytest.raises(UserError, match=r"2 classes, of which .* has 1(?s:.)*fix: give metainfo"):
        metric.dataset_meta = {"classes": ("class1", "zebra")}
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(UserError, match=r"needs hotcoco(?s:.)*fix: install it"):
        build(federated[0])


def test_an_image_that_is_not_in_the_file_is_named(federated):
    with pytest.raises(UserError, match="has no image 7"):
        build(federated[0]).process({}, [{"img_id": 7, "pred_instances": {}}])


def test_the_log_has_the_groups_with_their_classes(federated, monkeypatch):
    path, truth = federated
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "info", lines.append)
    logging.disable(logging.NOTSET)
    measured(path, truth, oracle.perturbed(truth, 1))
    groups = [c["frequency"] for c in truth["categories"] if c["id"] != 9]
    for kind in ("bbox", "segm"):
        (line,) = [line for line in lines if line.startswith(f"{kind} AP 0.")]
        assert all(f"AP{g} 0." in line and f"({groups.count(g)} classes)" in line for g in "rcf")
