"""Balanced group softmax, BAGS (Li et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pcb.errors import UserError
from pcb.losses.base import ClassifierLoss, Reduce


class BAGSLoss(ClassifierLoss):
    """One softmax for each group of classes of similar frequency, each with an "others" class.

    A further softmax separates objects from background. Logits: C classes, one "others" for each of
    the G groups, object, background; C+6 on LVIS. The loss is the sum of the softmaxes' mean cross
    entropies. Test-time scores: softmax of the group, "others" included, times P(object).

    Args:
        num_classes: C.
        instance_counts: (C,) training instances of each class; they decide its group.
        edges: Smallest count of the second and later groups. A group without a class does not
            exist.
        others_ratio: A group's mean is over its own positives and this many times as many other
            RoIs, drawn for each call by torch's generator; without own positives it is 0.
        loss_weight: See `ClassifierLoss`.
        reduction: See `ClassifierLoss`.
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
            raise UserError(
                f"{len(instance_counts)} instance_counts for {num_classes} classes",
                "give one count for each class, without background",
            )
        self.others_ratio = others_ratio
        group = torch.bucketize(torch.tensor(instance_counts), torch.tensor(edges), right=True)
        groups = group.unique()
        self.num_groups = len(groups)
        self.extra_channels = self.num_groups + 2
        for g, value in enumerate(groups):
            members = (group == value).nonzero().squeeze(1)
            # Not in checkpoints, since they follow from the data set.
            self.register_buffer(f"members{g}", members, persistent=False)

    def group(self, g: int) -> tuple[Tensor, Tensor]:
        """Return the classes (k,) of group `g` and the indices of its logits (k+1,)."""
        members = getattr(self, f"members{g}")
        return members, F.pad(members, (0, 1), value=self.num_classes + g)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Compute test-time scores (N, C+1), background last."""
        objectness = cls_score[..., -2:].softmax(dim=-1)
        # On a GPU, autocast computes a softmax of float16 in float32.
        scores = objectness.new_zeros(*cls_score.shape[:-1], self.num_classes + 1)
        for members, columns in map(self.group, range(self.num_groups)):
            in_group = cls_score[..., columns].softmax(dim=-1)[..., :-1]
            scores[..., members] = in_group * objectness[..., :1]
        scores[..., -1] = objectness[..., 1]
        return scores

    def foreground(self, cls_score: Tensor) -> Tensor:
        """Compute p̂ (N, C): class scores divided by their sum (our guess).

        P(object) cancels. A softmax of the logarithms of the scores holds where all of them
        underflow.
        """
        groups = [self.group(g) for g in range(self.num_groups)]
        log_scores = [cls_score[..., c].log_softmax(dim=-1)[..., :-1] for _, c in groups]
        p = torch.cat(log_scores, dim=-1).softmax(dim=-1)
        by_class = torch.cat([members for members, _ in groups]).argsort()
        return p.index_select(-1, by_class)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the accuracy in percent, from logits (N, channels) and labels (N,)."""
        correct = self.get_activation(cls_score).argmax(dim=1) == labels
        return {"acc": 100 * correct.float().mean() if len(labels) else cls_score.new_zeros(())}

    def compute(
        self, logits: Tensor, label: Tensor, reduce: Reduce, step: int | None
    ) -> dict[str, Tensor]:
        """Compute the loss of each softmax; see `ClassifierLoss.compute`."""
        is_background = (label == self.num_classes).long()
        objectness = F.cross_entropy(logits[:, -2:], is_background, reduction="none")
        losses = {"loss_cls_objectness": reduce(objectness)}
        for g in range(self.num_groups):
            members, columns = self.group(g)
            # Index of each label within the group; "others" is the last.
            index = torch.full((self.num_classes + 1,), len(members), device=label.device)
            index[members] = torch.arange(len(members), device=label.device)
            target = index[label]
            rows = self.draw(target < len(members))
            loss = F.cross_entropy(logits[rows][:, columns], target[rows], reduction="sum")
            losses[f"loss_cls_group{g}"] = self.loss_weight * loss / max(len(rows), 1)
        return losses

    def draw(self, in_group: Tensor) -> Tensor:
        """Choose the rows that a group learns from.

        Args:
            in_group: (N,) bool, RoIs of the group's classes.

        Returns:
            (n,) int64: all RoIs of the group, and `others_ratio` times as many random others.
        """
        rows, other_rows = in_group.nonzero().squeeze(1), (~in_group).nonzero().squeeze(1)
        count = min(len(other_rows), int(self.others_ratio * len(rows)))
        drawn = torch.randperm(len(other_rows), device=in_group.device)[:count]
        return torch.cat([rows, other_rows[drawn]])
