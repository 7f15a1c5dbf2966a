"""Balanced group softmax, BAGS (Li et al., CVPR 2020): classes compete only with classes of like frequency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.losses.base import ClassifierLoss, Reduce


class BAGSLoss(ClassifierLoss):
    """One softmax for each group of classes, each with an "others", and one for (object, background).

    Logits: C classes, one "others" for each of the G groups, object, background; C+6 on LVIS. Classes are grouped by
    `instance_counts` (C,) of the training set at `edges`; a group without a class does not exist.
    The loss is the sum of the softmaxes' mean cross entropies. A group's mean is over its own positives and `others_ratio` times as many
    RoIs of the rest, drawn anew each time by torch's generator; without own positives it is 0.
    Test-time scores: softmax of the group, "others" included, times P(object).
    """

    custom_activation = True

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        edges: Sequence[int] = (10, 100, 1000),
        others_ratio: float = 8.0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(num_classes, loss_weight, reduction)
        if len(instance_counts) != num_classes:
            raise ValueError(f"{len(instance_counts)} instance_counts for {num_classes} classes")
        self.others_ratio = others_ratio
        group = torch.bucketize(torch.tensor(instance_counts), torch.tensor(edges), right=True)
        self.num_groups = len(group.unique())
        self.extra_channels = self.num_groups + 2
        for g, which in enumerate(
            group.unique()
        ):  # not in checkpoints: they follow from the data set
            self.register_buffer(
                f"members{g}", (group == which).nonzero().squeeze(1), persistent=False
            )

    def group(self, g: int) -> tuple[Tensor, Tensor]:
        """Classes of a group (k,), and its logits (k+1,): the classes' own, then its "others"."""
        members = getattr(self, f"members{g}")
        return members, F.pad(members, (0, 1), value=self.num_classes + g)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        objectness = cls_score[..., -2:].softmax(dim=-1)
        scores = torch.zeros_like(cls_score[..., : self.num_classes + 1])
        for members, columns in map(self.group, range(self.num_groups)):
            scores[..., members] = (
                cls_score[..., columns].softmax(dim=-1)[..., :-1] * objectness[..., :1]
            )
        scores[..., -1] = objectness[..., 1]
        return scores

    def foreground(self, cls_score: Tensor) -> Tensor:
        """Scores of the classes divided by their sum: there is no one softmax over them (guess)."""
        scores = self.get_activation(cls_score)[..., :-1]
        return scores / scores.sum(dim=-1, keepdim=True)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        right = self.get_activation(cls_score).argmax(dim=1) == labels
        return {"acc": 100 * right.float().mean() if len(labels) else cls_score.new_zeros(())}

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        losses = {
            "loss_cls_objectness": reduce(
                F.cross_entropy(
                    logits[:, -2:], (label == self.num_classes).long(), reduction="none"
                )
            )
        }
        for g in range(self.num_groups):
            members, columns = self.group(g)
            index = torch.full((self.num_classes + 1,), len(members), device=label.device)
            index[members] = torch.arange(len(members), device=label.device)
            target = index[label]
            rows = self.draw(target < len(members))
            loss = F.cross_entropy(logits[rows][:, columns], target[rows], reduction="sum")
            losses[f"loss_cls_group{g}"] = self.loss_weight * loss / max(len(rows), 1)
        return losses

    def draw(self, own: Tensor) -> Tensor:
        """RoIs that a group learns from: all of its `own` (N,) bool, and at random some of the others."""
        mine, others = own.nonzero().squeeze(1), (~own).nonzero().squeeze(1)
        keep = min(len(others), int(self.others_ratio * len(mine)))
        return torch.cat([mine, others[torch.randperm(len(others), device=own.device)[:keep]]])
