"""One batch of images through the detector: the network once, then every evaluation variant from the same logits.

    batch = forward(model, items)                # features, proposals, logits and boxes of every step
    for image in batch:                          # plain numbers per image
        kept = detect(model, image, rules)       # each variant scores, thresholds and suppresses on its own, as mmdet does
        masks = segment(model, batch, image, kept)   # once for the union of what the variants kept

A variant is a rule from logits to scores. Boxes are the last step's in every variant (Table 7 compares classifications), so what
two variants keep differs in scores and in selection only, and the mask of a (proposal, class) pair is the same for all.
The `plain` variant equals mmdet's own `model.predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import hotcoco.mask
import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pcb.engine.suppress import suppress
from pcb.engine.variants import Rule
from pcb.errors import UserError

MASKS_AT_ONCE = 128    # mask logits of 1,230 classes take 4 MB a box
SMALL_IMAGE = 200**2   # pixels; up to here a CPU pastes all masks at once faster than one by one


@dataclass
class Image:
    """What the network says about one image. Boxes in pixels of the resized image, C classes, n proposals.

    proposals: (n, 4). logits: one (n, channels) per step. boxes: (n, C, 4), or (n, 1, 4) where class-agnostic.
    features: the levels of the batch's pyramid that the mask head reads; this image is number `place` in them.
    """

    meta: dict
    proposals: Tensor
    logits: list[Tensor]
    boxes: Tensor
    features: tuple[Tensor, ...]
    place: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes, its share of the batch's features included."""
        shared = sum(level[0].nbytes for level in self.features)
        return shared + self.boxes.nbytes + sum(step.nbytes for step in self.logits)


@dataclass
class Kept:
    """The (proposal, class) pairs that at least one variant keeps: k of them, in order of proposal and class.

    boxes: (k, 4) x1, y1, x2, y2 in pixels of the resized image. labels: (k,). scores: (k,) per variant, NaN where not kept.
    """

    boxes: Tensor
    labels: Tensor
    scores: dict[str, Tensor]


def batches(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Group consecutive images of one shape, at most `size` of them: no image is padded to another's shape, which would change it."""
    for _, same in groupby(items, key=lambda item: tuple(item["inputs"].shape)):
        group = list(same)
        yield from (group[i:i + size] for i in range(0, len(group), size))


@torch.no_grad()
def forward(model: nn.Module, items: list[dict]) -> list[Image]:
    """Items of mmdet's test pipeline (`inputs`, `data_samples`) -> one `Image` each."""
    data = model.data_preprocessor(pseudo_collate(items), False)
    samples, head = data["data_samples"], model.roi_head
    features = tuple(model.extract_feat(data["inputs"]))
    proposals = [found.bboxes for found in model.rpn_head.predict(features, samples, rescale=False)]
    rois, of_masks = bbox2roi(proposals), features[: head.mask_roi_extractor.num_inputs]
    if not len(rois):
        return [Image(sample.metainfo, proposals[i], [], rois.new_zeros(0, 1, 4), of_masks, i) for i, sample in enumerate(samples)]
    out = head._bbox_forward(features, rois)
    if not out["cls_score"].isfinite().all():
        raise UserError("the detector's class scores are not finite", "its checkpoint is of a diverged training: train it again")
    steps = [*(logits for logits, _ in out.get("steps", [])[:-1]), out["cls_score"]]
    sizes = [len(p) for p in proposals]
    raw = head.bbox_head.predict_by_feat(  # without a test_cfg: decoded boxes of all classes, before any suppression
        rois=rois.split(sizes), cls_scores=out["cls_score"].split(sizes), bbox_preds=out["bbox_pred"].split(sizes),
        batch_img_metas=[s.metainfo for s in samples], rcnn_test_cfg=None, rescale=False)
    logits = list(zip(*(step.split(sizes) for step in steps), strict=True))
    return [Image(samples[i].metainfo, proposals[i], list(logits[i]), raw[i].bboxes.view(sizes[i], -1, 4), of_masks, i)
            for i in range(len(samples))]


@torch.no_grad()
def detect(model: nn.Module, image: Image, rules: dict[str, Rule]) -> Kept:
    """Score, threshold and suppress by each rule, as mmdet does, and take the union."""
    n, per_class = image.boxes.shape[:2]
    if not n:
        nothing = image.boxes.new_zeros(0)
        return Kept(image.boxes.new_zeros(0, 4), nothing.long(), dict.fromkeys(rules, nothing))
    scores = {variant: rule(image.logits) for variant, rule in rules.items()}
    found = suppress(image.boxes, scores, model.roi_head.test_cfg)
    classes = next(iter(scores.values())).shape[1] - 1
    pairs = torch.cat([pairs for pairs, _ in found.values()]).unique()
    columns = {}
    for variant, (mine, values) in found.items():
        columns[variant] = values.new_full((len(pairs),), torch.nan)
        columns[variant][torch.searchsorted(pairs, mine)] = values
    labels = pairs % classes
    return Kept(image.boxes[pairs // classes, labels if per_class > 1 else 0], labels, columns)


@torch.no_grad()
def segment(model: nn.Module, image: Image, kept: Kept) -> tuple[Tensor, list[bytes]]:
    """Boxes (k, 4) in pixels of the original image, and k masks of its size as compressed COCO RLE counts."""
    head, rescaled, rles = model.roi_head, [kept.boxes[:0]], []
    for boxes, labels in zip(kept.boxes.split(MASKS_AT_ONCE), kept.labels.split(MASKS_AT_ONCE), strict=True):
        if not len(boxes):
            continue
        place = boxes.new_full((len(boxes), 1), image.place)
        logits = head._mask_forward(image.features, torch.cat([place, boxes], 1))["mask_preds"]
        if not head.mask_head.class_agnostic:  # only the box's own class goes on, as if it were the only one
            logits = logits[torch.arange(len(boxes), device=boxes.device), labels][:, None]
        boxes, masks = paste(model, logits, boxes, image.meta)
        rescaled.append(boxes)
        rles += [rle["counts"] for rle in encode(masks)]
    return torch.cat(rescaled), rles


def paste(model: nn.Module, logits: Tensor, boxes: Tensor, meta: dict) -> tuple[Tensor, Tensor]:
    """(k, 1, h, w) mask logits in (k, 4) boxes of the resized image -> boxes of the original image, and (k, H, W) bool masks.

    The same values as mmdet's mask head gives, which on a CPU goes through them one by one.
    """
    head, (height, width) = model.roi_head, meta["ori_shape"][:2]
    flat = (boxes[:, 2:] <= boxes[:, :2]).any()  # a mask without width would be smeared over the whole row
    if boxes.is_cuda or flat or height * width > SMALL_IMAGE:
        result = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(len(boxes), dtype=torch.long, device=boxes.device))
        head.mask_head.predict_by_feat((logits,), [result], [meta], head.test_cfg, rescale=True)
        return result.bboxes, result.masks
    boxes = boxes / boxes.new_tensor(meta["scale_factor"]).repeat(2)
    soft, _ = _do_paste_mask(logits.sigmoid(), boxes, height, width, skip_empty=False)
    return boxes, soft >= head.test_cfg.mask_thr_binary


def encode(masks: Tensor) -> list[dict]:
    """(k, H, W) bool -> k COCO RLEs."""
    return hotcoco.mask.encode(np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0)))
