"""Mask R-CNN whose backbone, FPN and RPN stay as they were loaded: only its RoI heads learn.

Nothing of the frozen part is trained, so its loss is not computed, and what it says about an image is always the same.
Where augmentation is nothing but a flip there are two versions of an image, and both are remembered: the image as the
pipeline packs it (`FlipPipeline`), as the model takes it (`RememberingPreprocessor`), and what the frozen part makes of it, which
the next training is spared too. So an iteration costs what learns, and no more; and so does detecting, where the same holds for the
images of val.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.detectors import MaskRCNN
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from pcb.training import checkpoint

TRAINING = "training"
Outputs = tuple[
    list[Tensor], list[InstanceData]
]  # feature maps (N, C, H, W) a level, and proposals of N images


@MODELS.register_module()
class FrozenTrunkMaskRCNN(MaskRCNN):
    """`remember=True` keeps each image's features and proposals; `pcb.training.build` asks for it where that is exact.

    Then an image passes the frozen part alone, never within a batch, whose composition could change the last bits:
    what is remembered equals what would be computed. It costs 150 kB for each version of a 96x96 image.

    What is remembered is kept by the part of the data that it is of: `TRAINING`, or the name of a split that is detected on.
    `folder` and `images`: where trainings and detections share what they remember, and a digest of the images. A file there is named by
    that digest, the frozen weights' and the settings', so it can only hold what this detector would compute; `keep_memory` writes it.
    """

    def __init__(self, *args, remember: bool = False, folder: str = "", images: str = "", **kwargs):
        if remember:
            kwargs["data_preprocessor"] = {
                **kwargs["data_preprocessor"],
                "type": "RememberingPreprocessor",
            }
        super().__init__(*args, **kwargs)
        self.memory: dict[str, dict[tuple, tuple[list[Tensor], Tensor]]] | None = (
            {} if remember else None
        )
        self.on_disk: dict[str, int] = {}  # images of each part that were found in its file
        self.folder, self.images = folder, images
        for part in self.frozen:
            part.requires_grad_(False)

    @property
    def frozen(self) -> tuple[torch.nn.Module, ...]:
        return self.backbone, self.neck, self.rpn_head

    def train(self, mode: bool = True):
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def _load_from_state_dict(self, *args, **kwargs):
        if self.memory:
            self.memory.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def loss(
        self, batch_inputs: Tensor | list[Tensor], batch_data_samples: list
    ) -> dict[str, Tensor]:
        """Losses of the RoI heads. `batch_inputs` (N, 3, H, W), as mmdet's detectors take them, or a list of N images."""
        return self.roi_head.loss(
            *self.look(batch_inputs, batch_data_samples, TRAINING), batch_data_samples
        )

    def look(self, images: Tensor | list[Tensor], samples: list, part: str) -> Outputs:
        """Feature maps that the RoI heads read, finest first, and each image's proposals: those to train on, or those to detect from."""
        if self.memory is None:
            return self.propose(images, samples, part)
        each = [
            self.recall(image, sample, part) for image, sample in zip(images, samples, strict=True)
        ]
        return [torch.cat(level) for level in zip(*(f for f, _ in each), strict=True)], [
            InstanceData(bboxes=boxes) for _, boxes in each
        ]

    @torch.no_grad()
    def propose(self, images: Tensor, samples: list, part: str) -> Outputs:
        features = self.extract_feat(images)
        proposals = self.rpn_head.predict_by_feat(
            *self.rpn_head(features),
            batch_img_metas=[s.metainfo for s in samples],
            cfg=self.settings(part),
            rescale=False,
        )
        used = max(
            self.roi_head.bbox_roi_extractor.num_inputs, self.roi_head.mask_roi_extractor.num_inputs
        )
        return list(features[:used]), proposals

    def settings(self, part: str) -> ConfigDict:
        """How proposals are chosen."""
        return self.train_cfg.rpn_proposal if part == TRAINING else self.test_cfg.rpn

    def recall(self, image: Tensor, sample, part: str) -> tuple[list[Tensor], Tensor]:
        """One image's features and the boxes of its proposals, computed where they are not remembered."""
        if part not in self.memory:
            self.memory[part] = {}
            self.recollect(part, image.device)
        known, key = (
            self.memory[part],
            (sample.img_id, sample.get("flip", False), tuple(image.shape)),
        )
        if key not in known:
            features, (proposals,) = self.propose(image[None], [sample], part)
            known[key] = features, proposals.bboxes
        return known[key]

    def memory_file(self, part: str) -> Path | None:
        if not self.images:
            return None
        digest = hashlib.sha256(f"{self.images} {dict(self.settings(part))}".encode())
        for module in self.frozen:
            for value in module.state_dict().values():
                digest.update(str(value.stride()).encode())  # channels last has other last bits
                digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return Path(self.folder) / f"{part}-{digest.hexdigest()[:16]}.pth"

    def keep_memory(self, part: str) -> None:
        """Write what is remembered of a part of the data for the processes to come, if that is more than its file had."""
        known = (self.memory or {}).get(part, {})
        path = self.memory_file(part)
        if path and len(known) > self.on_disk.get(part, 0):
            checkpoint.save(
                path,
                {
                    "rows": [
                        (*key, [f.cpu() for f in features], boxes.cpu())
                        for key, (features, boxes) in known.items()
                    ]
                },
            )

    def recollect(self, part: str, device: torch.device) -> None:
        """Read what an earlier process left, if any did."""
        path = self.memory_file(part)
        rows = checkpoint.load(path, map_location=device)["rows"] if path and path.exists() else []
        self.memory[part].update({tuple(key): (features, boxes) for *key, features, boxes in rows})
        self.on_disk[part] = len(rows)


@MODELS.register_module()
class RememberingPreprocessor(DetDataPreprocessor):
    """mmdet's preprocessor for training images that come in two versions: each is normalised, padded and moved to the device once.

    A batch whose images are of several sizes, and so depend on each other for their padding, is prepared as ever. What is remembered
    is shared by all iterations: the heads read it only. 130 kB for each version of a 96x96 image.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.memory: dict[tuple[int, bool], tuple[Tensor, DetDataSample]] = {}

    def forward(self, data: dict, training: bool = False) -> dict:
        if not training or len({image.shape for image in data["inputs"]}) > 1:
            return super().forward(data, training)
        images, samples = zip(*map(self.prepare, data["inputs"], data["data_samples"]), strict=True)
        return {"inputs": list(images), "data_samples": list(samples)}

    def prepare(self, image: Tensor, sample: DetDataSample) -> tuple[Tensor, DetDataSample]:
        key = sample.img_id, sample.flip
        if key not in self.memory:
            alone = super().forward({"inputs": [image], "data_samples": [sample]}, True)
            self.memory[key] = alone["inputs"][0], alone["data_samples"][0]
        return self.memory[key]


@TRANSFORMS.register_module()
class FlipPipeline(BaseTransform):
    """A training pipeline in which only RandomFlip is random: draws whether to flip, and packs either version of an image once.

    What it returns is shared: mmdet's data preprocessor makes copies. 70 kB for each version of a 96x96 image.
    """

    def __init__(self, steps: list[dict]):
        self.prob = next(step["prob"] for step in steps if step["type"] == "RandomFlip")
        self.versions = [
            Compose(
                [
                    {**step, "prob": float(flip)} if step["type"] == "RandomFlip" else step
                    for step in steps
                ]
            )
            for flip in (False, True)
        ]
        self.memory: dict[tuple[int, bool], dict] = {}

    def transform(self, results: dict) -> dict:
        return self.recall(results["img_id"], lambda: results)

    def recall(self, image: int, info: Callable[[], dict]) -> dict:
        """A version of the image of this id; `info` tells what the annotations say of it, where it was never packed before."""
        key = image, bool(np.random.random() < self.prob)
        if key not in self.memory:
            self.memory[key] = self.versions[key[1]](info())
        return dict(self.memory[key])
