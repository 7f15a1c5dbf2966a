"""One batch of images through the detector: the network once, then every evaluation variant from the same logits.

    images = forward(model, items)                             # features, proposals, logits and boxes of every step
    kept = [detect(model, image, rules) for image in images]   # each variant scores, thresholds and suppresses on its own, as mmdet does
    found = segment(model, images, kept)                       # masks, once for the union of what the variants kept

A variant is a rule from the steps' scores to its own. Boxes are the last step's in every variant (Table 7 compares classifications), so
what two variants keep differs in scores and in selection only, and the mask of a (proposal, class) pair is the same for all.
The `plain` variant equals mmdet's own `model.predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.inference.calibrations import Rule, activation
from pcb.inference.mask_rle import paste
from pcb.inference.multi_variant_nms import suppress

MASKS_AT_ONCE = (
    256  # mask logits of 1,230 classes take 4 MB a box; mmdet takes all of one image, up to 300
)


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


def by_shape(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Group consecutive images of one shape, at most `size` of them: no image is padded to another's shape, which would change it."""
    for _, same in groupby(items, key=lambda item: tuple(item["inputs"].shape)):
        while group := list(islice(same, size)):
            yield group


@torch.no_grad()
def forward(model: nn.Module, items: list[dict], split: str = "val") -> list[Image]:
    """Items of mmdet's test pipeline (`inputs`, `data_samples`), images of `split` -> one `Image` each."""
    data = model.data_preprocessor(pseudo_collate(items), False)
    samples, head = data["data_samples"], model.roi_head
    features, found = extract_and_propose(model, data["inputs"], samples, split)
    proposals = [each.bboxes for each in found]
    rois, of_masks = bbox2roi(proposals), tuple(features[: head.mask_roi_extractor.num_inputs])
    if not len(rois):
        return [
            Image(sample.metainfo, proposals[i], [], rois.new_zeros(0, 1, 4), of_masks, i)
            for i, sample in enumerate(samples)
        ]
    out = head._bbox_forward(features, rois)
    if not out["cls_score"].isfinite().all():
        raise UserError(
            "the detector's class scores are not finite",
            "its checkpoint is of a diverged training: train it again",
        )
    steps = [*(logits for logits, _ in out.get("steps", [])[:-1]), out["cls_score"]]
    sizes = [len(p) for p in proposals]
    raw = head.bbox_head.predict_by_feat(  # without a test_cfg: decoded boxes of all classes, before any suppression
        rois=rois.split(sizes),
        cls_scores=out["cls_score"].split(sizes),
        bbox_preds=out["bbox_pred"].split(sizes),
        batch_img_metas=[s.metainfo for s in samples],
        rcnn_test_cfg=None,
        rescale=False,
    )
    logits = list(zip(*(step.split(sizes) for step in steps), strict=True))
    return [
        Image(
            samples[i].metainfo,
            proposals[i],
            list(logits[i]),
            raw[i].bboxes.view(sizes[i], -1, 4),
            of_masks,
            i,
        )
        for i in range(len(samples))
    ]


def extract_and_propose(
    model: nn.Module, images: Tensor, samples: list, split: str
) -> tuple[Sequence[Tensor], list[InstanceData]]:
    """Feature maps, finest first, and the proposals of each image; from a feature cache if the detector has one."""
    cached = getattr(model, "extract_and_propose", None)
    if cached is not None:
        return cached(images, samples, split)
    features = model.extract_feat(images)
    return features, model.rpn_head.predict(features, samples, rescale=False)


@torch.no_grad()
def detect(model: nn.Module, image: Image, rules: dict[str, Rule]) -> Kept:
    """Score, threshold and suppress by each rule, as mmdet does, and take the union."""
    n, per_class = image.boxes.shape[:2]
    if not n:
        nothing = image.boxes.new_zeros(0)
        return Kept(image.boxes.new_zeros(0, 4), nothing.long(), dict.fromkeys(rules, nothing))
    steps = [activation(model)(logits) for logits in image.logits]
    scores = {variant: rule(steps) for variant, rule in rules.items()}
    pairs, table = suppress(image.boxes, scores, model.roi_head.test_cfg)
    classes = next(iter(scores.values())).shape[1] - 1
    labels = pairs % classes
    boxes = image.boxes[pairs // classes, labels if per_class > 1 else 0]
    return Kept(boxes, labels, dict(zip(scores, table, strict=True)))


@torch.no_grad()
def segment(
    model: nn.Module, images: list[Image], kept: list[Kept]
) -> list[tuple[Tensor, list[bytes]]]:
    """For each image of a batch: boxes (k, 4) in pixels of the original image, and k masks of its size as compressed COCO RLE counts."""
    head, counts = model.roi_head, [len(k.labels) for k in kept]
    boxes, labels = torch.cat([k.boxes for k in kept]), torch.cat([k.labels for k in kept])

    def each(of_images: list) -> Tensor:
        """A row for each image -> a row for each of its boxes."""
        return torch.repeat_interleave(
            *(torch.tensor(values, device=boxes.device) for values in (of_images, counts)), dim=0
        )

    rois = torch.cat([each([float(image.place) for image in images])[:, None], boxes], dim=1)
    masks = [boxes.new_zeros(0, 1, 1)]
    for some, of in zip(rois.split(MASKS_AT_ONCE), labels.split(MASKS_AT_ONCE), strict=True):
        if len(some):  # only the box's own class goes on
            logits = head._mask_forward(images[0].features, some)["mask_preds"]
            masks.append(
                logits[
                    torch.arange(len(some), device=of.device),
                    0 if head.mask_head.class_agnostic else of,
                ].sigmoid()
            )
    boxes = boxes / each([tuple(image.meta["scale_factor"]) * 2 for image in images])
    sizes = each([image.meta["ori_shape"][:2] for image in images])
    rles = iter(paste(torch.cat(masks[1:] or masks), boxes, sizes, head.test_cfg.mask_thr_binary))
    return [(own, list(islice(rles, len(own)))) for own in boxes.split(counts)]
