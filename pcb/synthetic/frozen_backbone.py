"""Mask R-CNN with a frozen backbone, FPN and RPN: only the RoI heads are trained.

The frozen modules' losses are not computed, and their output for an image never changes. Where
augmentation is only a flip, an image has two versions, and everything that precedes the RoI heads
is computed once for each of them and cached: the packed sample (`FlipPipeline`), the
normalised image (`CachingPreprocessor`), and features and proposals (`FrozenBackboneMaskRCNN`),
which are also saved for later trainings and detections. What the RoI heads compute before their
first weight follows from the same and is remembered, and saved but for what is quickly computed
(`pcb.synthetic.remembered`).

The cache saves 7.3 of 25.0 ms of CPU time an image in inference (results/benchmarks/infer.json),
and the forward pass of the frozen modules in every training iteration after the first epochs.
It is exact: tests compare it with the uncached detector, preprocessor and pipeline.

Detector configs load this module by `custom_imports` (configs/mmdet/mini_r18.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.detectors import MaskRCNN
from mmdet.registry import HOOKS, MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.synthetic.remembered import Key, Memory, remembering
from pcb.training import checkpoint

TRAINING = "training"  # as a split: training images with the RPN's training settings

Entry = tuple[list[Tensor], Tensor]  # feature maps (1, C, H, W), finest first; proposals (n, 4)


@MODELS.register_module()
class FrozenBackboneMaskRCNN(MaskRCNN):
    """Mask R-CNN that trains its RoI heads only, with an optional feature cache.

    With a cache, each image passes the frozen modules alone and never within a batch, whose
    composition could change the last bits: a cached value equals the computed one. An entry takes
    150 kB for a 96x96 image. Entries are kept by split; `TRAINING` stands for the training images.

    Args:
        feature_cache: None for no cache. `{}` caches in memory only. With `folder` (a path) and
            `images` (a digest of all images of the data set) the cache is shared by processes: its
            files are named by a digest of the images, the frozen weights and the RPN's settings,
            so a file can only hold what this detector would compute.
    """

    def __init__(self, *args, feature_cache: dict | None = None, **kwargs):
        if feature_cache is not None:
            kwargs["data_preprocessor"] = {
                **kwargs["data_preprocessor"],
                "type": "CachingPreprocessor",
            }
            kwargs["roi_head"] = remembering(kwargs["roi_head"])
            kwargs["train_cfg"] = remembering(kwargs["train_cfg"])
        super().__init__(*args, **kwargs)
        self.caches_features = feature_cache is not None
        self.cache: dict[str, dict[Key, Entry]] = {}
        self.cache_folder: str = (feature_cache or {}).get("folder", "")
        self.images_digest: str = (feature_cache or {}).get("images", "")
        self.loaded: dict[str, int] = {}  # number of entries loaded from each split's file
        self.memory = Memory(self.roi_head) if self.caches_features else None
        for module in self.frozen_modules:
            module.requires_grad_(False)

    @property
    def frozen_modules(self) -> tuple[nn.Module, ...]:
        """Backbone, neck and RPN head."""
        return self.backbone, self.neck, self.rpn_head

    def train(self, mode: bool = True) -> FrozenBackboneMaskRCNN:
        """Set the training mode of the RoI heads; the frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.cache.clear()  # the new weights may differ
        if self.memory:
            self.memory.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def loss(
        self, batch_inputs: Tensor | list[Tensor], batch_data_samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        """Compute the losses of the RoI heads.

        Args:
            batch_inputs: Images, (N, 3, H, W) or N of (3, H, W).
            batch_data_samples: Their N samples with ground truth.
        """
        features, proposals = self.extract_and_propose(batch_inputs, batch_data_samples, TRAINING)
        if self.memory is None:
            return self.roi_head.loss(features, proposals, batch_data_samples)
        keys = list(map(image_key, batch_inputs, batch_data_samples))
        with self.memory.of(keys, self.roi_head, features, proposals, batch_data_samples):
            return self.roi_head.loss(features, proposals, batch_data_samples)

    def extract_and_propose(
        self, images: Tensor | list[Tensor], samples: list[DetDataSample], split: str
    ) -> tuple[list[Tensor], list[InstanceData]]:
        """Compute what the RoI heads need, or look it up in the feature cache.

        Args:
            images: (N, 3, H, W), or N of (3, H, W) if there is a cache.
            samples: Their N samples.
            split: `TRAINING`, or the name of the split that is detected on.

        Returns:
            The feature maps (N, C, H, W) that the RoI heads read, finest first, and the proposals
            of each image.
        """
        if not self.caches_features:
            assert isinstance(images, Tensor)
            return self._run_frozen_modules(images, samples, split)
        entries = [
            self._cached(image, sample, split)
            for image, sample in zip(images, samples, strict=True)
        ]
        levels = zip(*(features for features, _ in entries), strict=True)
        return [torch.cat(level) for level in levels], [
            InstanceData(bboxes=boxes) for _, boxes in entries
        ]

    @torch.no_grad()
    def _run_frozen_modules(
        self, images: Tensor, samples: list[DetDataSample], split: str
    ) -> tuple[list[Tensor], list[InstanceData]]:
        features = self.extract_feat(images)
        proposals = self.rpn_head.predict_by_feat(
            *self.rpn_head(features),
            batch_img_metas=[sample.metainfo for sample in samples],
            cfg=self._proposal_settings(split),
            rescale=False,
        )
        extractors = self.roi_head.bbox_roi_extractor, self.roi_head.mask_roi_extractor
        used = max(extractor.num_inputs for extractor in extractors)
        return list(features[:used]), proposals

    def _proposal_settings(self, split: str) -> ConfigDict:
        if split == TRAINING:
            return cast(ConfigDict, self.train_cfg).rpn_proposal
        return cast(ConfigDict, self.test_cfg).rpn

    def _cached(self, image: Tensor, sample: DetDataSample, split: str) -> Entry:
        """The cache entry of one image (3, H, W), computed if it is missing."""
        if split not in self.cache:
            self.load_cache(split, image.device)
        entries = self.cache[split]
        key = image_key(image, sample)
        if key not in entries:
            features, (proposals,) = self._run_frozen_modules(image[None], [sample], split)
            entries[key] = features, cast(Tensor, proposals["bboxes"])
        return entries[key]

    def cache_file(self, split: str) -> Path | None:
        """File of a split's cache; None where the cache is in memory only."""
        if not self.images_digest:
            return None
        digest = hashlib.sha256(
            f"{self.images_digest} {dict(self._proposal_settings(split))}".encode()
        )
        for module in self.frozen_modules:
            for value in module.state_dict().values():
                # The memory format matters: channels-last convolutions differ in the last bits.
                digest.update(str(value.stride()).encode())
                digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return Path(self.cache_folder) / f"{split}-{digest.hexdigest()[:16]}.pth"

    def load_cache(self, split: str, device: torch.device) -> None:
        """Replace a split's cache by the content of its file, or by nothing if there is none.

        A damaged file counts as none; it is replaced when the cache is saved.
        """
        path, rows = self.cache_file(split), []
        if path and path.exists():
            try:
                stored = checkpoint.load(path, map_location=device)
            except UserError as error:
                print(f"{error.what}; its features are computed again", flush=True)
            else:  # under the name of another cache it would be the features of other images
                rows = stored["rows"] if stored.get("cache") == path.stem else []
                if rows and split == TRAINING and self.memory:
                    self.memory.load(stored.get("candidates", {}), device)
        self.cache[split] = {tuple(key): (features, boxes) for *key, features, boxes in rows}
        self.loaded[split] = len(rows)

    def save_cache(self, split: str) -> None:
        """Save a split's cache for later processes, unless its file already has all entries."""
        entries = self.cache.get(split, {})
        path = self.cache_file(split)
        memory = self.memory if split == TRAINING else None
        if path and (len(entries) > self.loaded.get(split, 0) or (memory and memory.has_grown)):
            rows = [
                (*key, [level.cpu() for level in features], boxes.cpu())
                for key, (features, boxes) in entries.items()
            ]
            stored = {"cache": path.stem, "rows": rows}
            if memory and memory.known:
                stored["candidates"] = memory.state()
            checkpoint.save(path, stored)


def image_key(image: Tensor, sample: DetDataSample) -> Key:
    """What distinguishes an image (3, H, W) from the other images of a split."""
    return sample.get("img_id"), sample.get("flip", False), tuple(image.shape)


@HOOKS.register_module()
class SaveFeatureCacheHook(Hook):
    """Saves the feature cache of the training images after training."""

    def after_train(self, runner) -> None:
        """Save from the first process; a detector of another class has no cache."""
        if isinstance(runner.bare_model, FrozenBackboneMaskRCNN) and is_main_process():
            runner.bare_model.save_cache(TRAINING)


@MODELS.register_module()
class CachingPreprocessor(DetDataPreprocessor):
    """MMDetection's preprocessor that prepares each version of a training image once.

    Images are normalised, padded and moved to the device. A batch of several shapes is prepared as
    a whole and not cached, since its images determine each other's padding. Iterations share the
    cached tensors: nothing may change them. An entry takes 130 kB for a 96x96 image.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cache: dict[tuple[int, bool], tuple[Tensor, DetDataSample]] = {}

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch: `inputs`, N of (3, H, W) uint8, and `data_samples`."""
        if not training or len({image.shape for image in data["inputs"]}) > 1:
            return super().forward(data, training)
        entries = map(self._cached, data["inputs"], data["data_samples"])
        images, samples = zip(*entries, strict=True)
        return {"inputs": list(images), "data_samples": list(samples)}

    def _cached(self, image: Tensor, sample: DetDataSample) -> tuple[Tensor, DetDataSample]:
        key = sample.get("img_id"), sample.get("flip")
        if key not in self.cache:
            alone = super().forward({"inputs": [image], "data_samples": [sample]}, True)
            self.cache[key] = alone["inputs"][0], alone["data_samples"][0]
        return self.cache[key]


@TRANSFORMS.register_module()
class FlipPipeline(BaseTransform):
    """A training pipeline, random in its flip only, that packs each version of an image once.

    The returned samples are shared: MMDetection's data preprocessor copies them. An entry takes
    70 kB for a 96x96 image.

    Args:
        steps: Configs of the pipeline's steps, one of them RandomFlip.
    """

    def __init__(self, steps: list[dict]):
        flip = next(step for step in steps if step["type"] == "RandomFlip")
        self.prob = flip["prob"]
        self.versions = [
            Compose([{**step, "prob": prob} if step is flip else step for step in steps])
            for prob in (0.0, 1.0)
        ]
        self.cache: dict[tuple[int, bool], dict] = {}

    def transform(self, results: dict) -> dict:
        """Pack an image, given as the data set describes it, flipped or not at random."""
        return self.transform_cached(results["img_id"], lambda: results)

    def transform_cached(self, image_id: int, read: Callable[[], dict]) -> dict:
        """Pack an image; `read` returns its description and is called on a cache miss only."""
        key = image_id, bool(np.random.random() < self.prob)
        if key not in self.cache:
            self.cache[key] = cast(dict, self.versions[key[1]](read()))
        return dict(self.cache[key])
