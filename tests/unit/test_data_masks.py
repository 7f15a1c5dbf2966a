"""`WindowMasks` equals MMDetection's `BitmapMasks` exactly, through a whole training pipeline."""

import pickle

import numpy as np
import pytest
import torch
from datasets import SAMPLE, needs_sample, tiny
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures.mask import BitmapMasks, mask_target
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from pcb.data.lvis.dataset import PCBLVISDataset, seeded
from pcb.data.lvis.masks import WindowMasks

RANDOM = np.random.default_rng(0)


def blobs(n=5, height=37, width=53):
    out = np.zeros((n, height, width), np.uint8)
    for mask in out[1:]:  # the first one stays empty
        y, x = RANDOM.integers(0, height - 9), RANDOM.integers(0, width - 9)
        mask[y : y + 9, x : x + 9] = RANDOM.random((9, 9)) < 0.7
    return out


STEPS = {
    "rescale up": lambda m: m.rescale((133, 80)),
    "rescale down": lambda m: m.rescale((31, 31)),
    "resize": lambda m: m.resize((80, 19)),
    "horizontal": lambda m: m.flip(),
    "vertical": lambda m: m.flip("vertical"),
    "diagonal": lambda m: m.flip("diagonal"),
    "pad": lambda m: m.pad((160, 192), pad_val=0),
    "crop": lambda m: m.crop(np.array([3, 5, 30, 31])),
    "choose": lambda m: m[np.array([3, 1])],
    "all": lambda m: (
        m.rescale((133, 80))
        .flip()
        .crop(np.array([4, 4, 90, 70]))
        .pad((96, 96), pad_val=0)[[True, False] * 2 + [True]]
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_equals_that_of_bitmap_masks(step):
    bitmaps = blobs()
    ours = STEPS[step](WindowMasks.from_bitmaps(list(bitmaps), (37, 53)))
    theirs = STEPS[step](BitmapMasks(bitmaps, 37, 53))
    assert (ours.height, ours.width, len(ours)) == (theirs.height, theirs.width, len(theirs))
    assert np.array_equal(ours.to_ndarray(), theirs.to_ndarray())
    assert np.array_equal(ours.areas, theirs.areas)


@pytest.mark.parametrize("step", ["pad", "vertical", "diagonal", "all"])
def test_a_mask_that_touches_all_edges_keeps_its_border(step):
    bitmaps = np.zeros((5, 37, 53), np.uint8)
    bitmaps[:, [0, -1]] = bitmaps[:, :, [0, -1]] = 1
    ours = STEPS[step](WindowMasks.from_bitmaps(list(bitmaps), (37, 53)).pad((41, 59)))
    theirs = STEPS[step](BitmapMasks(bitmaps, 37, 53).pad((41, 59)))
    assert np.array_equal(ours.to_ndarray(), theirs.to_ndarray()) and ours.areas.all()


def test_a_target_that_is_half_covered_is_mask():
    bitmap = np.zeros((8, 8), np.uint8)
    bitmap[:, ::2] = 1  # each cell of a 4x4 target averages two columns, one of them 1
    box, index = np.array([[0, 0, 8, 8]], np.float32), np.array([0])
    for masks in (WindowMasks.from_bitmaps([bitmap], (8, 8)), BitmapMasks(bitmap[None], 8, 8)):
        targets = masks.crop_and_resize(box, (4, 4), index, binarize=False).masks
        assert (targets == 0.5).all()
        assert masks.crop_and_resize(box, (4, 4), index).masks.all()


def pipeline(load):
    return [
        dict(type="LoadImageFromFile"),
        dict(type=load, with_bbox=True, with_mask=True),
        dict(type="RandomChoiceResize", scales=[(222, 107), (222, 133)], keep_ratio=True),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PackDetInputs"),
    ]


def batch(load, annotations, images, positions):
    init_default_scope("mmdet")
    data = PCBLVISDataset(
        ann_file=str(annotations), data_prefix=dict(img=str(images)), pipeline=pipeline(load)
    )
    items = []
    for position in positions:
        with seeded(position):
            items.append(data[position])
    prepare = DetDataPreprocessor(mean=[0, 0, 0], std=[1, 1, 1], pad_mask=True, pad_size_divisor=32)
    return prepare(pickle.loads(pickle.dumps(pseudo_collate(items))), True)


def check_targets(annotations, images, positions, size):
    """Compare the mask targets of both ways of loading, return both batches."""
    ours = batch("LoadWindowMasks", annotations, images, positions)
    theirs = batch("LoadAnnotations", annotations, images, positions)
    assert torch.equal(ours["inputs"], theirs["inputs"])
    for a, b in zip(ours["data_samples"], theirs["data_samples"], strict=True):
        a, b = a.gt_instances, b.gt_instances
        assert torch.equal(a.bboxes, b.bboxes) and torch.equal(a.labels, b.labels)
        assert isinstance(a.masks, WindowMasks)
        assert np.array_equal(a.masks.to_ndarray(), b.masks.to_ndarray())
        indices = torch.arange(3 * len(a)) % len(a)
        boxes = a.bboxes[indices] + 4 * torch.randn(len(indices), 4)
        targets = [
            mask_target([boxes], [indices], [x.masks], ConfigDict(mask_size=size)) for x in (a, b)
        ]
        assert torch.equal(*targets) and 0 < targets[0].mean() < 1
    return ours, theirs


def test_targets_equal_those_of_the_stock_pipeline():
    folder = tiny("v05")
    batches = check_targets(folder / "train.json", folder / "images", range(0, 40, 5), 14)
    ours, theirs = (
        len(pickle.dumps([sample.gt_instances.masks for sample in batch["data_samples"]]))
        for batch in batches
    )
    assert ours < theirs / 3


@needs_sample
def test_targets_on_real_photographs():
    data = PCBLVISDataset(
        ann_file=str(SAMPLE / "lvis_val_100.json"),
        data_prefix=dict(img=str(SAMPLE / "images")),
        pipeline=[],
    )
    with_files = (11813, 6894, 6460)
    positions = [k for k in range(len(data)) if data.get_data_info(k)["img_id"] in with_files]
    assert len(positions) == 3
    check_targets(SAMPLE / "lvis_val_100.json", SAMPLE / "images", positions, 28)


def test_only_masks_that_a_box_asks_for_are_drawn(monkeypatch):
    """An LVIS image has up to 600 objects, the sampler takes at most 128 boxes of some of them."""
    bitmaps = blobs(n=9)
    ours = WindowMasks.from_bitmaps(list(bitmaps), (37, 53))
    drawn, draw = [], WindowMasks.draw
    monkeypatch.setattr(
        WindowMasks,
        "draw",
        lambda self, device="cpu": drawn.append(len(self)) or draw(self, device),
    )
    inds = np.array([7, 2, 7, 4])
    boxes = RANDOM.uniform([0, 0, 30, 20], [20, 15, 52, 36], (4, 4)).astype(np.float32)
    targets = ours.crop_and_resize(boxes, (14, 14), inds)
    theirs = BitmapMasks(bitmaps, 37, 53).crop_and_resize(boxes, (14, 14), inds)
    assert drawn == [3] and np.array_equal(targets.masks, theirs.masks)


def test_an_image_without_masks():
    empty = WindowMasks([], (20, 30)).resize((40, 60)).flip().pad((64, 64))
    assert empty.to_ndarray().shape == (0, 64, 64)
    assert len(empty.crop_and_resize(np.zeros((0, 4), np.float32), (7, 7), np.zeros(0, int))) == 0
