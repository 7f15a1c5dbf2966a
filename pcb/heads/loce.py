"""LOCE's memory-augmented feature sampling (Feng et al., ICCV 2021).

In LOCE's second stage, with `EquilibriumLoss`, classes with low scores are trained on stored RoI
features too. All random choices use torch's generator, so a seed determines them.
"""

from __future__ import annotations

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from pcb.heads.stepped import pool

IN_CHECKPOINTS = 2**28  # bytes up to which a memory of features is in checkpoints
Features = tuple[Tensor, Tensor, Tensor]  # (n, D, h, w), their box targets (n, 4), labels (n,)


class FeatureMemory(nn.Module):
    """A ring buffer of RoI features for each class.

    It holds C · size · D · h · w float32 values on the model's device, in each process: 4.9 GB for
    LVIS. Up to `IN_CHECKPOINTS` bytes it is in checkpoints (that of rank 0). Writing a larger one
    would take longer than a preempted job has, so a resumed training fills it anew.

    Args:
        num_classes: C.
        size: Features of each class.
        shape: D, h, w of a feature.

    Attributes:
        features: Buffer (C, size, D, h, w).
        targets: Buffer (C, size, 4), box targets.
        written: Buffer (C,) int64, features written since the start.
    """

    features: Tensor
    targets: Tensor
    written: Tensor

    def __init__(self, num_classes: int, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.size = size
        features = torch.zeros(num_classes, size, *shape)
        saved = features.nbytes <= IN_CHECKPOINTS
        self.register_buffer("features", features, persistent=saved)
        self.register_buffer("targets", torch.zeros(num_classes, size, 4), persistent=saved)
        written = torch.zeros(num_classes, dtype=torch.int64)
        self.register_buffer("written", written, persistent=saved)

    @property
    def filled(self) -> Tensor:
        """Number of stored features of each class, (C,)."""
        return self.written.clamp(max=self.size)

    @torch.no_grad()
    def write(self, features: Tensor, targets: Tensor, labels: Tensor) -> None:
        """Store features over the oldest of their class, except for those that are not finite.

        Args:
            features: (n, D, h, w).
            targets: (n, 4) box targets.
            labels: (n,) int64 of 0 .. C-1.
        """
        finite = features.flatten(1).isfinite().all(dim=1) & targets.isfinite().all(dim=1)
        features, targets, labels = features[finite], targets[finite], labels[finite]
        for c in labels.unique().tolist():
            rows = (labels == c).nonzero().squeeze(1)
            slots = (self.written[c] + torch.arange(len(rows), device=labels.device)) % self.size
            rows, slots = rows[-self.size :], slots[-self.size :]
            self.features[c, slots] = features[rows].to(self.features.dtype)
            self.targets[c, slots] = targets[rows].to(self.targets.dtype)
            self.written[c] += (labels == c).sum()

    @torch.no_grad()
    def draw(self, weights: Tensor, classes: int, per_class: int) -> Features:
        """Draw different classes that have features, and features of each.

        Args:
            weights: (C,) relative probabilities of the classes.
            classes: Number of classes, fewer where fewer have features.
            per_class: Number of features of each, with replacement.

        Returns:
            Features (n, D, h, w), box targets (n, 4) and labels (n,).
        """
        weights = torch.where(self.filled > 0, weights, 0)
        count = min(classes, int((weights > 0).sum()))
        if not count:
            return self.features[:0, 0], self.targets[:0, 0], self.written[:0]
        drawn = torch.multinomial(weights, count).repeat_interleave(per_class)
        slots = (torch.rand(len(drawn), device=drawn.device) * self.filled[drawn]).long()
        return self.features[drawn, slots], self.targets[drawn, slots], drawn


class LOCERoIHead(StandardRoIHead):
    """The standard head, with stored features of low-scoring classes added to its batch of RoIs.

    In each iteration, boxes jittered around every ground-truth box are pooled (without gradient)
    and stored; classes are drawn with probability ∝ 1 / s, s the mean scores of `EquilibriumLoss`;
    s learns from the ground-truth objects and from the classes drawn; then the loss is computed on
    all RoIs.

    Args:
        memory: Stored features of each class.
        jitter: Boxes around each ground-truth box, each side moved by up to 1/6 of width or height.
        classes: Classes drawn in each iteration.
        per_class: Features of each class drawn.
        **kwargs: Those of MMDetection's StandardRoIHead.
    """

    def __init__(
        self, memory: int = 80, jitter: int = 16, classes: int = 8, per_class: int = 4, **kwargs
    ):
        super().__init__(**kwargs)
        head = self.bbox_head
        self.jitter, self.classes, self.per_class = jitter, classes, per_class
        shape = head.in_channels, *head.roi_feat_size
        self.memory = FeatureMemory(head.num_classes, memory, shape)

    @torch.no_grad()
    def store_features(self, x: tuple[Tensor, ...], samples: list) -> None:
        """Store features of boxes jittered around the ground truth.

        Args:
            x: Feature pyramid of a batch of N images, (N, D, h, w) for each level.
            samples: Their N DetDataSamples.
        """
        boxes = [sample.gt_instances.bboxes for sample in samples]
        labels = [sample.gt_instances.labels for sample in samples]
        rois = bbox2roi([jitter_boxes(b, self.jitter) for b in boxes])
        if len(rois):
            truth = torch.cat(boxes).repeat_interleave(self.jitter, dim=0)
            targets = self.bbox_head.bbox_coder.encode(rois[:, 1:], truth)
            roi_labels = torch.cat(labels).repeat_interleave(self.jitter)
            self.memory.write(pool(self, x, rois), targets, roi_labels)

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: list, batch_data_samples: list
    ) -> dict[str, Tensor]:
        """Store features, then compute the losses; overrides StandardRoIHead.

        Args:
            x: Feature pyramid of a batch of N images, (N, D, h, w) for each level.
            rpn_results_list: N InstanceData with proposals.
            batch_data_samples: N DetDataSamples with ground truth.

        Returns:
            The losses to log, scalars.
        """
        self.store_features(x, batch_data_samples)
        # MMDetection annotates a feature pyramid as a tuple of one tensor.
        return super().loss(x, rpn_results_list, batch_data_samples)  # ty: ignore[invalid-argument-type]

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list) -> dict:
        """Compute the losses of sampled RoIs and drawn features; overrides StandardRoIHead.

        Args:
            x: Feature pyramid of a batch of N images, (N, D, h, w) for each level.
            sampling_results: N results of MMDetection's sampler.

        Returns:
            `loss_bbox`, the losses to log; logits, box deltas and features.
        """
        head, rois = self.bbox_head, bbox2roi([res.priors for res in sampling_results])
        targets = head.get_targets(sampling_results, self.train_cfg)
        labels, weights, box_targets, box_weights = targets
        objects = object_indices(sampling_results)
        feats = pool(self, x, rois)
        drawn, drawn_targets, drawn_labels = self.memory.draw(
            1 / head.loss_cls.scores[:-1], self.classes, self.per_class
        )
        cls_score, bbox_pred = head(torch.cat([feats, drawn.to(feats.dtype)]))
        labels = torch.cat([labels, drawn_labels])
        # One mean score for each ground-truth object, and one for each class drawn.
        groups = torch.cat([objects, len(objects) + drawn_labels])
        means, classes = mean_scores(cls_score.detach(), labels, groups, head.num_classes)
        head.loss_cls.update_scores(means, classes)
        losses = head.loss(
            cls_score,
            bbox_pred,
            torch.cat([rois, rois.new_zeros(len(drawn_labels), 5)]),
            labels,
            torch.cat([weights, weights.new_ones(len(drawn_labels))]),
            torch.cat([box_targets, drawn_targets]),
            torch.cat([box_weights, torch.ones_like(drawn_targets)]),
        )
        return {
            "cls_score": cls_score,
            "bbox_pred": bbox_pred,
            "bbox_feats": feats,
            "loss_bbox": losses,
        }


def jitter_boxes(boxes: Tensor, times: int) -> Tensor:
    """Repeat each of (g, 4) boxes and move every side by up to 1/6 of its width or height.

    Returns:
        (g * times, 4) boxes, x1, y1, x2, y2.
    """
    boxes = boxes.repeat_interleave(times, dim=0)
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * size / 6


def object_indices(sampling_results: list) -> Tensor:
    """Return the ground-truth object of each sampled RoI.

    Returns:
        (N,) int64, numbered through the batch; -1: none.
    """
    objects, offset = [], 0
    for result in sampling_results:
        assigned = result.pos_assigned_gt_inds
        objects += [offset + assigned, assigned.new_full((len(result.neg_priors),), -1)]
        offset += result.num_gts
    return torch.cat(objects)


def mean_scores(
    logits: Tensor, labels: Tensor, groups: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Compute the mean score of the true class within each group of foreground RoIs.

    Args:
        logits: (N, C+1).
        labels: (N,) int64: 0 .. C-1 foreground, C background.
        groups: (N,) int64, the group of each RoI; a group has RoIs of one class.
        num_classes: C.

    Returns:
        Mean softmax scores (k,) and the groups' classes (k,).
    """
    fg = labels < num_classes
    scores = logits[fg].float().softmax(dim=1).gather(1, labels[fg, None]).squeeze(1)
    distinct, index, counts = torch.unique(groups[fg], return_inverse=True, return_counts=True)
    means = scores.new_zeros(len(distinct)).index_add_(0, index, scores) / counts
    return means, torch.empty_like(distinct).scatter_(0, index, labels[fg])


@torch.no_grad()
def prefill(
    model: TwoStageDetector,
    dataset,
    images_per_class: int,
    rank: int = 0,
    ranks: int = 1,
    scores: bool = True,
) -> None:
    """Fill the memory and the mean scores of a detector before its training.

    A collective: every rank must call it; each processes other images.

    Args:
        model: A detector with a `LOCERoIHead`; it runs in evaluation mode.
        dataset: An MMDetection training set.
        images_per_class: Images of every class, fewer where the data set has fewer.
        rank: This rank.
        ranks: Number of ranks.
        scores: Fill the mean scores too; not where a checkpoint has them.
    """
    head, training = model.roi_head, model.training
    model.eval()
    image_counts: dict[int, int] = {}
    means, classes = [], []
    for index in range(rank, len(dataset), ranks):
        present = set(dataset.get_cat_ids(index))
        if all(image_counts.get(c, 0) >= images_per_class for c in present):
            continue
        for c in present:
            image_counts[c] = image_counts.get(c, 0) + 1
        data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
        x, truth = model.extract_feat(data["inputs"]), data["data_samples"][0].gt_instances
        head.store_features(x, data["data_samples"])
        if not scores:
            continue
        logits = head._bbox_forward(x, bbox2roi([truth.bboxes]))["cls_score"]
        means.append(logits.float().softmax(dim=1).gather(1, truth.labels[:, None]).squeeze(1))
        classes.append(truth.labels)
    loss = head.bbox_head.loss_cls
    empty = loss.scores[:0]  # so that a rank without images can join the collective
    if scores:
        loss.update_scores(torch.cat([empty, *means]), torch.cat([empty.long(), *classes]))
    model.train(training)
