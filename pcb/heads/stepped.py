"""The step protocol of the RoI heads: a proposal is classified R times, every step is trained, the last one is used.

A paradigm (iterative, deep supervision, refinement) subclasses `SteppedRoIHead` and says in `steps` how RoI features
become R predictions. Losses, test-time choice of a step and access to all steps are written here once.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.losses import accuracy
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor

from pcb.errors import UserError

Prediction = tuple[
    Tensor, Tensor
]  # logits (N, channels), box deltas (N, 4C), or (N, 4) where class-agnostic


class SteppedRoIHead(StandardRoIHead):
    """Mask R-CNN's RoI head with R predictions for each proposal.

    Loss (Eq. 19): Σ_r w_r L_cls^r + L_loc^R + L_mask; with `regression='each'` (Eq. 12) Σ_r w_r (L_cls^r + L_loc^r) + L_mask.
    Proposals are matched to ground truth once and never move. Losses keep mmdet's names, summed over steps.

    Args:
        num_steps: R. With 1 this is the standard head.
        step_weights: w_r. A loss that needs R (α_r) has its own `num_steps`; the two must agree.
        regression: 'last' or 'each'.
        test_cls_step, test_reg_step: 0-based step whose logits and boxes are used for detection; None: the last.
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
        if len(step_weights) != num_steps:
            raise UserError(
                f"{type(self).__name__}: {num_steps} steps, {len(step_weights)} step_weights",
                "give one weight for each step",
            )
        if regression not in ("last", "each"):
            raise UserError(
                f"{type(self).__name__}: regression={regression!r}", "choose 'last' or 'each'"
            )
        regulariser = getattr(self.bbox_head.loss_cls, "pcb", None)
        if regulariser is not None and regulariser.num_steps != num_steps:
            raise UserError(
                f"{type(self).__name__} has {num_steps} steps, its loss was built with num_steps={regulariser.num_steps}",
                "give both the same number",
            )
        self.num_steps, self.step_weights, self.regression = (
            num_steps,
            tuple(step_weights),
            regression,
        )
        self.test_cls_step, self.test_reg_step = test_cls_step, test_reg_step

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        """RoI features (N, D, h, w) -> the predictions of all R steps, first to last."""
        raise NotImplementedError

    def roi_features(self, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """Feature pyramid and RoIs (N, 5: image, x1, y1, x2, y2) -> pooled features (N, D, h, w)."""
        feats = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        return self.shared_head(feats) if self.with_shared_head else feats

    def step_predictions(self, x: tuple[Tensor, ...], rois: Tensor) -> list[Prediction]:
        """Raw logits and box deltas of every step for the given RoIs, in one forward pass. Scores: `bbox_head.loss_cls.get_activation`."""
        return self.steps(self.roi_features(x, rois))

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict:
        feats = self.roi_features(x, rois)
        steps = self.steps(feats)
        cls_step, reg_step = (
            -1 if s is None else s for s in (self.test_cls_step, self.test_reg_step)
        )
        return {
            "cls_score": steps[cls_step][0],
            "bbox_pred": steps[reg_step][1],
            "bbox_feats": feats,
            "steps": steps,
        }

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list) -> dict:
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
        """Losses of all steps against the one set of targets, in step order, as a matrix that learns from each needs it."""
        losses: dict[str, Tensor] = {}
        for step, (weight, (cls_score, bbox_pred)) in enumerate(
            zip(self.step_weights, steps, strict=True)
        ):
            last = step == self.num_steps - 1
            for key, value in self.classification_loss(
                cls_score, labels, label_weights, step
            ).items():
                losses[key] = losses.get(key, 0) + weight * value
            if last or self.regression == "each":
                loss = self.bbox_head.loss(
                    None, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights
                )["loss_bbox"]
                losses["loss_bbox"] = (
                    losses.get("loss_bbox", 0) + (weight if self.regression == "each" else 1) * loss
                )
        losses.update(self.accuracy(steps[-1][0], labels))
        return losses

    def classification_loss(
        self, cls_score: Tensor, labels: Tensor, label_weights: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Loss of one step, as a dict. It is also taken of no RoIs at all: other ranks may wait in a collective."""
        loss = self.bbox_head.loss_cls
        kwargs = {"step": step} if getattr(loss, "takes_step", False) else {}
        value = loss(
            cls_score,
            labels,
            label_weights,
            avg_factor=(label_weights > 0).sum().clamp(min=1),
            **kwargs,
        )
        return value if isinstance(value, dict) else {"loss_cls": value}

    def accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.bbox_head.custom_activation:
            return self.bbox_head.loss_cls.get_accuracy(cls_score, labels)
        return {"acc": accuracy(cls_score, labels)}
