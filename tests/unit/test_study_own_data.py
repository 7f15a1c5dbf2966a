"""Data of one's own: its study, its files, its groups, and how it is scored."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pycocotools.mask as coco_mask
import pytest
from lvis_oracle import federated_set, perturbed
from own_data import IDS, NAMES, own_dataset, own_scale
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pcb.data.lvis.check import check
from pcb.data.lvis.groups import class_groups
from pcb.errors import UserError
from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import match
from pcb.evaluation.protocols import rules
from pcb.evaluation.score import evaluate
from pcb.evaluation.shards import Rows
from pcb.planning.workload import images_in
from pcb.reporting.captions import scale_facts
from pcb.study import load_study
from pcb.study.departures import departures
from pcb.study.records import read_record

PLAIN, TRUNK = "mine_r50_rfs_softmax_plain", "mine_r50_rfs_softmax_iterative"


@pytest.fixture
def dataset(tmp_path):
    return own_dataset(tmp_path)


@pytest.fixture
def study(tmp_path, dataset):
    return load_study(own_scale(tmp_path / "own.yaml", dataset))


def renumbered(path, by: int) -> str:
    """The content of an annotation file with `by` added to the ids of its images."""
    content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    for image in content["images"]:
        image["id"] += by
    for annotation in content["annotations"]:
        annotation["image_id"] += by
    return json.dumps(content)


# The study ----------------------------------------------------------------------------------------


def test_the_paper_is_laid_out_for_own_data(study):
    rows = {row.id: row for row in study.tables["table02"].rows}
    assert list(rows) == [
        f"mine-{method}{pcb}"
        for method in ("softmax", "rfs", "eqlv2", "seesaw")
        for pcb in ("", "-pcb")
    ]
    assert rows["mine-rfs"].labels == {"Dataset": "My shapes", "Method": "RFS", "PCB": "✗"}
    assert rows["mine-rfs"].run == PLAIN and study.experiments[PLAIN].trunk == PLAIN
    assert study.experiments["mine_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"].trunk == TRUNK
    assert {e.dataset for e in study.experiments.values()} == {"mine"}
    detector = {row.labels["Model"] for row in study.tables["figure1"].rows}
    assert detector == {"half-width ResNet-18-FPN, 96 px"}


def test_own_data_have_no_numbers_and_no_claims_of_the_paper(study):
    rows = [row for table in study.tables.values() for row in table.rows]
    assert not any(row.paper or row.copied_from for row in rows) and study.claims == ()
    assert "findings" not in study.targets and "gallery" in study.targets


def test_rows_of_absent_data_sets_backbones_and_methods_are_not_scheduled(study):
    absent = study.tables["table02"].absent
    assert {row.labels["Dataset"] for row in absent} == {"LVIS v1.0"} and len(absent) == 8
    assert not any(run.startswith(("v05", "v1")) for run in study.runs())


def test_a_scale_may_have_one_data_set_of_the_paper_alone(study_v1="v1"):
    both = load_study("lvis")
    changed = copy.deepcopy(both.resolved)
    del changed["scale"]["datasets"]["v05"]
    one = type(both)(changed)
    assert list(one.tables) == ["table02", "table03"] and "gallery" not in one.targets
    assert {row.run.split("_")[0] for row in one.tables["table02"].rows} == {study_v1}
    lifts = {claim.id: claim for claim in one.claims}["pcb-lifts-ap"]
    assert {row for check in lifts.checks for _, row in check.rows} == {
        row.id for row in one.tables["table02"].rows
    }
    gamma = {claim.id: claim for claim in one.claims}["gamma-rare"]
    assert gamma.unjudged and not gamma.checks


def test_methods_and_schedule_are_the_scales(tmp_path, dataset):
    schedule = {"epochs": 3, "milestones": [2], "pcb_start_epoch": 2}
    path = own_scale(tmp_path / "own.yaml", dataset, methods=["rfs"], schedule=schedule)
    study = load_study(path)
    assert [row.id for row in study.tables["table02"].rows] == ["mine-rfs", "mine-rfs-pcb"]
    assert "table03" not in study.tables  # Seesaw and others alone
    assert "base methods rfs" in study.absent("table03") and study.absent("table02") is None
    assert {row.id for row in study.tables["table04"].rows} >= {"none", "ls", "ols", "dsn"}
    assert study.schedule == schedule and study.trunk_epochs == 1
    assert any("epochs 3 (LVIS: 24)" in line for line in departures(study.scale))
    whole = load_study(own_scale(tmp_path / "whole.yaml", dataset, schedule=schedule))
    assert study.fingerprint(TRUNK, 0) == whole.fingerprint(TRUNK, 0)


def test_a_departure_names_the_data_set(study):
    (data,) = (line for line in departures(study.scale) if line.startswith("Data:"))
    assert "My shapes in COCO format (LVIS: LVIS v0.5 and LVIS v1.0)" in data
    assert "rare and common: 1 and 3 (LVIS: 10 and 100)" in data


FAULTS = {
    "has no title": lambda e: {"mine": {k: v for k, v in e.items() if k != "title"}},
    "v05 is already taken": lambda e: {"mine": e, "ours": e},
    "1 is not below 1": lambda e: {"mine": e | {"thresholds": [1, 1]}},
    "no experiment is on this data set": lambda e: {
        "mine": e,
        "spare": {k: v for k, v in e.items() if k != "in_place_of"},
    },
    "has no `version`": lambda e: {"v1": {k: e[k] for k in ("train", "val", "images")}},
    "unknown key": lambda e: {"My data": e},
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_wrong_entry_is_an_error_with_a_fix(tmp_path, dataset, words):
    path = own_scale(tmp_path / "own.yaml", dataset, datasets=FAULTS[words](dataset))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert words in caught.value.what and str(path) in caught.value.what and caught.value.fix


def test_a_backbone_that_no_row_has_is_an_error(tmp_path, dataset):
    own = load_study(own_scale(tmp_path / "own.yaml", dataset)).scale["backbones"]
    path = own_scale(tmp_path / "own.yaml", dataset, backbones={"r101": own["r50"]})
    with pytest.raises(UserError, match=r"backbones has r101, .*\.mine are with r50") as caught:
        load_study(path)
    assert caught.value.fix.startswith("add r50 to `backbones`")


def test_coco_counts_at_most_100_detections(tmp_path, dataset):
    path = own_scale(tmp_path / "own.yaml", dataset)
    test = load_study(path).scale["test"] | {"max_per_image": 101}
    with pytest.raises(UserError, match="at most 100 detections"):
        load_study(path, overrides={"test": test})


def test_an_overlay_adds_rows_on_own_data(tmp_path, dataset):
    run = "mine_r50_rfs_softmax_iterative_pcb-a0.1-g0.99"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"""
experiments:
  {run}: {{dataset: mine, backbone: r50, sampler: rfs, loss: softmax, paradigm: iterative,
    pcb: {{alpha: 0.1}}, trunk: {TRUNK}}}
tables:
  table02:
    rows:
      - {{id: mine-rfs-low, base: mine-rfs, labels: [My shapes, RFS with α = 0.1, ✓], run: {run}}}
claims:
  - {{id: low-helps, where: §4.2, statement: A small α helps., checks: [
      {{metric: AP, higher: table02/mine-rfs-low, lower: table02/mine-rfs}}]}}
""")
    study = load_study(own_scale(tmp_path / "own.yaml", dataset), overlay)
    assert study.tables["table02"].rows[-1].run == run and study.trunks[TRUNK].count(run) == 1
    assert [claim.id for claim in study.claims] == ["low-helps"] and study.claims[0].checks


def test_two_data_sets_take_two_places(tmp_path, dataset):
    other = dataset | {"in_place_of": "v1", "title": "Yours"}
    path = own_scale(tmp_path / "own.yaml", dataset, datasets={"mine": dataset, "yours": other})
    names = {row.labels["Dataset"] for row in load_study(path).tables["table02"].rows}
    assert names == {"My shapes", "Yours"}


def test_own_data_are_not_generated_beside_a_recipe_for_others(tmp_path, dataset):
    recipe = load_study("smoke").scale["synthetic"]
    study = load_study(own_scale(tmp_path / "own.yaml", dataset, synthetic=recipe))
    assert not study.contents.is_generated("mine") and images_in(study, "mine", "train") is None
    facts = scale_facts(study.scale, ["r50"])
    assert facts["data"] == "My shapes" and facts["own"] and not facts["generated"]


# Identity -----------------------------------------------------------------------------------------


def test_identity_depends_on_content_and_groups_but_not_on_paths(tmp_path, dataset, study):
    def moved(**changes):
        entry = study.scale["datasets"]["mine"] | changes
        return load_study(own_scale(tmp_path / "other.yaml", entry))

    (tmp_path / "elsewhere").mkdir()
    copied = own_dataset(tmp_path / "elsewhere")
    other = moved(**{key: copied[key] for key in ("train", "val", "images")}, title="Yours")
    assert other.fingerprint(PLAIN, 0) == study.fingerprint(PLAIN, 0)
    assert other.evaluation(PLAIN, 0) == study.evaluation(PLAIN, 0)
    for change in ({"thresholds": [1, 2]}, {"format": "lvis"}):
        assert moved(**change).fingerprint(PLAIN, 0) == study.fingerprint(PLAIN, 0)
        assert moved(**change).evaluation(PLAIN, 0) != study.evaluation(PLAIN, 0)


# Files and groups ---------------------------------------------------------------------------------


def test_the_check_accepts_ids_that_restart_and_counts_groups_in_train(study):
    report = check(study, "mine")
    assert report["classes"] == 3 and report["matches_release"] is None
    # Train shows apple in 2 images, lamp in 1, kite in all 4; val shows each in at most 2.
    assert class_groups(study, "mine") == ["c", "r", "f"]
    for split in ("train", "val"):
        assert report["splits"][split]["groups"] == {"r": 1, "c": 1, "f": 1}
    assert read_record(study.paths.data_check("mine"))["splits"]["train"]["thresholds"] == [1, 3]
    gt = GroundTruth.of(study, "mine", "val")
    found = [(c["name"], c["frequency"]) for c in gt.categories]
    assert found == [("apple", "c"), ("lamp", "r"), ("kite", "f")]
    assert gt.original_ids == sorted(IDS)


# Scoring ------------------------------------------------------------------------------------------


def detections(gt: GroundTruth, seed: int) -> Rows:
    """Moved objects, wrong classes, boxes in crowds: some right, some not, some ignored."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in gt.images:
        for annotation in gt.by_image[image]:
            x, y, w, h = annotation["bbox"]
            for _ in range(3):
                dx, dy = rng.normal(0, 2, 2)
                box = [x + dx, y + dy, w, h]
                if annotation.get("iscrowd"):
                    box = [x + 2, y + 2, w / 2, h / 2]
                label = annotation["category_id"] if rng.random() < 0.7 else rng.integers(1, 4)
                rows.append((image, label, np.clip(box, 0, 60), rng.random()))
    masks = []
    for _, _, (x, y, w, h), _ in rows:
        area = np.zeros((64, 64), np.uint8, order="F")
        area[round(y) : round(y + h), round(x) : round(x + w)] = 1
        masks.append(coco_mask.encode(area)["counts"])
    return Rows(
        list(gt.images),
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int32),
        np.array([row[2] for row in rows], np.float32),
        np.array([row[3] for row in rows], np.float32),
        np.full((len(rows), 2), 64, np.int32),
        pa.array(masks, pa.binary()),
    )


def by_pycocotools(gt: GroundTruth, rows: Rows, iou_type: str) -> dict[int, float]:
    """AP of each class in points by pycocotools, with the file's own ids."""
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(gt.path.read_text(encoding="utf-8-sig"))
        truth.createIndex()
        results = [
            {
                "image_id": int(rows.image_id[k]),
                "category_id": gt.original_ids[rows.category_id[k] - 1],
                "bbox": rows.box[k].astype(float).tolist(),
                "score": float(rows.score[k]),
                "segmentation": {"size": [64, 64], "counts": rows.rle[k].as_py()},
            }
            for k in range(len(rows))
        ]
        if iou_type == "bbox":
            results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
        evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        number: float(precision[:, :, k].mean() * 100)
        for k, number in enumerate(evaluation.params.catIds)
    }


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coco_data_are_scored_as_by_pycocotools(study, seed, iou_type):
    gt = GroundTruth.of(study, "mine", "val")
    rows = detections(gt, seed)
    expected = by_pycocotools(gt, rows, iou_type)
    found = evaluate(gt, [rows], iou_type=iou_type)
    by_id = {gt.original_ids[number - 1]: ap for number, ap in found["classes"].items()}
    assert by_id == pytest.approx(expected, abs=1e-6)
    assert found["AP"] == pytest.approx(np.mean([*expected.values()]), abs=1e-6)
    assert found["APf"] == pytest.approx(expected[IDS[NAMES.index("kite")]], abs=1e-6)
    matches = match(gt, [rows], "plain", iou_type)
    rule = rules(gt, study.scale["test"], False)["lvis"] | {"score_thr": 0.0}
    assert matches.average_precision(**rule) == pytest.approx([*expected.values()], abs=1e-6)


def test_federated_data_with_any_category_ids_are_scored_alike(tmp_path):
    truth = federated_set(0)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(truth))
    rows = perturbed(truth, 0)
    expected = evaluate(GroundTruth(plain), rows)
    for category in truth["categories"]:
        category["id"] = 7 * category["id"] + 2**40
    for annotation in truth["annotations"]:
        annotation["category_id"] = 7 * annotation["category_id"] + 2**40
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [7 * i + 2**40 for i in image[key]]
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(truth))
    assert evaluate(GroundTruth(odd), rows) == expected and expected["AP"] > 0


def test_a_false_positive_counts_in_every_image_by_cocos_rule_alone(study):
    gt = GroundTruth.of(study, "mine", "val")
    perfect = {i: [a for a in gt.by_image[i] if not a.get("iscrowd")] for i in gt.images}
    image = next(i for i, shown in perfect.items() if not any(a["category_id"] == 2 for a in shown))
    rows = [(i, a["category_id"], a["bbox"], 0.5) for i, shown in perfect.items() for a in shown]
    rows.append((image, 2, [1, 1, 9, 9], 0.9))  # a lamp in the image without one
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    found = Rows(
        list(gt.images),
        columns[0].astype(np.int64),
        columns[1].astype(np.int32),
        columns[2].astype(np.float32),
        columns[3].astype(np.float32),
        np.full((len(rows), 2), 64, np.int32),
    )
    classes = evaluate(gt, [found], iou_type="bbox")["classes"]
    assert classes == pytest.approx({1: 100, 2: 50, 3: 100})
    federated = copy.copy(gt)
    federated.exhaustive = False
    assert evaluate(federated, [found], iou_type="bbox")["classes"][2] == pytest.approx(100)


@pytest.mark.parametrize("first", [2**53, 2**62 + 1])
def test_huge_image_ids_are_scored(study, first):
    gt = GroundTruth.of(study, "mine", "val")
    rows = detections(gt, 0)
    expected = evaluate(gt, [rows], iou_type="bbox")
    gt.path.write_text(renumbered(gt.path, first), encoding="utf-8")
    images = [i + first for i in rows.images]
    rows = dataclasses.replace(rows, images=images, image_id=rows.image_id + first)
    found = evaluate(GroundTruth.of(study, "mine", "val"), [rows], iou_type="bbox")
    assert found == expected and found["AP"] > 0
