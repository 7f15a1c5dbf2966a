"""The step protocol of the RoI heads: R predictions for each proposal, of which the last is used.

A paradigm (iterative, deep supervision, refinement) subclasses `SteppedRoIHead` and defines in
`steps` how RoI features become R predictions. The base class computes losses and chooses steps at
test time.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.losses import accuracy
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor

from pcb.errors import UserError, require_choice
from pcb.iterative import Prediction


class SteppedRoIHead(StandardRoIHead):
    """Mask R-CNN's RoI head with R predictions for each proposal.

    Loss (Eq. 19): Σ_r w_r L_cls^r + L_loc^R + L_mask; with `regression='each'` (Eq. 12):
    Σ_r w_r (L_cls^r + L_loc^r) + L_mask. Proposals are matched to ground truth once and never move.
    Losses keep MMDetection's names, summed over steps.

    Args:
        num_steps: R; 1 is the standard head. A loss with a `num_steps` must agree.
        step_weights: w_r, R of them.
        regression: Steps whose boxes are trained, the 'last' or 'each'.
        test_cls_step: 0-based step whose logits are used for detection; None: the last.
        test_reg_step: 0-based step whose boxes are used for detection; None: the last.
        **kwargs: Those of MMDetection's StandardRoIHead.

    Raises:
        UserError: The number of steps, of weights and of the loss's steps do not agree.
    """

    def __init__(
        self,
        num_steps: int = 3,
        step_weights: Sequence[float] = (0.2, 0.2, 0.6),
        regression: str = "last",
        test_cls_step: int | None = None,
        test_reg_step: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        name = type(self).__name__
        if len(step_weights) != num_steps:
            raise UserError(
                f"{name}: {num_steps} steps, {len(step_weights)} step_weights",
                "give one weight for each step",
            )
        require_choice("regression", regression, ("last", "each"))
        regulariser = getattr(self.bbox_head.loss_cls, "pcb", None)
        if regulariser is not None and regulariser.num_steps != num_steps:
            raise UserError(
                f"{name} has {num_steps} steps, its loss was built with "
                f"num_steps={regulariser.num_steps}",
                "give both the same number",
            )
        self.num_steps, self.step_weights = num_steps, tuple(step_weights)
        self.regression = regression
        self.test_cls_step, self.test_reg_step = test_cls_step, test_reg_step

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        """Compute the predictions of all R steps, first to last; for subclasses.

        Args:
            roi_feats: (N, D, h, w) pooled features.

        Returns:
            R pairs of logits (N, channels) and box deltas (N, 4C).
        """
        raise NotImplementedError

    def step_predictions(self, x: tuple[Tensor, ...], rois: Tensor) -> list[Prediction]:
        """Compute logits and box deltas of every step, in one forward pass.

        Scores follow from logits by `bbox_head.loss_cls.get_activation`.

        Args:
            x: Feature pyramid.
            rois: (N, 5: image, x1, y1, x2, y2).

        Returns:
            As `steps`.
        """
        return self.steps(pool(self, x, rois))

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict:
        feats = pool(self, x, rois)
        steps = self.steps(feats)
        cls_step = -1 if self.test_cls_step is None else self.test_cls_step
        reg_step = -1 if self.test_reg_step is None else self.test_reg_step
        return {
            "cls_score": steps[cls_step][0],
            "bbox_pred": steps[reg_step][1],
            "bbox_feats": feats,
            "steps": steps,
        }

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list) -> dict:
        """Compute the losses of the sampled RoIs; overrides StandardRoIHead.

        Args:
            x: Feature pyramid of a batch of N images, (N, D, h, w) for each level.
            sampling_results: N results of MMDetection's sampler.

        Returns:
            `loss_bbox`, the losses to log; logits and box deltas of the test steps, features and
            the predictions of all `steps`.
        """
        rois = bbox2roi([res.priors for res in sampling_results])
        results = self._bbox_forward(x, rois)
        targets = self.bbox_head.get_targets(sampling_results, self.train_cfg)
        results["loss_bbox"] = self.step_losses(results["steps"], rois, *targets)
        return results

    def step_losses(
        self,
        steps: list[Prediction],
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of all steps against one set of targets.

        They are computed in step order, in which the confusion matrix learns.

        Args:
            steps: Predictions of all steps.
            rois: (N, 5: image, x1, y1, x2, y2).
            labels: (N,) int64: 0 .. C-1 foreground, C background.
            label_weights: (N,).
            bbox_targets: (N, 4).
            bbox_weights: (N, 4).

        Returns:
            The losses to log, summed over steps, and the accuracy of the last step.
        """
        losses: dict[str, Tensor] = {}
        box_targets = rois, labels, label_weights, bbox_targets, bbox_weights

        def add(key: str, value: Tensor) -> None:
            losses[key] = losses[key] + value if key in losses else value

        for step, (cls_score, bbox_pred) in enumerate(steps):
            weight, last = self.step_weights[step], step == self.num_steps - 1
            classification = self.classification_loss(cls_score, labels, label_weights, step)
            for key, value in classification.items():
                add(key, weight * value)
            if last or self.regression == "each":
                loss = self.bbox_head.loss(None, bbox_pred, *box_targets)["loss_bbox"]
                add("loss_bbox", (weight if self.regression == "each" else 1) * loss)
        losses.update(self.accuracy(steps[-1][0], labels))
        return losses

    def classification_loss(
        self, cls_score: Tensor, labels: Tensor, label_weights: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Compute the classification losses of one step.

        Also called with N = 0, since other ranks may wait in a collective.

        Args:
            cls_score: (N, channels) logits.
            labels: (N,) int64.
            label_weights: (N,).
            step: 0-based step.

        Returns:
            The losses by name.
        """
        loss = self.bbox_head.loss_cls
        kwargs = {"step": step} if getattr(loss, "takes_step", False) else {}
        avg_factor = (label_weights > 0).sum().clamp(min=1)
        value = loss(cls_score, labels, label_weights, avg_factor=avg_factor, **kwargs)
        return value if isinstance(value, dict) else {"loss_cls": value}

    def accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the accuracy of logits (N, channels) in percent, under MMDetection's names."""
        if self.bbox_head.custom_activation:
            return self.bbox_head.loss_cls.get_accuracy(cls_score, labels)
        return {"acc": accuracy(cls_score, labels)}


def pool(head: StandardRoIHead, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Pool features of RoIs from a feature pyramid, for any RoI head.

    Args:
        head: The RoI head.
        x: Feature pyramid.
        rois: (N, 5: image, x1, y1, x2, y2).

    Returns:
        (N, D, h, w) features.
    """
    feats = head.bbox_roi_extractor(x[: head.bbox_roi_extractor.num_inputs], rois)
    return head.shared_head(feats) if head.with_shared_head else feats
