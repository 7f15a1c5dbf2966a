"""The fast NMS equals mmdet's, and the fast mask encoder mmdet's pasting and pycocotools' RLE."""

from types import SimpleNamespace

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from mmengine.config import ConfigDict

from pcb.inference import multi_variant_nms as module
from pcb.inference.mask_rle import compress_runs, encode_masks, find_runs
from pcb.inference.multi_variant_nms import greedy_nms, multi_variant_nms

SIZES = [(40, 12, 12), (40, 12, 1), (150, 90, 90)]  # the last is over mmcv's split_thr


def coco_counts(masks: np.ndarray) -> list[bytes]:
    """(k, H, W) bool -> counts as pycocotools writes them."""
    pixels = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    return [rle["counts"] for rle in coco_mask.encode(pixels)]


def our_counts(masks: np.ndarray) -> list[bytes]:
    """The same by our encoder, where each window is the whole image."""
    k, height, width = masks.shape
    corner, heights = torch.zeros(k, 2, dtype=torch.long), torch.full((k,), height)
    runs = find_runs(torch.from_numpy(masks), torch.arange(k), corner, heights)
    return compress_runs(*runs, np.full(k, height * width))


@pytest.mark.parametrize("n, classes, boxes_each", SIZES)
@pytest.mark.parametrize("max_per_img, first", [(20, 4), (20, 1), (400, 1), (-1, 4)])
def test_multi_variant_nms_selects_what_mmdet_selects(
    monkeypatch, n, classes, boxes_each, max_per_img, first
):
    monkeypatch.setattr(module, "FIRST", first)
    torch.manual_seed(0)
    corner = torch.rand(n, 1, 2) * 60 + torch.rand(n, boxes_each, 2) * 8
    boxes = torch.cat([corner, corner + 20 + torch.rand(n, boxes_each, 2) * 20], dim=2)
    scores = {
        "plain": torch.rand(n, classes + 1),
        "few": torch.rand(n, classes + 1) * 0.06,
        "none": torch.zeros(n, classes + 1),
    }
    nms = {"type": "nms", "iou_threshold": 0.5}
    cfg = ConfigDict(score_thr=0.05, nms=nms, max_per_img=max_per_img)
    pairs, selected = multi_variant_nms(boxes, scores, cfg)
    assert (selected.isnan().sum(dim=0) < len(scores)).all()  # the pairs are those of the union
    for ours, table in zip(selected, scores.values(), strict=True):
        expected, labels, indices = multiclass_nms(
            boxes.reshape(n, -1), table, 0.05, cfg.nms, max_per_img, return_inds=True
        )
        mine, order = ~ours.isnan(), indices.argsort()
        assert torch.equal(pairs[mine], indices[order])
        assert torch.equal(ours[mine], expected[order, -1])
        assert torch.equal(pairs[mine] % classes, labels[order])
    assert (~selected[0].isnan()).sum() > 15 and selected[2].isnan().all()


def test_a_score_equal_to_the_threshold_is_not_detected():
    boxes = torch.tensor([[[0.0, 0, 9, 9]], [[20, 20, 29, 29]], [[40, 40, 49, 49]]])
    scores = torch.tensor([[0.25, 0.0], [0.5, 0.0], [0.125, 0.0]])
    nms = {"type": "nms", "iou_threshold": 0.5}
    cfg = ConfigDict(score_thr=0.25, nms=nms, max_per_img=10)
    assert multi_variant_nms(boxes, {"plain": scores}, cfg)[0].tolist() == [1]
    assert multiclass_nms(boxes.squeeze(1), scores, 0.25, nms, 10)[0][:, -1].tolist() == [0.5]


def test_ties_of_nms():
    """An IoU equal to the threshold suppresses nothing; of equal scores the first wins."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1], [8, 8, 10, 9], [8, 8, 10, 9]])
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.5]])
    labels, shift = torch.zeros(4, dtype=torch.long), torch.tensor([11.0])
    kept = greedy_nms(boxes, labels, shift, scores, scores > 0, iou_threshold=0.5)
    assert kept.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("height, width", [(96, 96), (80, 120), (333, 500)])
def test_encoded_masks_are_those_that_mmdet_pastes(height, width, threshold):
    torch.manual_seed(0)
    size, k = torch.tensor([width, height]), 40
    corner = torch.rand(k, 2) * size * 0.8
    boxes = torch.cat([corner, (corner + torch.rand(k, 2) * size * 0.6).minimum(size)], dim=1)
    boxes[:5] = torch.tensor(
        [
            [0, 0, width, height],
            [width, 5, width, 30],
            [3, 10, 50, 10],
            [0, 0, 0, 0],
            [10, 0, 30, height],
        ]
    )
    logits = torch.randn(k, 14, 14) * 3
    logits[0], logits[4], logits[5] = 50, 30, -50  # the whole image, whole columns, nothing
    head = FCNMaskHead(num_convs=0, num_classes=1, class_agnostic=True)
    expected = head._predict_by_feat_single(
        logits[:, None],
        boxes.clone(),
        None,
        {"scale_factor": (1.0, 1.0), "ori_shape": (height, width)},
        SimpleNamespace(mask_thr_binary=threshold),
        rescale=True,
    )
    sizes = torch.tensor([[height, width]]).repeat(k, 1)
    found = encode_masks(logits.sigmoid(), boxes, sizes, threshold)
    assert found == coco_counts(expected.numpy())
    assert expected[0].float().mean() > 0.98
    assert expected[4, :, 20].all() and not expected[5].any()


def test_images_of_several_sizes_can_be_encoded_together():
    torch.manual_seed(0)
    masks, boxes = torch.rand(6, 14, 14), torch.tensor([[5.0, 4, 40, 30]]).repeat(6, 1)
    sizes = torch.tensor([[31, 41], [64, 50], [100, 200]]).repeat(2, 1)
    together = encode_masks(masks, boxes, sizes, 0.5)
    for i in range(6):
        assert [together[i]] == encode_masks(masks[[i]], boxes[[i]], sizes[[i]], 0.5)
    assert encode_masks(masks[:0], boxes[:0], sizes[:0], 0.5) == []


def test_counts_are_those_of_pycocotools_for_any_mask():
    rng = np.random.default_rng(0)
    for density in np.linspace(0, 1, 40):
        masks = rng.random((6, *rng.integers(1, 12, 2))) < density
        masks[0], masks[-1] = False, True
        assert our_counts(masks) == coco_counts(masks)


def test_counts_of_several_characters_are_those_of_pycocotools():
    masks = np.zeros((1, 700, 1200), bool)  # with differences of both signs
    masks[0, 100:130, 20] = masks[0, 600, 300:305] = masks[0, 5:650, 1000:1100] = True
    assert our_counts(masks) == coco_counts(masks)
