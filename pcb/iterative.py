"""The paper's iterative paradigm (§3.3) as a plain module: RoI features in, R predictions out.

Needs torch only. `pcb.heads.iterative` wraps it for MMDetection; docs/plugin.md shows it in
torchvision's and detectron2's heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Logits (N, channels) and box deltas (N, 4C), or (N, 4) where class-agnostic.
Prediction = tuple[Tensor, Tensor]


class IterativePrediction(nn.Module):
    """X^{r+1} = X^r ⊙ MLP_loc(b^r) + MLP_cls(z^r), with X^0 the ordinary RoI feature.

    Boxes attend over the h·w cells, classes over the D channels. The same predictor is used at each
    step. The MLPs (FC-ReLU-FC) are shared by all steps and take the raw logits and the raw box
    deltas. Nothing is detached: later losses train earlier steps.

    Args:
        logits: Logits of the predictor: C+1, or C+2 for Seesaw.
        deltas: Box deltas of the predictor: 4C, or 4 where class-agnostic.
        channels: D, channels of a RoI feature.
        area: h·w, cells of a RoI feature.
        num_steps: R; with 1 there are no MLPs, since DDP rejects parameters without a gradient.
        hidden: Units of both MLPs (512 in the paper).
        layer_norm: LayerNorm on the logits before MLP_cls (the paper uses it with EQL v2).
        identity_start: Start at X^{r+1} ≈ X^r: last layers with weights N(0, .01), bias 1 in
            MLP_loc and 0 in MLP_cls. The released code starts from torch's defaults, which at first
            replaces the features by noise; a short schedule from pretrained weights does not
            recover from it.
    """

    def __init__(
        self,
        logits: int,
        deltas: int,
        channels: int = 256,
        area: int = 49,
        num_steps: int = 3,
        hidden: int = 512,
        layer_norm: bool = False,
        identity_start: bool = False,
    ):
        super().__init__()
        self.num_steps = num_steps
        if num_steps == 1:
            return
        norm = [nn.LayerNorm(logits)] if layer_norm else []
        self.mlp_cls = nn.Sequential(*norm, *_mlp(logits, hidden, channels))
        self.mlp_loc = nn.Sequential(*_mlp(deltas, hidden, area))
        if identity_start:
            for mlp, bias in ((self.mlp_cls, 0.0), (self.mlp_loc, 1.0)):
                last = mlp[-1]
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.01)
                nn.init.constant_(last.bias, bias)

    def forward(
        self, features: Tensor, predict: Callable[[Tensor], Prediction]
    ) -> list[Prediction]:
        """Predict R times.

        Args:
            features: (N, D, h, w) pooled features of N RoIs, X^0.
            predict: The detector's own box head, from features (N, D, h, w) to logits (N, channels)
                and box deltas (N, 4C). It stays a part of the detector, under its own names.

        Returns:
            The R predictions, first to last.
        """
        predictions = [predict(features)]
        while len(predictions) < self.num_steps:
            features = self.refine(features, *predictions[-1])
            predictions.append(predict(features))
        return predictions

    def refine(self, features: Tensor, logits: Tensor, deltas: Tensor) -> Tensor:
        """Compute X^{r+1} from step r.

        Args:
            features: (N, D, h, w), X^r.
            logits: (N, channels) z^r.
            deltas: (N, 4C) b^r, or (N, 4) where class-agnostic.

        Returns:
            (N, D, h, w), X^{r+1}.
        """
        n, depth, height, width = features.shape
        factors = self.mlp_loc(deltas).view(n, 1, height, width)
        summands = self.mlp_cls(logits).view(n, depth, 1, 1)
        return torch.addcmul(summands, features, factors)


def _mlp(inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
