"""Suppression that looks at the best pairs alone keeps what mmdet's keeps; masks pasted into windows are mmdet's, their RLE is COCO's."""

from types import SimpleNamespace

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from mmengine.config import ConfigDict

from pcb.inference import multi_variant_nms
from pcb.inference.mask_rle import pack, paste, runs


def coco(masks: np.ndarray) -> list[bytes]:
    """(k, H, W) bool -> counts as pycocotools writes them."""
    return [
        rle["counts"]
        for rle in coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    ]


@pytest.mark.parametrize(
    "n, classes, per_class", [(40, 12, 12), (40, 12, 1), (150, 90, 90)]
)  # the last is over mmcv's split_thr
@pytest.mark.parametrize("max_per_img, first", [(20, 4), (20, 1), (400, 1), (-1, 4)])
def test_suppression_is_mmdets(monkeypatch, n, classes, per_class, max_per_img, first):
    monkeypatch.setattr(multi_variant_nms, "FIRST", first)
    torch.manual_seed(0)
    corner = torch.rand(n, 1, 2) * 60 + torch.rand(n, per_class, 2) * 8
    boxes = torch.cat([corner, corner + 20 + torch.rand(n, per_class, 2) * 20], dim=2)
    scores = {
        "plain": torch.rand(n, classes + 1),
        "few": torch.rand(n, classes + 1) * 0.06,
        "none": torch.zeros(n, classes + 1),
    }
    cfg = ConfigDict(
        score_thr=0.05, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=max_per_img
    )
    pairs, kept = multi_variant_nms.suppress(boxes, scores, cfg)
    assert (kept.isnan().sum(dim=0) < len(scores)).all()  # the pairs are those of the union
    for ours, table in zip(kept, scores.values(), strict=True):
        found, labels, places = multiclass_nms(
            boxes.reshape(n, -1), table, 0.05, cfg.nms, max_per_img, return_inds=True
        )
        mine = ~ours.isnan()
        order = places.argsort()
        assert torch.equal(pairs[mine], places[order]) and torch.equal(ours[mine], found[order, -1])
        assert torch.equal(pairs[mine] % classes, labels[order])
    assert (~kept[0].isnan()).sum() > 15 and kept[2].isnan().all()


@pytest.mark.parametrize("height, width", [(96, 96), (80, 120), (333, 500)])
def test_pasted_masks_are_mmdets(height, width):
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
    logits[0], logits[4], logits[5] = 50, 30, -50  # all of the image, whole columns of it, nothing
    head, meta = (
        FCNMaskHead(num_convs=0, num_classes=1, class_agnostic=True),
        {"scale_factor": (1.0, 1.0), "ori_shape": (height, width)},
    )
    expected = head._predict_by_feat_single(
        logits[:, None],
        boxes.clone(),
        None,
        meta,
        SimpleNamespace(mask_thr_binary=0.5),
        rescale=True,
    )
    sizes = torch.tensor([[height, width]]).repeat(k, 1)
    assert paste(logits.sigmoid(), boxes, sizes, 0.5) == coco(expected.numpy())
    assert expected[0].float().mean() > 0.98 and expected[4, :, 20].all() and not expected[5].any()


def test_images_of_several_sizes_are_pasted_together():
    torch.manual_seed(0)
    masks, boxes = torch.rand(6, 14, 14), torch.tensor([[5.0, 4, 40, 30]]).repeat(6, 1)
    sizes = torch.tensor([[31, 41], [64, 50], [100, 200]]).repeat(2, 1)
    together = paste(masks, boxes, sizes, 0.5)
    assert together == [
        rle
        for i in range(6)
        for rle in paste(masks[i : i + 1], boxes[i : i + 1], sizes[i : i + 1], 0.5)
    ]
    assert paste(masks[:0], boxes[:0], sizes[:0], 0.5) == []


def test_rle_is_cocos_for_any_mask():
    rng = np.random.default_rng(0)
    for density in np.linspace(0, 1, 40):
        height, width = rng.integers(1, 12, 2)
        masks = rng.random((6, height, width)) < density
        masks[0] = False
        masks[-1] = True
        size = torch.tensor([[height, width]]).repeat(len(masks), 1)
        found = runs(
            torch.from_numpy(masks),
            torch.arange(len(masks)),
            torch.zeros(len(masks), 2, dtype=torch.long),
            size[:, 0],
        )
        assert pack(*found, size.prod(dim=1).numpy()) == coco(masks)
    large = np.zeros(
        (1, 700, 1200), bool
    )  # lengths of several characters, differences of both signs
    large[0, 100:130, 20] = large[0, 600, 300:305] = large[0, 5:650, 1000:1100] = True
    assert pack(
        *runs(
            torch.from_numpy(large),
            torch.zeros(1, dtype=torch.long),
            torch.zeros(1, 2, dtype=torch.long),
            torch.tensor([700]),
        ),
        np.array([large.size]),
    ) == coco(large)
