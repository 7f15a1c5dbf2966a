"""The paper's iterative paradigm (§3.3): the predictions of a step are embedded back into the RoI feature of the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcb.heads.stepped import Prediction, SteppedRoIHead


class IterativeRoIHead(SteppedRoIHead):
    """X^{r+1} = X^r ⊙ MLP_loc(b^r) + MLP_cls(z^r): boxes attend over the h·w cells, classes over the D channels.

    The same box head predicts at each step from X^r; X^0 is the ordinary RoI feature. The MLPs (FC-ReLU-FC) are shared by all steps and
    take the raw logits and raw, class-specific box deltas. Nothing is detached: later losses train earlier steps.

    Args (besides those of `SteppedRoIHead`):
        hidden: units of both MLPs (512 in the paper).
        layer_norm: LayerNorm on the logits before MLP_cls (the paper uses it with EQL v2).
        identity_start: begin at X^{r+1} ≈ X^r (last layers: weights N(0, .01), bias 1 in MLP_loc and 0 in MLP_cls).
            The released code starts from torch's defaults, which at first replaces the features by noise; on a short schedule
            that starts from pretrained weights this is not made good again.
    """

    def __init__(
        self, *, hidden: int = 512, layer_norm: bool = False, identity_start: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        if self.num_steps == 1:
            return  # nothing is ever fed back, and DDP objects to parameters without a gradient
        logits, deltas = self.bbox_head.fc_cls.out_features, self.bbox_head.fc_reg.out_features
        norm = [nn.LayerNorm(logits)] if layer_norm else []
        self.mlp_cls = nn.Sequential(*norm, *mlp(logits, hidden, self.bbox_head.in_channels))
        self.mlp_loc = nn.Sequential(*mlp(deltas, hidden, self.bbox_head.roi_feat_area))
        if identity_start:
            for layer, bias in ((self.mlp_cls[-1], 0.0), (self.mlp_loc[-1], 1.0)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, bias)

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        predictions = [self.bbox_head(roi_feats)]
        while len(predictions) < self.num_steps:
            roi_feats = self.refine(roi_feats, *predictions[-1])
            predictions.append(self.bbox_head(roi_feats))
        return predictions

    def refine(self, roi_feats: Tensor, cls_score: Tensor, bbox_pred: Tensor) -> Tensor:
        """X^r (N, D, h, w), z^r (N, channels), b^r (N, 4C) -> X^{r+1}."""
        n, depth, height, width = roi_feats.shape
        where = self.mlp_loc(bbox_pred).view(n, 1, height, width)
        what = self.mlp_cls(cls_score).view(n, depth, 1, 1)
        return torch.addcmul(what, roi_feats, where)


def mlp(inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
