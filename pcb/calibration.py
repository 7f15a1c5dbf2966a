"""Calibration after training: transforms of test-time scores, before thresholds and NMS.

Scores are (N, C+1) tensors or NumPy arrays, background last; the output has the type and dtype of
the input. All calibrations move score between foreground classes. Needs torch and numpy only.

`ConfusionMatrixCalibration` (Eq. 6) and `MeanScoreCalibration` (Eq. 8) are built from statistics of
predictions, which `mean_predictions` computes from saved scores; `NorCal` from class counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pcb.confusion import posterior
from pcb.errors import UserError, require_choice

Array = TypeVar("Array", Tensor, np.ndarray)


class Statistics(NamedTuple):
    """What a calibration may be built from.

    Attributes:
        matrix: (C, C) mean predictions (Eq. 3), where the calibration needs them.
        image_counts: (C,) training images of each class, where the calibration needs them.
        classifier: How the scores were made: 'softmax', 'seesaw' or 'sigmoid', see `NorCal`.
    """

    matrix: Tensor | np.ndarray | None
    image_counts: Tensor | np.ndarray | None
    classifier: str


class _Calibration(Protocol):
    num_classes: int


def _accepts_arrays(calibrate: Callable[..., Tensor]) -> Callable[..., Array]:
    """Let a method from tensor to tensor take NumPy arrays too, and check the number of columns."""

    @wraps(calibrate)
    def wrapper(self: _Calibration, scores: Array) -> Array:
        columns = scores.shape[-1] if scores.ndim else 0
        if columns != self.num_classes + 1:
            raise UserError(
                f"scores have {columns} columns, but this {type(self).__name__} was built for "
                f"{self.num_classes} classes",
                f"give {self.num_classes + 1}: a column for each class, background last (where "
                "scores have none: one minus their sum, or zeros for sigmoids)",
            )
        if isinstance(scores, Tensor):
            return cast("Array", calibrate(self, scores))
        return cast("Array", calibrate(self, as_tensor(scores)).numpy())

    return wrapper


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """Return a tensor unchanged, and an array of any shape as a tensor that is a copy."""
    # A copy, since torch cannot share an array that is mapped read-only or has negative strides.
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def mean_predictions(scores: Array, labels: Array) -> Array:
    """Compute the confusion matrix M of Eq. 3 from saved scores.

    Args:
        scores: (N, C+1), background last. p̂ (Eq. 1) are the foreground scores divided by their sum.
        labels: (N,) true classes. Samples with a label outside 0 .. C-1, such as background, are
            ignored.

    Returns:
        (C, C) of the type and dtype of `scores`: row i is the mean of p̂ over the samples of class
        i, zero where there is none.
    """
    fg, label = as_tensor(scores)[..., :-1], as_tensor(labels)
    known = (label >= 0) & (label < fg.shape[-1])
    fg, label = fg[known].double(), label[known].long()
    p = fg / fg.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(fg.dtype).tiny)
    sums = p.new_zeros(p.shape[1], p.shape[1]).index_add_(0, label, p)
    counts = label.bincount(minlength=len(sums)).clamp(min=1)
    matrix = (sums / counts[:, None]).to(as_tensor(scores).dtype)
    return cast("Array", matrix if isinstance(scores, Tensor) else matrix.numpy())


class ConfusionMatrixCalibration:
    """Calibration by the confusion matrix: p̃ = M̂ p̂ (Eq. 6).

    p̂ are the foreground scores divided by their sum, M̂ is the posterior (Eq. 5). p̃ is scaled to
    the foreground's former sum, which is 1 - p_bg where scores are a softmax (§3.2). A class that
    is never predicted, an empty column, keeps its score.

    Args:
        matrix: (C, C) mean predictions, row = ground truth (Eq. 3).
    """

    def __init__(self, matrix: Tensor | np.ndarray):
        matrix = as_tensor(matrix)
        self.num_classes = len(matrix)
        self.posterior = posterior(matrix)
        empty = ~matrix.any(dim=0)
        self.posterior[empty, empty] = 1

    @classmethod
    def from_statistics(
        cls, statistics: Statistics, gamma: float | None = None
    ) -> ConfusionMatrixCalibration:
        """Build it from the confusion matrix; it has no `gamma`."""
        assert statistics.matrix is not None
        return cls(statistics.matrix)

    @_accepts_arrays
    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrate scores (N, C+1), background last."""
        return _with_foreground(scores, scores[..., :-1] @ self.posterior.T.to(scores))


class MeanScoreCalibration:
    """Calibration by mean scores: p̃_i ∝ p̂_i / s_i (Eq. 8), renormalised like Eq. 6.

    Args:
        mean_scores: (C,) s, the mean score of each class (Eq. 7), the diagonal of the confusion
            matrix. Classes without a sample, s_i = 0, are not rescaled.
    """

    def __init__(self, mean_scores: Tensor | np.ndarray):
        mean_scores = as_tensor(mean_scores)
        self.num_classes = len(mean_scores)
        self.factors = torch.where(mean_scores > 0, 1 / mean_scores, 1.0)

    @classmethod
    def from_statistics(
        cls, statistics: Statistics, gamma: float | None = None
    ) -> MeanScoreCalibration:
        """Build it from the diagonal of the confusion matrix; it has no `gamma`."""
        assert statistics.matrix is not None
        return cls(statistics.matrix.diagonal())

    @_accepts_arrays
    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrate scores (N, C+1), background last."""
        return _with_foreground(scores, scores[..., :-1] * self.factors.to(scores))


class NorCal:
    """Normalised calibration: the logit of class c is lowered by γ log N_c.

    Source: Pan et al., NeurIPS 2021.

    Args:
        image_counts: (C,) N, the training images of each class.
        gamma: γ; 0 changes nothing.
        classifier: How scores are made from logits:
            'softmax' over C+1 logits: classes are lowered, background is not, and all are
            normalised together (the authors' code);
            'seesaw', a softmax over C classes times P(object): normalised within the foreground
            (our guess);
            'sigmoid', σ(z_c) (1 - σ(z_bg)) as in EQL v2: each σ by itself, without normalisation
            (our guess).
    """

    def __init__(
        self, image_counts: Tensor | np.ndarray, gamma: float, classifier: str = "softmax"
    ):
        require_choice("classifier", classifier, ("softmax", "seesaw", "sigmoid"))
        self.factors = as_tensor(image_counts).double().clamp(min=1) ** -gamma
        self.num_classes = len(self.factors)
        self.classifier = classifier

    @classmethod
    def from_statistics(cls, statistics: Statistics, gamma: float | None = None) -> NorCal:
        """Build it from the class counts and the kind of classifier, for one value of γ."""
        assert statistics.image_counts is not None and gamma is not None
        return cls(statistics.image_counts, gamma, statistics.classifier)

    @_accepts_arrays
    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrate scores (N, C+1), background last."""
        fg, background = scores[..., :-1], scores[..., -1:]
        factors, tiny = self.factors.to(scores), torch.finfo(scores.dtype).tiny
        if self.classifier == "seesaw":
            return _with_foreground(scores, fg * factors)
        if self.classifier == "softmax":
            lowered = torch.cat([fg * factors, background], dim=-1)
            return lowered / lowered.sum(dim=-1, keepdim=True)
        p_object = (1 - background).clamp(min=tiny)
        sigmoid = (fg / p_object).clamp(max=1)
        odds = sigmoid * factors
        lowered = odds / (odds + 1 - sigmoid).clamp(min=tiny) * p_object
        return torch.cat([lowered, background], dim=-1)


def _with_foreground(scores: Tensor, fg: Tensor) -> Tensor:
    """Replace the foreground (N, C) of scores by one of equal sum, proportional to `fg`."""
    total = scores[..., :-1].sum(dim=-1, keepdim=True)
    share = fg / fg.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(fg.dtype).tiny)
    return torch.cat([share * total, scores[..., -1:]], dim=-1)
