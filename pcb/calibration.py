"""Calibration after training: transforms of test-time scores (N, C+1), background last, before NMS. Needs torch only.

Scores and statistics are tensors or NumPy arrays; what comes back is of the kind, and has the dtype, of the scores that went in.

`ConfusionMatrixCalibration` (Eq. 6) and `MeanScoreCalibration` (Eq. 8) use statistics of predictions, which `mean_predictions` takes
of saved ones, `NorCal` class counts. All of them move score between foreground classes; the background score stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pcb.confusion import posterior
from pcb.errors import UserError

Array = TypeVar("Array", Tensor, np.ndarray)


class Statistics(NamedTuple):
    """What a calibration may be built from.

    Attributes:
        matrix: (C, C) mean predictions (Eq. 3), where the calibration needs them.
        image_counts: (C,) training images of each class.
        classifier: How the scores were made: 'softmax', 'seesaw' or 'sigmoid', see `NorCal`.
    """

    matrix: Tensor | np.ndarray | None
    image_counts: Tensor | np.ndarray | None
    classifier: str


def transform(calibrate: Callable[[object, Tensor], Tensor]) -> Callable[[object, Array], Array]:
    """Makes a method from tensor to tensor one that takes NumPy arrays too. Raises `UserError` where the columns are not C+1."""

    @wraps(calibrate)
    def either(self, scores: Array) -> Array:
        columns = scores.shape[-1] if scores.ndim else 0
        if columns != self.num_classes + 1:
            raise UserError(
                f"{columns} columns of scores, but {type(self).__name__} was built for {self.num_classes} classes",
                f"give {self.num_classes + 1}: a column for each class, background last "
                "(where scores have none: one minus their sum, or zeros for sigmoids)",
            )
        if isinstance(scores, Tensor):
            return calibrate(self, scores)
        return calibrate(self, tensor(scores)).numpy()

    return either


def tensor(values: Array) -> Tensor:
    """A tensor as it is, a copy of an array: one that is mapped from a file or reversed has no tensor of its own."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def mean_predictions(scores: Array, labels: Array) -> Array:
    """M of Eq. 3 from saved scores (N, C+1) and the true classes (N,): (C, C), row i the mean of p̂ (Eq. 1) over the samples of class i.

    p̂ are the foreground scores divided by their sum. Samples with another label than 0 .. C-1, such as background, are left out;
    the row of a class without a sample is zero.
    """
    fg, of = tensor(scores)[..., :-1], tensor(labels)
    known = (of >= 0) & (of < fg.shape[-1])
    fg, of = fg[known].double(), of[known].long()
    p = fg / fg.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(fg.dtype).tiny)
    sums = p.new_zeros(p.shape[1], p.shape[1]).index_add_(0, of, p)
    matrix = (sums / of.bincount(minlength=len(sums)).clamp(min=1)[:, None]).to(
        tensor(scores).dtype
    )
    return matrix if isinstance(scores, Tensor) else matrix.numpy()


class ConfusionMatrixCalibration:
    """Eq. 6: p̃ = M̂ p̂, with p̂ the foreground scores divided by their sum, M̂ the posterior (Eq. 5) of a (C, C) matrix of mean predictions.

    p̃ is brought back to sum one and multiplied by what p̂ was divided by, which is 1 - p_bg where scores are a softmax
    (§3.2). A class that is never predicted, an empty column, keeps its score.
    """

    def __init__(self, matrix: Tensor | np.ndarray):
        matrix = tensor(matrix)
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

    @transform
    def __call__(self, scores: Tensor) -> Tensor:
        return with_foreground(scores, scores[..., :-1] @ self.posterior.T.to(scores))


class MeanScoreCalibration:
    """Eq. 8: p̃_i ∝ p̂_i / s_i, with s (C,) the mean score of each class (Eq. 7), the diagonal of the confusion matrix.

    Renormalised like Eq. 6. Classes without a sample, s_i = 0, are not rescaled.
    """

    def __init__(self, mean_scores: Tensor | np.ndarray):
        mean_scores = tensor(mean_scores)
        self.num_classes = len(mean_scores)
        self.factors = torch.where(mean_scores > 0, 1 / mean_scores, 1.0)

    @classmethod
    def from_statistics(
        cls, statistics: Statistics, gamma: float | None = None
    ) -> MeanScoreCalibration:
        """Build it from the diagonal of the confusion matrix; it has no `gamma`."""
        assert statistics.matrix is not None
        return cls(statistics.matrix.diagonal())

    @transform
    def __call__(self, scores: Tensor) -> Tensor:
        return with_foreground(scores, scores[..., :-1] * self.factors.to(scores))


class NorCal:
    """Normalised calibration (Pan et al., NeurIPS 2021): class logits are lowered by γ log N_c, N (C,) the training images of each class.

    `classifier` says how that reads in scores:
    - 'softmax' over C+1 logits: background competes with the lowered classes, and all are normalised together (the authors' code).
    - 'seesaw', a softmax over C classes times P(object): normalised within the foreground (guess).
    - 'sigmoid', σ(z_c) (1 - σ(z_bg)) as in EQL v2: each σ by itself, nothing normalised (guess).
    γ = 0 changes nothing.
    """

    def __init__(
        self, image_counts: Tensor | np.ndarray, gamma: float, classifier: str = "softmax"
    ):
        if classifier not in ("softmax", "seesaw", "sigmoid"):
            raise ValueError(f"classifier={classifier!r}: 'softmax', 'seesaw' or 'sigmoid'")
        self.factors = tensor(image_counts).double().clamp(min=1) ** -gamma
        self.num_classes = len(self.factors)
        self.classifier = classifier

    @classmethod
    def from_statistics(cls, statistics: Statistics, gamma: float | None = None) -> NorCal:
        """Build it from the class counts and the kind of classifier, for one value of γ."""
        assert statistics.image_counts is not None and gamma is not None
        return cls(statistics.image_counts, gamma, statistics.classifier)

    @transform
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
        return torch.cat(
            [
                odds / (odds + 1 - own).clamp(min=torch.finfo(scores.dtype).tiny) * object_,
                background,
            ],
            dim=-1,
        )


def with_foreground(scores: Tensor, fg: Tensor) -> Tensor:
    """`scores` with foreground proportional to `fg` (N, C), its sum and the background as they were."""
    total = scores[..., :-1].sum(dim=-1, keepdim=True)
    share = fg / fg.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(fg.dtype).tiny)
    return torch.cat([share * total, scores[..., -1:]], dim=-1)
