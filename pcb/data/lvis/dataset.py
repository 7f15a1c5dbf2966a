"""Data sets as MMDetection takes them: `PCBLVISDataset` for every LVIS flavour, `SeededDataset` for exact resuming.

Both are registered in mmdet's DATASETS when this module is imported. Class names and their number come from the
annotation file; a label is the place of its category id in sorted order. The `lvis` package is not needed.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.transforms import LoadAnnotations  # noqa: F401 (registers mmdet's transforms)
from mmdet.registry import DATASETS, TRANSFORMS

from pcb.data.lvis import masks  # noqa: F401 (registers LoadWindowMasks)
from pcb.data.lvis.index import LVISIndex, Objects


@TRANSFORMS.register_module()
class LoadCachedImage(LoadImageFromFile):
    """LoadImageFromFile that keeps every decoded image, for sets that fit into memory."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cache: dict[str, dict] = {}

    def transform(self, results: dict) -> dict:
        path = results["img_path"]
        if path not in self.cache:
            loaded = super().transform({"img_path": path})
            self.cache[path] = {key: loaded[key] for key in ("img", "img_shape", "ori_shape")}
        return {**results, **self.cache[path], "img": self.cache[path]["img"].copy()}


class Rows(Sequence):
    """The data list of mmengine's BaseDataset, each entry made from the index when it is asked for: nothing is kept twice.

    `kept`: places of images in the index, in order.
    """

    def __init__(self, index: LVISIndex, kept: np.ndarray):
        self.index, self.kept = index, kept
        paths = index.image_paths
        self.paths = np.array(
            [os.fsencode(paths[number]) for number in index.ids.tolist()]
        )  # an array: workers share it

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> dict:
        row = int(self.kept[place])
        height, width = self.index.sizes[row].tolist()
        return {
            "img_path": os.fsdecode(self.paths[row]),
            "img_id": int(self.index.ids[row]),
            "seg_map_path": None,
            "height": height,
            "width": width,
            "instances": instances(self.index.objects(row)),
        }

    def where(self, keep: np.ndarray) -> Rows:
        """Those of the images for which `keep`, (number of images,) bool, is true."""
        return Rows(self.index, self.kept[keep])


@DATASETS.register_module()
class PCBLVISDataset(BaseDetDataset):
    """LVIS v0.5, v1.0 or emoji-LVIS, told apart by the annotation file alone.

    data_prefix["img"] is the image folder, flat or with COCO's subfolders. In train (`test_mode=False`) images without
    a usable annotation and images smaller than 32 pixels are left out, as MMDetection's LVIS configs do; unlike there,
    an image whose annotations are all too small to be used counts as empty. `cache_images` keeps decoded images;
    `index_cache` is a folder for the index of the annotations (see LVISIndex), which all processes then share.
    `metainfo`: classes, frequency ('r', 'c', 'f' per class). Raises `UserError` for a damaged annotation file.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: dict,
        pipeline: list,
        data_root: str = "",
        cache_images: bool = False,
        index_cache: str | None = None,
        filter_cfg: dict | None = None,
        **kwargs,
    ):
        root = Path(data_root)
        self._index = LVISIndex(root / ann_file, root / data_prefix["img"], index_cache)
        if cache_images:
            pipeline = [
                {**step, "type": "LoadCachedImage"} if step["type"] == "LoadImageFromFile" else step
                for step in pipeline
            ]
        steps = [
            TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline
        ]  # whatever the default scope
        super().__init__(
            ann_file=ann_file,
            data_prefix=data_prefix,
            data_root=data_root,
            pipeline=steps,
            serialize_data=False,
            metainfo={"classes": self._index.classes, "frequency": tuple(self._index.frequency())},
            filter_cfg={"filter_empty_gt": True, "min_size": 32}
            if filter_cfg is None
            else filter_cfg,
            **kwargs,
        )

    def load_data_list(self) -> Rows:
        return Rows(self._index, np.arange(len(self._index)))

    def filter_data(self) -> Rows:
        if self.test_mode:
            return self.data_list
        index, empty, least = (
            self._index,
            self.filter_cfg.get("filter_empty_gt", False),
            self.filter_cfg.get("min_size", 0),
        )
        return self.data_list.where(
            (index.shown | (not empty)) & (index.sizes.min(axis=1) >= least)
        )

    def get_data_info(self, idx: int) -> dict:
        """As mmengine's, which would copy deeply what is made anew each time."""
        return {**self.data_list[idx], "sample_idx": idx}

    def prepare_data(self, idx: int) -> dict | None:
        """The sample of an image. A caching pipeline reads an image's annotations only once."""
        cached = getattr(self.pipeline.transforms[0], "transform_cached", None)
        if cached is None:
            return super().prepare_data(idx)
        return cached(
            int(self._index.ids[self.data_list.kept[idx]]), lambda: self.get_data_info(idx)
        )

    def get_cat_ids(self, idx: int) -> list[int]:
        """The distinct labels of an image, without building its instances."""
        return self._index.labels_of(int(self.data_list.kept[idx]))

    @property
    def sizes(self) -> np.ndarray:
        """(images, 2) height and width of every image."""
        return self._index.sizes[self.data_list.kept]


def instances(found: Objects) -> list[dict]:
    """The usable annotations of an image in MMDetection's form: box as corners, label from 0, polygons."""
    boxes = found.bbox.copy()
    boxes[:, 2:] += boxes[:, :2]
    rows = zip(
        boxes.tolist(),
        (found.category_id - 1).tolist(),
        found.iscrowd.tolist(),
        found.segmentation,
        found.usable,
        strict=True,
    )
    return [
        {"bbox": box, "bbox_label": label, "ignore_flag": int(crowd), "mask": mask}
        for box, label, crowd, mask, good in rows
        if good
    ]


@DATASETS.register_module()
class SeededDataset:
    """Makes every sample a pure function of (seed, epoch, position), so that a resumed run sees what an unbroken one saw.

    Position i in epoch e is asked for as index `e * len(self) + i`. The random numbers of python, numpy and torch (CPU)
    are seeded around the sample and put back afterwards, in whichever process loads it.
    """

    def __init__(self, dataset: dict | torch.utils.data.Dataset, seed: int = 0):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        epoch, position = divmod(index, len(self))
        with seeded(self.seed, epoch, position):
            return self.dataset[position]

    @property
    def sizes(self) -> np.ndarray:
        """(images, 2) height and width of every image of an epoch, repeated ones as often as they are shown."""
        repeated = getattr(self.dataset, "repeat_indices", None)
        return self.dataset.sizes if repeated is None else self.dataset.dataset.sizes[repeated]

    def get_data_info(self, index: int) -> dict:
        return self.dataset.get_data_info(index % len(self))

    def get_cat_ids(self, index: int) -> list[int]:
        return self.dataset.get_cat_ids(index % len(self))


@contextmanager
def seeded(*names: object) -> Iterator[None]:
    """Random numbers that depend on `names` alone within the block; the global state is the same after it as before."""
    number = int.from_bytes(
        hashlib.sha256("/".join(map(str, names)).encode()).digest()[:4], "little"
    )
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(number)
    np.random.seed(number)
    torch.random.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
