"""MMDetection data sets: `PCBLVISDataset` for LVIS, `SeededDataset` for exact resuming.

Importing this module registers both in mmdet's DATASETS. Class names and their number come from the
annotation file; label k is category id k + 1. The `lvis` package is not needed.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Container, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.transforms import LoadAnnotations  # noqa: F401 (registers mmdet's transforms)
from mmdet.registry import DATASETS, TRANSFORMS

from pcb.data.lvis import masks  # noqa: F401 (registers LoadWindowMasks)
from pcb.data.lvis.annotations import MIN_SIDE
from pcb.data.lvis.image_files import look_at, whole_file_fault
from pcb.data.lvis.index import LVISIndex, Objects
from pcb.errors import UserError
from pcb.formatting import examples


@TRANSFORMS.register_module()
class LoadCachedImage(LoadImageFromFile):
    """`LoadImageFromFile` that keeps every decoded image, for data sets that fit into memory."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cache: dict[str, dict] = {}

    def transform(self, results: dict) -> dict:
        """Add the image at `results["img_path"]` to a copy of `results`."""
        path = results["img_path"]
        if path not in self.cache:
            loaded = cast(dict, super().transform({"img_path": path}))
            self.cache[path] = {key: loaded[key] for key in ("img", "img_shape", "ori_shape")}
        return {**results, **self.cache[path], "img": self.cache[path]["img"].copy()}


class LazyDataList:
    """The data list of mmengine's `BaseDataset`, each entry made from the index on access.

    Args:
        index: Index of the annotation file.
        rows: (images,) int: the index's rows that belong to the data set, in order.
    """

    def __init__(self, index: LVISIndex, rows: np.ndarray):
        self.index, self.rows = index, rows
        paths = index.image_paths
        # An array of bytes, unlike a list of objects, stays shared with forked workers.
        self.paths = np.array([os.fsencode(paths[image_id]) for image_id in index.ids.tolist()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict:
        row = int(self.rows[position])
        height, width = self.index.sizes[row].tolist()
        return {
            "img_path": os.fsdecode(self.paths[row]),
            "img_id": int(self.index.ids[row]),
            "seg_map_path": None,
            "height": height,
            "width": width,
            "instances": mmdet_instances(self.index.objects(row)),
        }

    def where(self, mask: np.ndarray) -> LazyDataList:
        """Return the images for which `mask`, (images,) bool, is true."""
        return LazyDataList(self.index, self.rows[mask])


@DATASETS.register_module()
class PCBLVISDataset(BaseDetDataset):
    """Data in LVIS's or COCO's format.

    In training (`test_mode=False`) images without a usable annotation and images smaller than 32
    pixels are dropped, as in MMDetection's LVIS configs; unlike there, an image whose annotations
    are all too small to be used counts as empty. `metainfo` has `classes` and `frequency` ('r', 'c'
    or 'f' of each class).

    Args:
        ann_file: Annotation file, below `data_root`.
        data_prefix: Image folder under `img`, flat or with COCO's subfolders.
        pipeline: Transforms, built or as configs.
        data_root: Folder of both.
        cache_images: Keep decoded images in memory.
        index_cache: Folder for the index of the annotations, which all processes then share.
        filter_cfg: `filter_empty_gt` and `min_size` (pixels); None: as above.
        **kwargs: Further arguments of `BaseDetDataset`.

    Raises:
        UserError: The annotation file is missing or damaged.
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
        # Built here, since Compose would look transforms up in the default scope.
        steps = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        if filter_cfg is None:
            filter_cfg = {"filter_empty_gt": True, "min_size": MIN_SIDE}
        super().__init__(
            ann_file=ann_file,
            data_prefix=data_prefix,
            data_root=data_root,
            pipeline=steps,
            serialize_data=False,
            metainfo={"classes": self._index.classes, "frequency": tuple(self._index.frequency())},
            filter_cfg=filter_cfg,
            **kwargs,
        )

    @property
    def _rows(self) -> np.ndarray:
        """(images,) int: rows of the index that belong to the data set."""
        return cast(LazyDataList, self.data_list).rows

    def load_data_list(self) -> Any:
        """Return all images of the annotation file."""
        return LazyDataList(self._index, np.arange(len(self._index)))

    def filter_data(self) -> Any:
        """Return the images that the data set uses: in testing all."""
        images = cast(LazyDataList, self.data_list)
        if self.test_mode:
            return images
        config: dict = self.filter_cfg or {}
        mask = self._index.sizes.min(axis=1) >= config.get("min_size", 0)
        if config.get("filter_empty_gt", False):
            mask &= self._index.has_usable
        return images.where(mask)

    def get_data_info(self, idx: int) -> dict:
        """Return an image's entry. mmengine would copy it deeply; here it is new each time."""
        return {**self.data_list[idx], "sample_idx": idx}

    def prepare_data(self, idx: int) -> dict | None:
        """Return an image's sample. A caching pipeline reads an image's annotations only once.

        Raises:
            UserError: The image was deleted, damaged or replaced after `pcb check-data`.
        """
        first = self.pipeline.transforms[0]
        cached = getattr(first, "transform_cached", None)
        try:
            if cached is not None:
                number = int(self._index.ids[self._rows[idx]])
                sample = cached(number, lambda: self._described(idx))
            else:
                decoded = getattr(first, "cache", {})
                sample = self.pipeline(self._described(idx, decoded))
        except UserError:
            raise
        except Exception as error:
            info = self.get_data_info(idx)
            path = Path(info["img_path"])
            if fault := look_at({path: (info["height"], info["width"])}, deep=True).faults:
                raise self._fault(info, fault[path].what) from error
            numbers = self._index.objects(int(self._rows[idx])).id.tolist()
            where = f"{self._name(info)}, {path}, with the annotations {examples(numbers)}"
            raise RuntimeError(f"a transform failed on {where}: {error}") from error
        if sample is None:
            return None
        height, width = self._index.sizes[self._rows[idx]].tolist()
        shape = getattr(sample["data_samples"], "ori_shape", None)
        if shape is not None and tuple(shape) != (height, width):
            size = f"has {shape[1]}x{shape[0]} pixels, but {width}x{height}"
            raise self._fault(self.get_data_info(idx), f"{size} in the annotation file")
        return sample

    def _described(self, idx: int, decoded: Container[str] = ()) -> dict:
        """An image's entry; its file must be whole, unless it is `decoded` already."""
        info = self.get_data_info(idx)
        path = info["img_path"]
        if path not in decoded and (fault := whole_file_fault(Path(path))):
            raise self._fault(info, fault.what)
        return info

    def _name(self, info: dict) -> str:
        return f"image {info['img_id']} of {self._index.path}"

    def _fault(self, info: dict, fault: str) -> UserError:
        return UserError(
            f"{info['img_path']} {fault} ({self._name(info)})",
            "restore this file, then run the command again: what was saved before is kept",
        )

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the distinct labels of an image without building its instances."""
        return self._index.labels_of(int(self._rows[idx]))

    def all_labels_of(self, idx: int) -> list[int]:
        """Return the distinct labels of an image, of annotations too small to train on as well."""
        objects = self._index.objects(int(self._rows[idx]))
        return sorted({label - 1 for label in objects.category_id.tolist()})

    @property
    def sizes(self) -> np.ndarray:
        """(images, 2) int32 height and width of every image, in pixels."""
        return self._index.sizes[self._rows]


def mmdet_instances(objects: Objects) -> list[dict]:
    """Return the usable annotations as MMDetection's instances: corners, label from 0, polygons."""
    boxes = objects.bbox.copy()
    boxes[:, 2:] += boxes[:, :2]
    rows = zip(
        boxes.tolist(),
        (objects.category_id - 1).tolist(),
        objects.segmentation,
        objects.usable,
        strict=True,
    )
    return [
        {"bbox": box, "bbox_label": label, "ignore_flag": 0, "mask": segmentation}
        for box, label, segmentation, usable in rows
        if usable
    ]


@DATASETS.register_module()
class SeededDataset:
    """Make every sample a function of (seed, epoch, position) alone.

    A resumed run then gets the samples of an uninterrupted one. Position i in epoch e has the index
    `e * len(self) + i`. The random states of python, numpy and torch (CPU) are seeded around the
    sample and restored afterwards, in whichever process loads it.

    Args:
        dataset: A data set or its config.
        seed: Seed of the run.
    """

    def __init__(self, dataset: dict | torch.utils.data.Dataset, seed: int = 0):
        # Any: mmengine's data sets and wrappers have no common base class.
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed

    @property
    def metainfo(self) -> dict:
        """Classes and their groups."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the data list, as mmengine's runner asks for."""
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        epoch, position = divmod(index, len(self))
        with seeded(self.seed, epoch, position):
            return self.dataset[position]

    @property
    def sizes(self) -> np.ndarray:
        """(samples, 2) int32 height and width of every sample of an epoch, in pixels."""
        repeated = getattr(self.dataset, "repeat_indices", None)
        return self.dataset.sizes if repeated is None else self.dataset.dataset.sizes[repeated]

    def get_data_info(self, index: int) -> dict:
        """Return an image's entry; the epoch does not matter."""
        return self.dataset.get_data_info(index % len(self))

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the distinct labels of an image; the epoch does not matter."""
        return self.dataset.get_cat_ids(index % len(self))


@contextmanager
def seeded(*names: object) -> Generator[None]:
    """Seed all random numbers of the block from `names`; restore the global state afterwards."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
