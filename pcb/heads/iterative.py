"""The paper's iterative paradigm (§3.3): predictions refine the next step's RoI feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcb.heads.stepped import Prediction, SteppedRoIHead


class IterativeRoIHead(SteppedRoIHead):
    """X^{r+1} = X^r ⊙ MLP_loc(b^r) + MLP_cls(z^r), with X^0 the ordinary RoI feature.

    Boxes attend over the h·w cells, classes over the D channels. The same box head predicts at each
    step. The MLPs (FC-ReLU-FC) are shared by all steps and take the raw logits and the raw box
    deltas. Nothing is detached: later losses train earlier steps.

    Args:
        hidden: Units of both MLPs (512 in the paper).
        layer_norm: LayerNorm on the logits before MLP_cls (the paper uses it with EQL v2).
        identity_start: Start at X^{r+1} ≈ X^r: last layers with weights N(0, .01), bias 1 in
            MLP_loc and 0 in MLP_cls. The released code starts from torch's defaults, which at first
            replaces the features by noise; a short schedule from pretrained weights does not
            recover from it.
        **kwargs: Those of `SteppedRoIHead`.
    """

    def __init__(
        self, *, hidden: int = 512, layer_norm: bool = False, identity_start: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        if self.num_steps == 1:
            return  # nothing is fed back, and DDP rejects parameters without a gradient
        head = self.bbox_head
        logits, deltas = head.fc_cls.out_features, head.fc_reg.out_features
        norm = [nn.LayerNorm(logits)] if layer_norm else []
        self.mlp_cls = nn.Sequential(*norm, *_mlp(logits, hidden, head.in_channels))
        self.mlp_loc = nn.Sequential(*_mlp(deltas, hidden, head.roi_feat_area))
        if identity_start:
            for mlp, bias in ((self.mlp_cls, 0.0), (self.mlp_loc, 1.0)):
                last = mlp[-1]
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.01)
                nn.init.constant_(last.bias, bias)

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        """Return the predictions of all steps; see `SteppedRoIHead.steps`."""
        predictions = [self.bbox_head(roi_feats)]
        while len(predictions) < self.num_steps:
            roi_feats = self.refine(roi_feats, *predictions[-1])
            predictions.append(self.bbox_head(roi_feats))
        return predictions

    def refine(self, roi_feats: Tensor, cls_score: Tensor, bbox_pred: Tensor) -> Tensor:
        """Compute X^{r+1} from step r.

        Args:
            roi_feats: (N, D, h, w), X^r.
            cls_score: (N, channels) logits z^r.
            bbox_pred: (N, 4C) box deltas b^r, or (N, 4) where class-agnostic.

        Returns:
            (N, D, h, w), X^{r+1}.
        """
        n, depth, height, width = roi_feats.shape
        factors = self.mlp_loc(bbox_pred).view(n, 1, height, width)
        summands = self.mlp_cls(cls_score).view(n, depth, 1, 1)
        return torch.addcmul(summands, roi_feats, factors)


def _mlp(inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
