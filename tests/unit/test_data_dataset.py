"""The mmdet data sets, and repeat factors that agree with mmengine's ClassBalancedDataset."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import SAMPLE, by_hand, needs_sample, tiny
from mmdet.registry import DATASETS
from mmengine.dataset import ClassBalancedDataset
from PIL import Image

from pcb.data.lvis.dataset import PCBLVISDataset, SeededDataset
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.sampling import repeat_factors
from pcb.errors import UserError

PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]


def build(dataset="v05", split="train", **options):
    config = dict(
        type="PCBLVISDataset",
        ann_file=str(tiny(dataset) / f"{split}.json"),
        data_prefix=dict(img=str(tiny(dataset) / "images")),
        pipeline=PIPELINE,
    )
    return DATASETS.build(config | options)


@pytest.mark.parametrize("dataset", ["v05", "v1"])
def test_labels_boxes_and_masks_are_those_of_the_file(dataset):
    data = build(dataset, "val", test_mode=True)
    index = LVISIndex(tiny(dataset) / "val.json", tiny(dataset) / "images")
    assert data.metainfo["classes"] == index.classes
    assert data.metainfo["frequency"] == tuple(index.frequency())
    assert len(data) == len(index.images)
    for position in range(0, len(data), 5):
        instances = data.get_data_info(position)["instances"]
        annotations = index.by_image[index.images[position]["id"]]
        categories = [annotation["category_id"] for annotation in annotations]
        polygons = [annotation["segmentation"] for annotation in annotations]
        assert [i["bbox_label"] + 1 for i in instances] == categories
        assert [[p.tolist() for p in i["mask"]] for i in instances] == polygons
        x, y, w, h = annotations[0]["bbox"]
        assert instances[0]["bbox"] == [x, y, x + w, y + h]
    sample = data[0]["data_samples"].gt_instances
    assert len(sample.labels) == len(sample.masks) == len(sample.bboxes) > 0


def test_images_without_usable_annotations_are_dropped_in_training_only():
    index = LVISIndex(tiny("v05") / "train.json")
    images = zip(index.images, index.labels, strict=True)
    with_labels = [image["id"] for image, labels in images if labels]
    data = build()
    assert [data.get_data_info(i)["img_id"] for i in range(len(data))] == with_labels
    assert len(with_labels) == 62
    assert len(build(test_mode=True)) == len(build(filter_cfg={})) == 64


@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.08, 0.5])
def test_repeat_factors_equal_those_of_mmengine(threshold):
    balanced = ClassBalancedDataset(build(), oversample_thr=threshold)
    factors = repeat_factors(LVISIndex(tiny("v05") / "train.json").labels, threshold)
    theirs = balanced._get_repeat_factors(balanced.dataset, threshold)
    assert theirs == pytest.approx(factors.images, abs=1e-12)
    assert balanced.repeat_indices == [i for i, n in enumerate(factors.repeats) for _ in range(n)]
    assert factors.summary()["epoch"] == len(balanced)


def test_repeat_factors_by_hand_ignore_images_without_labels():
    labels = [(0,), (0, 1), (0,), (0,)]
    factors = repeat_factors(labels, 0.5)
    assert factors.classes == {0: 1.0, 1: pytest.approx(2**0.5)}
    assert factors.images == [1.0, factors.classes[1], 1.0, 1.0] and factors.repeats == [1, 2, 1, 1]
    assert repeat_factors([(), *labels[:2], (), *labels[2:], ()], 0.5) == factors


def test_the_summary_counts_the_classes_that_are_repeated():
    few = repeat_factors([(0,), (0, 1), (0,), (0,)], 0.5)
    expected = {"threshold": 0.5, "images": 4, "epoch": 5, "classes_repeated": 1}
    assert few.summary() == {**expected, "largest": few.classes[1]}
    none = {"threshold": 0.5, "images": 0, "epoch": 0, "classes_repeated": 0, "largest": 1.0}
    assert repeat_factors([(), ()], 0.5).summary() == none


@needs_sample
def test_real_annotations():
    data = PCBLVISDataset(
        ann_file=str(SAMPLE / "lvis_val_100.json"),
        data_prefix=dict(img=str(SAMPLE / "images")),
        pipeline=PIPELINE,
    )
    index = LVISIndex(SAMPLE / "lvis_val_100.json", SAMPLE / "images")
    assert len(data.metainfo["classes"]) == 1230
    assert len(data) == sum(bool(labels) for labels in index.labels) == 93
    theirs = ClassBalancedDataset(data, oversample_thr=0.05)._get_repeat_factors(data, 0.05)
    assert theirs == pytest.approx(repeat_factors(index.labels, 0.05).images, abs=1e-12)
    position = next(i for i in range(len(data)) if data.get_data_info(i)["img_id"] == 11813)
    sample = data[position]
    assert sample["inputs"].shape[0] == 3 and len(sample["data_samples"].gt_instances.masks) > 0


def test_seeded_samples_depend_on_seed_epoch_and_position_alone():
    data = SeededDataset(
        dict(
            type="PCBLVISDataset",
            ann_file=str(tiny("v05") / "train.json"),
            data_prefix=dict(img=str(tiny("v05") / "images")),
            pipeline=PIPELINE,
        ),
        seed=3,
    )
    n = len(data)
    first = [torch.equal(data[i]["inputs"], data[n + i]["inputs"]) for i in range(20)]
    assert not all(first) and any(first), "another epoch flips other images"
    random.seed(1), np.random.seed(2), torch.manual_seed(4)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    backwards = [data[5 * n + i]["inputs"] for i in reversed(range(20))]
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    for i, inputs in enumerate(reversed(backwards)):
        assert torch.equal(inputs, data[5 * n + i]["inputs"])
    assert data.get_cat_ids(2 * n + 3) == data.dataset.get_cat_ids(3)
    assert data.metainfo == data.dataset.metainfo


def test_cached_images_are_equal_and_never_modified():
    plain, cached = SeededDataset(build()), SeededDataset(build(cache_images=True))
    for index in (0, 1, 0, len(plain)):
        assert torch.equal(plain[index]["inputs"], cached[index]["inputs"])
    assert plain[0]["data_samples"].metainfo == cached[0]["data_samples"].metainfo


def test_small_images_are_dropped_in_training(tmp_path):
    file = by_hand(tmp_path / "a.json", lambda c: c["images"][0].update(width=31))
    data = PCBLVISDataset(ann_file=str(file), data_prefix=dict(img=str(tmp_path)), pipeline=[])
    assert [data.get_data_info(i)["img_id"] for i in range(len(data))] == [9]


def replaced(path):
    with Image.open(path) as image:
        image.load()
        image.resize((64, 80)).save(path)


DAMAGE = {
    "cannot be read: No such file or directory": lambda path: path.unlink(),
    "is empty": lambda path: path.write_bytes(b""),
    "is truncated": lambda path: path.write_bytes(path.read_bytes()[:-900]),
    "is a web page, no image": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "has 64x80 pixels, but 96x96 in the annotation file": replaced,
}


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("options", [{}, {"cache_images": True}, {"test_mode": True}])
def test_an_image_that_changes_during_a_run_is_named(tmp_path, fault, options):
    folder = shutil.copytree(tiny("v05"), tmp_path / "v05")
    file, images = folder / "train.json", folder / "images"
    data = build(ann_file=str(file), data_prefix=dict(img=str(images)), **options)
    info = data.get_data_info(5)
    assert data[5]["inputs"].shape[-2:] == (96, 96)
    assert data[4] is not None
    DAMAGE[fault](Path(info["img_path"]))
    if options.get("cache_images"):  # the picture is in memory
        assert data[5]["inputs"].shape[-2:] == (96, 96)
        data = build(ann_file=str(file), data_prefix=dict(img=str(images)), **options)
    expected = f"{info['img_path']} {fault} (image {info['img_id']} of {file})"
    with pytest.raises(UserError) as caught:
        data[5]
    assert caught.value.what == expected
    assert caught.value.fix.startswith("restore this file, then run the command again")


def test_an_error_in_a_worker_is_that_of_its_process(tmp_path):
    folder = shutil.copytree(tiny("v05"), tmp_path / "v05")
    data = build(ann_file=str(folder / "val.json"), data_prefix=dict(img=str(folder / "images")))
    Path(data.get_data_info(0)["img_path"]).unlink()
    with pytest.raises(UserError) as here:
        data[0]
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)
    with pytest.raises(UserError) as there:
        next(iter(loader))
    assert (there.value.what, there.value.fix) == (here.value.what, here.value.fix)
    assert str(there.value) == str(here.value)


def test_a_fault_of_a_transform_names_image_and_annotations():
    data = build(pipeline=[*PIPELINE[:3], lambda results: 1 / 0])
    numbers = data._index.objects(0).id.tolist()
    with pytest.raises(RuntimeError, match=rf"image 100001 of .*annotations {numbers[0]}.*zero"):
        data[0]


def test_generator_index_and_checks_need_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['lvis'] = None;"
        "import pcb.data.lvis.index, pcb.data.lvis.check, pcb.data.lvis.sampling;"
        "import pcb.synthetic.generate, pcb.synthetic.contact_sheet"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
