"""Calibration with own and with other images: divisions, and a cross-fit worked out by hand."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from pcb.evaluation.score import GroundTruth, evaluate, score
from pcb.evaluation.shards import Rows
from pcb.inference import forward, infer
from pcb.inference.oracle import divisions, oracle
from pcb.study import load_study
from pcb.study.records import read_record, write_record
from pcb.study.variants import oracle_runs
from pcb.synthetic.generate import Recipe, write_dataset
from pcb.training import build
from pcb.training.checkpoint import save_hashed
from pcb.training.pretrain import pretrain
from pcb.training.weights import initialise

RUN = "v05_r50_random_softmax_plain"
IMAGES = 36


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with one run that detects some objects, and the content of its oracle.json."""
    root = tmp_path_factory.mktemp("study")
    recipe = Recipe(train_images=24, val_images=IMAGES, dev_images=2, head=10)
    write_dataset(recipe, "v05", root / "data")
    files = {"version": "v0.5", "images": str(root / "data/images")}
    files |= {split: str(root / f"data/{split}.json") for split in ("train", "val", "dev")}
    datasets = {"v05": files, "v1": files}
    study = load_study("smoke", overrides={"results": str(root), "datasets": datasets})
    torch.manual_seed(0)
    model = build.detector(study, RUN)
    pretrain(study, "r50")
    initialise(model, study, "r50")
    fit_to_val(study, model)
    state = {"state_dict": model.state_dict(), "meta": {"classes": 60}}
    path = save_hashed(study.paths.work(study.fingerprint(RUN, 0)), "final", state)
    digest = infer.checkpoint.sha256(path)
    fingerprint = study.fingerprint(RUN, 0)
    record = {"fingerprint": fingerprint, "checkpoint": str(path), "sha256": digest}
    write_record(study.paths.train(RUN, 0), record)
    return study, oracle(study, RUN, 0, images_per_shard=5)


@torch.no_grad()
def fit_to_val(study, model):
    """Give the class layer a ridge regression on val's proposals, and let masks fill their box."""
    detector = infer.SplitDetector(study, RUN, "val", {}, model)
    inputs = []
    layer = model.roi_head.bbox_head.fc_cls
    hook = layer.register_forward_hook(lambda _, arguments, __: inputs.append(arguments[0]))
    targets = []
    for images in detector.batches(list(detector.index)):
        for image in images:
            instances = detector.dataset.get_data_info(detector.index[image.meta["img_id"]])
            boxes = torch.tensor([o["bbox"] for o in instances["instances"]])
            labels = torch.tensor([o["bbox_label"] for o in instances["instances"]])
            rows, labels = infer.match(image.proposals, boxes, labels)
            target = torch.full((len(image.proposals),), 60)
            target[rows] = labels
            targets.append(target)
    hook.remove()
    x, y = torch.cat(inputs), torch.nn.functional.one_hot(torch.cat(targets), 61).float()
    gram = x.T @ x + 5 * torch.eye(x.shape[1])
    layer.weight.copy_(8 * torch.linalg.solve(gram, x.T @ y).T)
    model.roi_head.mask_head.conv_logits.bias.fill_(9)


def test_parts_are_disjoint_and_of_equal_size():
    for division in divisions(range(100, 341)):
        sizes = Counter(division.part_of.values())
        assert len(division.part_of) == 241 and len(sizes) == division.parts
        assert max(sizes.values()) - min(sizes.values()) <= 1
        for part in division.all:
            calibrating = {source: division.source(part, source) for source in division.sources}
            assert calibrating["own"] == part
            assert division.parts == 1 or calibrating["other"] != part


def test_divisions_do_not_depend_on_the_order_of_images_and_differ_from_each_other():
    forward_, backward = divisions(range(60)), divisions(reversed(range(60)))
    assert forward_ == backward
    halves = [frozenset(d.images(d.all[0])) for d in forward_ if d.parts == 2]
    assert len(set(halves)) == len(halves) > 1


def test_parts_of_a_single_image_are_left_out():
    assert {d.parts for d in divisions(range(12))} == {1, 2, 3}


def test_runs_with_a_matrix_calibration_have_an_oracle():
    softmax = ["v05_r50_random_softmax_plain", "v05_r50_rfs_softmax_plain"]
    assert oracle_runs(load_study("mini")) == softmax


def test_the_record_holds_every_part_and_no_detections_remain(finished):
    study, out = finished
    assert read_record(study.paths.oracle(RUN, 0)) == out
    assert Counter(entry["of"] for entry in out["parts"]) == {1: 1, 2: 8, 3: 9, 8: 8}
    assert [entry["images"] for entry in out["parts"][:10]] == [36] + [18] * 8 + [12]
    assert [entry["of"] for entry in out["crossfit"]] == [2, 2, 2, 2, 8]
    assert not study.paths.oracle(RUN, 0).with_suffix("").exists()
    assert out["fingerprint"] == study.fingerprint(RUN, 0)


def test_all_of_val_with_its_own_statistics_equals_table_1(finished):
    study, out = finished
    study.variants = lambda run: ["plain", "cm-val", "ms-val"]
    infer.infer(study, RUN, 0)
    variants = score(study, RUN, 0)["variants"]
    for column, variant in {"plain": "plain", "cm-own": "cm-val", "ms-own": "ms-val"}.items():
        values = out["parts"][0]["all"][column]
        assert values == pytest.approx({key: variants[variant][key] for key in values})
        assert values["AP"] > 0


def matrix_by_hand(model, images, annotations):
    """M of Eq. 3 (60, 60) and matched proposals (60,), with NumPy and loops."""
    sums, counts = np.zeros((60, 60)), np.zeros(60)
    for image in images:
        objects = annotations[image.meta["img_id"]]
        logits = image.logits[-1].numpy().astype(np.float64)[:, :60]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for box, of_proposal in zip(image.proposals.tolist(), p, strict=True):
            ious = [iou(box, corners(o["bbox"])) for o in objects]
            if ious and max(ious) >= 0.5:
                label = objects[int(np.argmax(ious))]["category_id"] - 1
                sums[label] += of_proposal
                counts[label] += 1
    return sums / np.maximum(counts, 1)[:, None]


def corners(box):
    x, y, w, h = box
    return x, y, x + w, y + h


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def calibrations_by_hand(matrix):
    """Eq. 6 and 8 with a given matrix."""
    totals = matrix.sum(axis=0, keepdims=True)
    posterior = np.where(totals > 0, matrix / np.where(totals > 0, totals, 1), np.eye(60))
    scores = matrix.diagonal()

    def scaled(steps, calibrate):
        p = steps[-1].numpy().astype(np.float64)
        fg = calibrate(p[:, :-1])
        fg *= p[:, :-1].sum(axis=1, keepdims=True) / fg.sum(axis=1, keepdims=True)
        return torch.from_numpy(np.concatenate([fg, p[:, -1:]], axis=1)).float()

    return {
        "ms": lambda steps: scaled(steps, lambda p: p / np.where(scores > 0, scores, 1)),
        "cm": lambda steps: scaled(steps, lambda p: p @ posterior.T),
    }


@pytest.mark.parametrize("of, repeat", [(2, 0), (2, 1), (8, 0)])
def test_a_crossfit_equals_separate_inferences_with_matrices_by_hand(finished, of, repeat):
    study, out = finished
    content = json.loads((study.paths.root.parent / "data/val.json").read_text())
    ids = sorted(image["id"] for image in content["images"])
    annotations = {i: [a for a in content["annotations"] if a["image_id"] == i] for i in ids}
    division = [d for d in divisions(ids) if d.parts == of][repeat]
    detector = infer.SplitDetector(study, RUN, "val", infer.trained(study, RUN, 0))
    model = detector.model
    images = {b.meta["img_id"]: b for batch in detector.batches(ids) for b in batch}
    rows = {"ms": [], "cm": []}
    matrices = []
    for part in division.all:
        own = division.images(part)
        others = [image for i, image in images.items() if i not in own]
        matrices.append(matrix_by_hand(model, others, annotations))
        functions = calibrations_by_hand(matrices[-1])
        for i in sorted(own):
            selection = forward.detect(model, images[i], functions)
            [(boxes, rles)] = forward.segment(model, [images[i]], [selection])
            for kind, scores in selection.scores.items():
                of_image = Rows(
                    [i],
                    np.full(len(boxes), i),
                    (selection.labels.numpy() + 1).astype(np.int32),
                    infer.to_xywh(boxes),
                    scores.numpy(),
                    np.tile(np.int32(images[i].meta["ori_shape"][:2]), (len(boxes), 1)),
                    pa.array(rles, pa.binary()),
                )
                rows[kind].append(of_image.where(~np.isnan(of_image.score)))
    path = study.scale["datasets"]["v05"]["val"]
    classes_in_both = np.flatnonzero(np.all([m.any(axis=1) for m in matrices], axis=0)) + 1
    crossfit = [entry for entry in out["crossfit"] if entry["of"] == of][repeat]
    halves = [entry for entry in out["parts"] if entry["of"] == 2][2 * repeat :] if of == 2 else []
    for kind, of_kind in rows.items():
        for metric, iou_type in (("AP", "segm"), ("APb", "bbox")):
            expected = evaluate(GroundTruth(path), of_kind, iou_type=iou_type)
            assert crossfit["all"][kind][metric] == pytest.approx(expected["AP"])
            assert expected["AP"] > 0
            for part, half in zip(division.all, halves, strict=False):
                own = division.images(part)
                gt = GroundTruth(path, only=own)
                of_half = [r for r in of_kind if r.images[0] in own]
                expected = evaluate(gt, of_half, iou_type=iou_type)
                assert half["all"][f"{kind}-other"][metric] == pytest.approx(expected["AP"])
                known = [expected["classes"][c] for c in classes_in_both]
                known = [ap for ap in known if ap is not None]
                assert half["known"][f"{kind}-other"][metric] == pytest.approx(np.mean(known))
