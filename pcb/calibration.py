"""Calibration after training: transforms of test-time scores (N, C+1), background last, before NMS. Needs torch only.

`ConfusionMatrixCalibration` (Eq. 6) and `MeanScoreCalibration` (Eq. 8) use statistics of predictions, `NorCal` class
counts. All of them move score between foreground classes; the background score stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcb.confusion import posterior

Counts = Tensor  # (C,) training images of each class


class ConfusionMatrixCalibration:
    """Eq. 6: p̃ = M̂ p̂, with p̂ the foreground scores divided by their sum, M̂ the posterior (Eq. 5) of a (C, C) matrix of mean predictions.

    p̃ is brought back to sum one and multiplied by what p̂ was divided by, which is 1 - p_bg where scores are a softmax
    (§3.2). A class that is never predicted, an empty column, keeps its score.
    """

    def __init__(self, matrix: Tensor):
        self.posterior = posterior(matrix)
        empty = ~matrix.any(dim=0)
        self.posterior[empty, empty] = 1

    def __call__(self, scores: Tensor) -> Tensor:
        return with_foreground(scores, scores[..., :-1] @ self.posterior.T.to(scores))


class MeanScoreCalibration:
    """Eq. 8: p̃_i ∝ p̂_i / s_i, with s (C,) the mean score of each class (Eq. 7), the diagonal of the confusion matrix.

    Renormalised like Eq. 6. Classes without a sample, s_i = 0, are not rescaled.
    """

    def __init__(self, mean_scores: Tensor):
        self.factors = torch.where(mean_scores > 0, 1 / mean_scores, 1.0)

    def __call__(self, scores: Tensor) -> Tensor:
        return with_foreground(scores, scores[..., :-1] * self.factors.to(scores))


class NorCal:
    """Normalised calibration (Pan et al., NeurIPS 2021): class logits are lowered by γ log N_c, N the training images of each class.

    `classifier` says how that reads in scores:
    - 'softmax' over C+1 logits: background competes with the lowered classes, and all are normalised together (the authors' code).
    - 'seesaw', a softmax over C classes times P(object): normalised within the foreground (guess).
    - 'sigmoid', σ(z_c) (1 - σ(z_bg)) as in EQL v2: each σ by itself, nothing normalised (guess).
    γ = 0 changes nothing.
    """

    def __init__(self, image_counts: Counts, gamma: float, classifier: str = "softmax"):
        if classifier not in ("softmax", "seesaw", "sigmoid"):
            raise ValueError(f"classifier={classifier!r}: 'softmax', 'seesaw' or 'sigmoid'")
        self.factors = image_counts.double().clamp(min=1) ** -gamma
        self.classifier = classifier

    def __call__(self, scores: Tensor) -> Tensor:
        fg, background = scores[..., :-1], scores[..., -1:]
        factors = self.factors.to(scores)
        if self.classifier == "seesaw":
            return with_foreground(scores, fg * factors)
        if self.classifier == "softmax":
            lowered = torch.cat([fg * factors, background], dim=-1)
            return lowered / lowered.sum(dim=-1, keepdim=True)
        object_ = (1 - background).clamp(min=torch.finfo(scores.dtype).tiny)
        own = (fg / object_).clamp(max=1)
        odds = own * factors
        return torch.cat([odds / (odds + 1 - own).clamp(min=torch.finfo(scores.dtype).tiny) * object_, background], dim=-1)


def with_foreground(scores: Tensor, fg: Tensor) -> Tensor:
    """`scores` with foreground proportional to `fg` (N, C), its sum and the background as they were."""
    total = scores[..., :-1].sum(dim=-1, keepdim=True)
    share = fg / fg.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(fg.dtype).tiny)
    return torch.cat([share * total, scores[..., -1:]], dim=-1)
