"""LOCE's memory-augmented feature sampling (Feng et al., ICCV 2021): weak classes are trained on remembered RoI features too.

Used in LOCE's second stage, with `EquilibriumLoss`. Needs torch's generator only, so that a seed fixes what is drawn.
"""

from __future__ import annotations

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

Memory = tuple[Tensor, Tensor, Tensor]  # features (n, D, h, w), box targets (n, 4), labels (n,)


class FeatureMemory(nn.Module):
    """A ring of RoI features for each class, all of it in buffers and so in checkpoints: C · size · D · h · w values of float32.

    That is 4.9 GB for LVIS, on the model's device, in each process; a checkpoint holds that of rank 0.
    """

    def __init__(self, num_classes: int, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(num_classes, size, *shape))
        self.register_buffer("targets", torch.zeros(num_classes, size, 4))
        self.register_buffer(
            "written", torch.zeros(num_classes, dtype=torch.int64)
        )  # since the start

    @property
    def filled(self) -> Tensor:
        """(C,) number of features at hand for each class."""
        return self.written.clamp(max=self.size)

    @torch.no_grad()
    def write(self, features: Tensor, targets: Tensor, labels: Tensor) -> None:
        """Remember (n, D, h, w) features with their box targets (n, 4) and labels (n,), over the oldest of their class."""
        for c in labels.unique().tolist():
            mine = (labels == c).nonzero().squeeze(1)
            slots = (self.written[c] + torch.arange(len(mine), device=labels.device)) % self.size
            mine, slots = mine[-self.size :], slots[-self.size :]
            self.features[c, slots] = features[mine].to(self.features.dtype)
            self.targets[c, slots] = targets[mine].to(self.targets.dtype)
            self.written[c] += (labels == c).sum()

    @torch.no_grad()
    def draw(self, weights: Tensor, classes: int, each: int) -> Memory:
        """`each` features of every one of `classes` different classes, drawn by `weights` (C,) among those remembered."""
        weights = torch.where(self.filled > 0, weights, 0)
        count = min(classes, int((weights > 0).sum()))
        if not count:
            return self.features[:0, 0], self.targets[:0, 0], self.written[:0]
        drawn = torch.multinomial(weights, count).repeat_interleave(each)
        slots = (torch.rand(len(drawn), device=drawn.device) * self.filled[drawn]).long()
        return self.features[drawn, slots], self.targets[drawn, slots], drawn


class LOCERoIHead(StandardRoIHead):
    """The standard head; its batch of RoIs grows by remembered features of classes that the model is unsure of.

    In each iteration: `jitter` boxes around every ground-truth box, each side moved by up to 1/6 of width or height, are
    pooled (without gradient) and remembered; `classes` classes are drawn with probability ∝ 1 / s, with `each` features
    of every one; the mean scores s learn from the ground-truth objects and from the classes drawn; then the loss is taken over all.
    """

    def __init__(
        self, memory: int = 80, jitter: int = 16, classes: int = 8, each: int = 4, **kwargs
    ):
        super().__init__(**kwargs)
        head = self.bbox_head
        self.jitter, self.classes, self.each = jitter, classes, each
        self.memory = FeatureMemory(
            head.num_classes, memory, (head.in_channels, *head.roi_feat_size)
        )

    @torch.no_grad()
    def remember(self, x: tuple[Tensor, ...], samples: list) -> None:
        """Write features of boxes jittered around the ground truth of the images behind the feature pyramid `x`."""
        boxes, labels = zip(
            *((s.gt_instances.bboxes, s.gt_instances.labels) for s in samples), strict=True
        )
        rois = bbox2roi([jitter(b, self.jitter) for b in boxes])
        if len(rois):
            truth = torch.cat(boxes).repeat_interleave(self.jitter, dim=0)
            targets = self.bbox_head.bbox_coder.encode(rois[:, 1:], truth)
            self.memory.write(
                self._pool(x, rois), targets, torch.cat(labels).repeat_interleave(self.jitter)
            )

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: list, batch_data_samples: list
    ) -> dict[str, Tensor]:
        self.remember(x, batch_data_samples)
        return super().loss(x, rpn_results_list, batch_data_samples)

    def _pool(self, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        feats = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        return self.shared_head(feats) if self.with_shared_head else feats

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list) -> dict:
        head, rois = self.bbox_head, bbox2roi([res.priors for res in sampling_results])
        labels, weights, box_targets, box_weights = head.get_targets(
            sampling_results, self.train_cfg
        )
        objects = objects_of(sampling_results)
        feats = self._pool(x, rois)
        drawn, drawn_targets, drawn_labels = self.memory.draw(
            1 / head.loss_cls.scores[:-1], self.classes, self.each
        )
        cls_score, bbox_pred = head(torch.cat([feats, drawn.to(feats.dtype)]))
        labels = torch.cat([labels, drawn_labels])
        groups = torch.cat(
            [objects, len(objects) + drawn_labels]
        )  # one score for each object, and for each class drawn
        head.loss_cls.update_scores(
            *mean_scores(cls_score.detach(), labels, groups, head.num_classes)
        )
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


def jitter(boxes: Tensor, times: int) -> Tensor:
    """Each of (g, 4) boxes `times` times over, every side moved by up to 1/6 of the box's width or height: (g * times, 4)."""
    boxes = boxes.repeat_interleave(times, dim=0)
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * size / 6


def objects_of(sampling_results: list) -> Tensor:
    """Which ground-truth object each sampled RoI belongs to, numbered through the batch; -1: none."""
    objects, offset = [], 0
    for res in sampling_results:
        objects += [
            offset + res.pos_assigned_gt_inds,
            res.pos_assigned_gt_inds.new_full((len(res.neg_priors),), -1),
        ]
        offset += res.num_gts
    return torch.cat(objects)


def mean_scores(
    logits: Tensor, labels: Tensor, groups: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Mean softmax score of the true class within each group of foreground RoIs: (k,), and the groups' classes (k,)."""
    fg = labels < num_classes
    scores = logits[fg].float().softmax(dim=1).gather(1, labels[fg, None]).squeeze(1)
    distinct, index, counts = groups[fg].unique(return_inverse=True, return_counts=True)
    means = scores.new_zeros(len(distinct)).index_add_(0, index, scores) / counts
    return means, torch.empty_like(distinct).scatter_(0, index, labels[fg])


@torch.no_grad()
def prefill(
    model: nn.Module, dataset, images_per_class: int, rank: int = 0, ranks: int = 1
) -> None:
    """Fill memory and mean scores of a detector with a `LOCERoIHead` from `images_per_class` images of every class, as in evaluation.

    `dataset`: an mmdet training set. Each of several ranks takes images of its own; all must call this.
    """
    head, training = model.roi_head, model.training
    model.eval()
    found: dict[int, int] = {}
    scores, classes = [], []
    for index in range(rank, len(dataset), ranks):
        present = set(dataset.get_cat_ids(index))
        if all(found.get(c, 0) >= images_per_class for c in present):
            continue
        for c in present:
            found[c] = found.get(c, 0) + 1
        data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
        x, truth = model.extract_feat(data["inputs"]), data["data_samples"][0].gt_instances
        head.remember(x, data["data_samples"])
        logits = head._bbox_forward(x, bbox2roi([truth.bboxes]))["cls_score"]
        scores.append(logits.float().softmax(dim=1).gather(1, truth.labels[:, None]).squeeze(1))
        classes.append(truth.labels)
    empty = head.bbox_head.loss_cls.scores[:0]
    head.bbox_head.loss_cls.update_scores(
        torch.cat([empty, *scores]), torch.cat([empty.long(), *classes])
    )
    model.train(training)
