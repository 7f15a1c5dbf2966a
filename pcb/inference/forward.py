"""One batch of images through the detector: the network once, then all variants from its logits.

    images = forward(model, items)                         # proposals, logits, boxes, features
    selections = [detect(model, image, functions) for image in images]
    masks = segment(model, images, selections)

Each variant scores, thresholds and suppresses on its own, as mmdet does. Boxes are the last step's
in every variant (Table 7 compares classifications), so variants differ in scores and in selection
only, and the mask of a (proposal, class) pair is computed once, for the union of what they select.
The variant `plain` equals mmdet's own `model.predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from pcb.errors import UserError
from pcb.inference.calibrations import ScoreFunction, activation
from pcb.inference.mask_rle import encode_masks
from pcb.inference.multi_variant_nms import Limits, multi_variant_nms

# Boxes of one call of the mask head. Its logits of 1,230 classes take 4 MB a box; mmdet takes all
# boxes of an image at once, up to 300.
MASK_BATCH = 256


@dataclass
class Image:
    """The network's outputs for one image: n proposals, C classes.

    Attributes:
        meta: mmdet's `metainfo` of the image.
        proposals: (n, 4) x1, y1, x2, y2 in pixels of the resized image.
        logits: One (n, channels) for each step.
        boxes: (n, C, 4) or, class-agnostic, (n, 1, 4), in pixels of the resized image.
        features: Feature maps of the batch that the mask head reads, finest first.
        index: Position of this image in `features`.
    """

    meta: dict
    proposals: Tensor
    logits: list[Tensor]
    boxes: Tensor
    features: tuple[Tensor, ...]
    index: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory, including its share of the batch's features."""
        shared = sum(level[0].nbytes for level in self.features)
        return shared + self.boxes.nbytes + sum(step.nbytes for step in self.logits)


@dataclass
class Selection:
    """The k (proposal, class) pairs that at least one variant selects, by proposal and class.

    Attributes:
        boxes: (k, 4) x1, y1, x2, y2 in pixels of the resized image.
        labels: (k,) int64 classes.
        scores: Variant -> (k,) float32, NaN where the variant does not select the pair.
        scored: (k,) bool, the pairs within the scored limits of a variant; the others are kept for
            evaluation with looser limits.
    """

    boxes: Tensor
    labels: Tensor
    scores: dict[str, Tensor]
    scored: Tensor

    def where(self, mask: Tensor) -> Selection:
        """The pairs where the (k,) mask is true."""
        scores = {variant: values[mask] for variant, values in self.scores.items()}
        return Selection(self.boxes[mask], self.labels[mask], scores, self.scored[mask])


def by_shape(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Group consecutive images of one shape, at most `size` of them.

    Padding an image to the shape of another would change its result.
    """
    for _, same in groupby(items, key=lambda item: tuple(item["inputs"].shape)):
        while group := list(islice(same, size)):
            yield group


@torch.no_grad()
def forward(model: TwoStageDetector, items: list[dict], split: str = "val") -> list[Image]:
    """Run the network on a batch, up to logits and decoded boxes.

    Args:
        model: The detector, in evaluation mode.
        items: Output of mmdet's test pipeline (`inputs`, `data_samples`), all of one shape.
        split: The split of the images, for a detector with a feature cache.

    Raises:
        UserError: A class score is not finite.
    """
    data = model.data_preprocessor(pseudo_collate(items), False)
    samples, head = data["data_samples"], model.roi_head
    features, instances = extract_and_propose(model, data["inputs"], samples, split)
    proposals: list = [of_image.get("bboxes") for of_image in instances]
    rois = bbox2roi(proposals)
    mask_features = tuple(features[: head.mask_roi_extractor.num_inputs])
    if not len(rois):
        no_boxes = rois.new_zeros(0, 1, 4)
        return [
            Image(sample.metainfo, proposals[i], [], no_boxes, mask_features, i)
            for i, sample in enumerate(samples)
        ]
    out = head._bbox_forward(features, rois)
    if not out["cls_score"].isfinite().all():
        raise UserError(
            "the detector's class scores are not finite",
            "its training diverged: train it again",
        )
    steps = [*(logits for logits, _ in out.get("steps", [])[:-1]), out["cls_score"]]
    sizes = [len(p) for p in proposals]
    # Without a test_cfg it returns the decoded boxes of all classes, before any suppression.
    decoded = head.bbox_head.predict_by_feat(
        rois=rois.split(sizes),
        cls_scores=out["cls_score"].split(sizes),
        bbox_preds=out["bbox_pred"].split(sizes),
        batch_img_metas=[s.metainfo for s in samples],
        rcnn_test_cfg=None,
        rescale=False,
    )
    logits = list(zip(*(step.split(sizes) for step in steps), strict=True))
    images = []
    for i, sample in enumerate(samples):
        boxes = decoded[i].bboxes.view(sizes[i], -1, 4)
        images.append(
            Image(sample.metainfo, proposals[i], list(logits[i]), boxes, mask_features, i)
        )
    return images


def extract_and_propose(
    model: TwoStageDetector, images: Tensor, samples: list, split: str
) -> tuple[Sequence[Tensor], list[InstanceData]]:
    """Feature maps (N, D, h, w), finest first, and the proposals of each of N images.

    They come from the frozen-backbone feature cache if the detector has one.

    Args:
        model: The detector.
        images: (N, 3, H, W) preprocessed images.
        samples: Their N DetDataSamples.
        split: The split of the images, by which the cache is kept.
    """
    cached = getattr(model, "extract_and_propose", None)
    if cached is not None:
        return cached(images, samples, split)
    features = model.extract_feat(images)
    return features, model.rpn_head.predict(features, samples, rescale=False)


@torch.no_grad()
def detect(
    model: TwoStageDetector,
    image: Image,
    functions: Mapping[str, ScoreFunction],
    keep: Limits | None = None,
) -> Selection:
    """Score, threshold and suppress by each score function, and take the union.

    Args:
        model: The detector.
        image: The network's outputs for one image.
        functions: Variant -> its score function.
        keep: Limits of the detections that are kept; None: those of the model, which are scored.
    """
    proposals, boxes_each = image.boxes.shape[:2]
    if not proposals:
        empty = image.boxes.new_zeros(0)
        none = dict.fromkeys(functions, empty)
        return Selection(image.boxes.new_zeros(0, 4), empty.long(), none, empty.bool())
    steps = [activation(model)(logits) for logits in image.logits]
    scores = {variant: function(steps) for variant, function in functions.items()}
    cfg = model.roi_head.test_cfg
    pairs, selected = multi_variant_nms(image.boxes, scores, cfg, keep)
    classes = next(iter(scores.values())).shape[1] - 1
    labels = pairs % classes
    boxes = image.boxes[pairs // classes, labels if boxes_each > 1 else 0]
    scored = torch.ones_like(labels, dtype=torch.bool)
    if keep is not None:
        best = selected.nan_to_num(-1).sort(dim=1, descending=True, stable=True).indices
        best = best[:, : cfg.max_per_img]
        within = selected.gather(1, best) > cfg.score_thr
        scored = torch.zeros_like(selected, dtype=torch.bool).scatter(1, best, within).any(dim=0)
    return Selection(boxes, labels, dict(zip(scores, selected, strict=True)), scored)


def original_boxes(image: Image, selection: Selection) -> Tensor:
    """(k, 4) the boxes of a selection in pixels of the original image."""
    return selection.boxes / selection.boxes.new_tensor(tuple(image.meta["scale_factor"]) * 2)


@torch.no_grad()
def segment(
    model: TwoStageDetector, images: list[Image], selections: list[Selection]
) -> list[tuple[Tensor, list[bytes]]]:
    """Predict the masks of a batch.

    Returns:
        For each image its (k, 4) boxes in pixels of the original image, and k masks of that size
        as compressed COCO RLE counts.
    """
    head, counts = model.roi_head, [len(s.labels) for s in selections]
    boxes = torch.cat([s.boxes for s in selections])
    labels = torch.cat([s.labels for s in selections])

    def per_box(per_image: list) -> Tensor:
        rows = torch.tensor(per_image, device=boxes.device)
        return rows.repeat_interleave(torch.tensor(counts, device=boxes.device), dim=0)

    rois = torch.cat([per_box([float(image.index) for image in images])[:, None], boxes], dim=1)
    masks = [boxes.new_zeros(0, 1, 1)]
    for batch, classes in zip(rois.split(MASK_BATCH), labels.split(MASK_BATCH), strict=True):
        if len(batch):
            logits = head._mask_forward(images[0].features, batch)["mask_preds"]
            channel = 0 if head.mask_head.class_agnostic else classes
            masks.append(logits[torch.arange(len(batch), device=batch.device), channel].sigmoid())
    of_images = [original_boxes(*pair) for pair in zip(images, selections, strict=True)]
    boxes = torch.cat(of_images)
    sizes = per_box([image.meta["ori_shape"][:2] for image in images])
    probabilities = torch.cat(masks[1:] or masks)
    rles = iter(encode_masks(probabilities, boxes, sizes, head.test_cfg.mask_thr_binary))
    return [(of_image, list(islice(rles, len(of_image)))) for of_image in of_images]
