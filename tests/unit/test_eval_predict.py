"""One pass for all variants yields what mmdet predicts with each variant's scores."""

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

import pcb.mmdet  # noqa: F401 (registers losses and heads with MMDetection)
from pcb.calibration import ConfusionMatrixCalibration, MeanScoreCalibration, NorCal
from pcb.errors import UserError
from pcb.files import sha256
from pcb.inference import forward
from pcb.inference.calibrations import score_functions
from pcb.inference.multi_variant_nms import Limits, mmdet_nms, multi_variant_nms
from pcb.inference.proposal_confusion import (
    ConfusionShards,
    ConfusionSums,
    foreground,
    load_matrix,
    match,
    write_confusion,
    write_confusion_images,
)

CLASSES = 12
BASE = Path(__file__).resolve().parents[2] / "configs/mmdet/mini_r18.py"


def tiny(steps: int):
    """The mini detector with random weights: many detections, and steps that disagree."""
    init_default_scope("mmdet")
    cfg = Config.fromfile(BASE).model
    cfg.roi_head.bbox_head.num_classes = cfg.roi_head.mask_head.num_classes = CLASSES
    cfg.test_cfg.rcnn.max_per_img = 20
    if steps > 1:
        cfg.roi_head.bbox_head.loss_cls = {"type": "PCBCrossEntropyLoss", "num_classes": CLASSES}
        cfg.roi_head.update(type="IterativeRoIHead", hidden=16)
    torch.manual_seed(steps)
    model = MODELS.build(cfg).eval()
    for layer, spread in (
        (model.roi_head.bbox_head.fc_cls, 0.5),
        (model.roi_head.bbox_head.fc_reg, 0.5),
    ):
        torch.nn.init.normal_(layer.weight, std=spread)
    return model


@pytest.fixture(scope="module", params=[1, 3], ids=["plain head", "iterative head"])
def model(request):
    torch.set_num_threads(1)
    return tiny(request.param)


@pytest.fixture(scope="module")
def items():
    """Three 96x96 images, and one of another size that was 120x80 before its resize."""
    rng = np.random.default_rng(0)
    out = []
    for i, (shape, scale) in enumerate([((96, 96), 1.0)] * 3 + [((144, 96), 1.2)]):
        original = (int(shape[0] / scale), int(shape[1] / scale))
        meta = {
            "img_id": 10 + i,
            "img_shape": shape,
            "ori_shape": original,
            "scale_factor": (scale, scale),
        }
        pixels = torch.from_numpy(rng.integers(0, 255, (3, *shape), dtype=np.uint8))
        out.append({"inputs": pixels, "data_samples": DetDataSample(metainfo=meta)})
    return out


def run(model, items, variants, matrices=None, image_counts=()):
    """Per image: (selection, boxes, masks as RLE), in batches of images of one shape."""
    functions, out = score_functions(model, variants, matrices, image_counts), []
    for batch in forward.by_shape(items, 8):
        images = forward.forward(model, batch)
        selections = [forward.detect(model, image, functions) for image in images]
        masks = forward.segment(model, images, selections)
        out += [(s, *of_image) for s, of_image in zip(selections, masks, strict=True)]
    return out


def assert_is(ours, reference, variant):
    """What a variant selects has exactly the reference's boxes, labels, scores and masks."""
    selection, boxes, rles = ours
    scores = selection.scores[variant]
    mine = (~scores.isnan()).nonzero().squeeze(1)
    mine = mine[scores[mine].argsort(descending=True, stable=True)]
    assert len(mine) == len(reference) > 5
    assert torch.equal(scores[mine], reference.scores)
    assert torch.equal(selection.labels[mine], reference.labels)
    assert torch.equal(boxes[mine], reference.bboxes)
    theirs = coco_mask.encode(
        np.asfortranarray(reference.masks.numpy().transpose(1, 2, 0).astype(np.uint8))
    )
    assert [rles[i] for i in mine.tolist()] == [rle["counts"] for rle in theirs]


def mmdet_predicts(model, items):
    """mmdet's own prediction of each image."""
    samples = []
    for batch in forward.by_shape(items, 8):
        samples += model.test_step(pseudo_collate([copy.deepcopy(item) for item in batch]))
    return [sample.pred_instances for sample in samples]


def test_boxes_are_rounded_as_mmdet_rounds_them():
    """It moves class c by c times the largest coordinate + 1: here by 1048131, just below 2^20.

    There float32 has a step of 1/16 pixel, which decides on overlaps near the threshold.
    """
    count, label, g = 200, 786, torch.Generator().manual_seed(0)
    corner, size = (
        400 * torch.rand(count, 2, generator=g),
        8 + 12 * torch.rand(count, 2, generator=g),
    )
    moved = torch.stack([corner[:, 0] + size[:, 0] / 3, corner[:, 1]], 1)  # an IoU of 1/2
    pairs = [torch.cat([xy, xy + size], 1) for xy in (corner, moved)]
    boxes = torch.cat([*pairs, torch.tensor([[1300, 700, 1332.5, 750]])])[:, None]
    scores = torch.zeros(len(boxes), label + 15)
    scores[:-1, label] = torch.rand(2 * count, generator=g)
    scores[-1, 0] = 1.0
    nms = {"type": "nms", "iou_threshold": 0.5}
    cfg = ConfigDict(score_thr=0.0, nms=nms, max_per_img=1000)
    found, _ = multi_variant_nms(boxes, {"plain": scores}, cfg)
    assert torch.equal(found, mmdet_nms(boxes, scores, cfg).nonzero().squeeze(1))
    assert count / 2 < len(found) < 2 * count


def test_without_a_limit_an_image_the_looser_limits_still_hold():
    g = torch.Generator().manual_seed(0)
    corner = 90 * torch.rand(40, 2, generator=g)
    boxes, scores = torch.cat([corner, corner + 8], 1)[:, None], torch.rand(40, 4, generator=g)
    cfg = ConfigDict(score_thr=0.8, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=-1)
    everything, _ = multi_variant_nms(boxes, {"plain": scores}, cfg)
    assert torch.equal(everything, mmdet_nms(boxes, scores, cfg).nonzero().squeeze(1))
    looser, kept = multi_variant_nms(boxes, {"plain": scores}, cfg, Limits(0.1, 60))
    assert len(looser) == 60 > len(everything) and 0.1 < kept.min() < 0.8


def test_batches_hold_one_shape_and_keep_the_order(items):
    groups = forward.by_shape(items, 2)
    ids = [[item["data_samples"].img_id for item in group] for group in groups]
    assert ids == [[10, 11], [12], [13]]


def test_plain_equals_mmdets_predict(model, items):
    reference = mmdet_predicts(model, items)
    for ours, theirs in zip(run(model, items, ["plain"]), reference, strict=True):
        assert_is(ours, theirs, "plain")


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_variant_is_what_a_head_using_that_step_predicts(items, step):
    model = tiny(3)
    ours = run(model, items, ["plain", f"step{step}"])
    model.roi_head.test_cls_step = step - 1
    reference = mmdet_predicts(model, items)
    for mine, theirs in zip(ours, reference, strict=True):
        assert_is(mine, theirs, f"step{step}")


@pytest.mark.parametrize("column", ["cm-val", "ms-val", "cm-train", "norcal-0.3", "norcal-1"])
def test_a_calibrated_variant_equals_mmdets_predict_with_calibrated_scores(items, column):
    model = tiny(3)
    columns = ["plain", "step1", "cm-val", "ms-val", "cm-train", "norcal-0.3", "norcal-1"]
    rng = np.random.default_rng(1)
    matrices = {
        source: torch.from_numpy(rng.dirichlet(np.full(CLASSES, 0.3), CLASSES))
        for source in ("val", "train")
    }
    counts = rng.integers(1, 200, CLASSES).tolist()
    ours = run(model, items, columns, matrices, counts)
    loss = model.roi_head.bbox_head.loss_cls
    calibrate = {
        "cm-val": ConfusionMatrixCalibration(matrices["val"]),
        "ms-val": MeanScoreCalibration(matrices["val"].diagonal()),
        "cm-train": ConfusionMatrixCalibration(matrices["train"]),
        "norcal-0.3": NorCal(torch.tensor(counts), 0.3),
        "norcal-1": NorCal(torch.tensor(counts), 1.0),
    }[column]
    loss.get_activation = lambda logits: calibrate(logits.softmax(dim=-1))
    reference = mmdet_predicts(model, items)
    for mine, theirs in zip(ours, reference, strict=True):
        assert_is(mine, theirs, column)
        assert not torch.equal(mine[0].scores[column], mine[0].scores["plain"])


def test_masks_of_the_union_equal_those_of_each_variant_alone(items):
    model, variants = tiny(3), ["plain", "step1", "step2"]
    union = run(model, items, variants)
    for variant in variants:
        pairs = zip(union, run(model, items, [variant]), strict=True)
        for (selection, boxes, rles), (alone, own_boxes, own_rles) in pairs:
            mine = (~selection.scores[variant].isnan()).nonzero().squeeze(1)
            assert len(mine) < len(selection.labels)  # the variants differ
            assert torch.equal(selection.labels[mine], alone.labels)
            assert torch.equal(boxes[mine], own_boxes)
            assert [rles[i] for i in mine.tolist()] == own_rles


def test_nothing_detected_gives_empty_columns(model, items):
    cfg = model.roi_head.test_cfg
    threshold, cfg.score_thr = cfg.score_thr, 1.1
    try:
        for selection, boxes, rles in run(model, items, ["plain"]):
            assert len(selection.labels) == len(selection.scores["plain"]) == 0
            assert len(boxes) == len(rles) == 0
    finally:
        cfg.score_thr = threshold


def test_the_confusion_matrix_equals_that_of_loops(tmp_path):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    head, total = tiny(1).roi_head.bbox_head, [ConfusionSums(CLASSES), ConfusionSums(CLASSES)]
    expected, counts = np.zeros((CLASSES, CLASSES)), np.zeros(CLASSES)
    for i in range(4):
        corner, side = rng.uniform(0, 50, (3, 2)), rng.uniform(10, 40, (3, 2))
        truth = np.concatenate([corner, corner + side], 1)
        proposals = truth[rng.integers(3, size=40)] + rng.normal(0, 4, (40, 4))
        labels = rng.integers(0, CLASSES - 1, 3)  # the last class is never seen
        logits = torch.randn(40, CLASSES + 1)
        for k, box in enumerate(proposals):
            ious = [iou(box, other) for other in truth]
            if max(ious) >= 0.5:
                z = np.exp(logits[k, :CLASSES].double().numpy())
                expected[labels[np.argmax(ious)]] += z / z.sum()
                counts[labels[np.argmax(ious)]] += 1
        rows, of = match(*map(torch.as_tensor, (proposals, truth, labels)))
        total[i // 2].add(of, foreground(head, logits[rows]), image=i + 1)
    shards, image_ids = ConfusionShards(tmp_path, "abc", CLASSES), [[1, 2], [3, 4]]
    for ids, sums in zip(image_ids, total, strict=True):
        assert not shards.has(ids)
        shards.save(ids, sums)
        assert shards.has(ids) and not shards.has([*ids, 9])
        assert not ConfusionShards(tmp_path, "other", CLASSES).has(ids)
    write_confusion(tmp_path / "confusion.npz", shards.total(image_ids), "sha", np.float64)
    write_confusion_images(tmp_path / "images.npz", shards.total(image_ids))
    with np.load(tmp_path / "images.npz") as found:
        assert set(found["image"]) == {1, 2, 3, 4}
        summed = np.zeros_like(expected)
        np.add.at(summed, found["label"], found["image_sums"].astype(float))
        np.testing.assert_allclose(summed, expected, rtol=1e-3, atol=1e-3)
    expected /= np.maximum(counts, 1)[:, None]
    with np.load(tmp_path / "confusion.npz") as found:
        np.testing.assert_allclose(found["matrix"], expected, atol=1e-6)
        np.testing.assert_array_equal(found["seen"], counts)
        assert counts.sum() > 50 and counts[-1] == 0 and not found["matrix"][-1].any()
        biases = [
            sum((m[i, j] - m[j, i]) ** 2 for i in range(len(m)) for j in range(len(m))) ** 0.5
            for m in (expected, expected[np.ix_(counts > 0, counts > 0)])
        ]
        assert [found["pwb"], found["pwb_seen"]] == pytest.approx(biases, abs=1e-5)
        assert found["pwb_raw"] == pytest.approx(biases[0], abs=1e-5)


def test_the_matrix_of_another_checkpoint_is_refused(tmp_path):
    path, sums = tmp_path / "confusion-train.npz", ConfusionSums(2)
    with pytest.raises(UserError, match=r"confusion-train\.npz does not exist") as error:
        load_matrix(path, "sha", "pcb confusion RUN")
    assert error.value.fix == "run `pcb confusion RUN` first"
    sums.add(torch.tensor([0, 1, 1]), torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]]))
    write_confusion(path, sums, "sha", np.float64)
    assert torch.equal(load_matrix(path, "sha", "", sha256(path)), torch.from_numpy(sums.matrix))
    with pytest.raises(UserError, match="of another checkpoint"):
        load_matrix(path, "another", "")
    with pytest.raises(UserError, match="not what was recorded"):
        load_matrix(path, "sha", "", "the digest of another file")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load_matrix(path, "sha", "")


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0) * max(height, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def test_an_iou_of_exactly_one_half_is_a_match():
    truth = torch.tensor([[0.0, 0, 4, 4]])
    proposals = torch.tensor([[0.0, 0, 4, 2], [0, 0, 4, 1.9], [0, 0, 4, 4]])
    rows, classes = match(proposals, truth, torch.tensor([7]))
    assert rows.tolist() == [0, 2] and classes.tolist() == [7, 7]


def test_no_proposal_or_no_object_adds_nothing():
    some, none = torch.rand(3, 4), torch.zeros(0, 4)
    labels = torch.tensor([0, 1, 2])
    for proposals, boxes, of in ((none, some, labels), (some, none, labels[:0])):
        rows, classes = match(proposals, boxes, of)
        assert len(rows) == len(classes) == 0
