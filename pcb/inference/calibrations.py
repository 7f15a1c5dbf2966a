"""Score functions: how each evaluation variant scores proposals, before thresholds and NMS.

`plain` takes the last step's scores and `step1`, `step2` those of an earlier step (Table 7); a
calibration transforms the last step's (`pcb.registry.CALIBRATIONS`). Boxes are the last step's in
every variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from torch import Tensor

from pcb.calibration import Statistics
from pcb.registry import CALIBRATIONS
from pcb.study.variants import NORCAL, gamma_of

# Scores of every step, each (n, C+1) with background last -> (n, C+1) scores of the variant.
ScoreFunction = Callable[[list[Tensor]], Tensor]


def activation(model: TwoStageDetector) -> Callable[[Tensor], Tensor]:
    """How the classifier's logits (n, channels) become scores (n, C+1)."""
    head = model.roi_head.bbox_head
    return head.loss_cls.get_activation if head.custom_cls_channels else _softmax


def score_functions(
    model: TwoStageDetector,
    columns: Sequence[str],
    matrices: Mapping[str, Tensor] | None = None,
    image_counts: Sequence[int] = (),
) -> dict[str, ScoreFunction]:
    """The score function behind each column of scores.

    Args:
        model: The detector.
        columns: Names by `pcb.study.variants.score_columns`.
        matrices: (C, C) confusion matrices of the splits `val` and `train`, if columns need them.
        image_counts: (C,) training images of each class, for NorCal.
    """
    classifier = getattr(model.roi_head.bbox_head.loss_cls, "score_kind", "softmax")
    return {
        column: score_function(column, classifier, matrices or {}, image_counts)
        for column in columns
    }


def score_function(
    column: str, classifier: str, matrices: Mapping[str, Tensor], image_counts: Sequence[int]
) -> ScoreFunction:
    """The score function of one column.

    Args:
        column: A name by `pcb.study.variants.score_columns`.
        classifier: As in `Statistics`.
        matrices: (C, C) confusion matrices of the splits `val` and `train`, if the column needs
            one.
        image_counts: (C,) training images of each class, for NorCal.
    """
    if column == "plain":
        return lambda steps: steps[-1]
    if column.startswith("step"):
        step = int(column.removeprefix("step")) - 1
        return lambda steps: steps[step]
    gamma = gamma_of(column)
    entry = CALIBRATIONS[column if gamma is None else NORCAL]
    matrix = matrices[entry.statistics_of] if entry.statistics_of else None
    statistics = Statistics(matrix, torch.tensor(image_counts), classifier)
    calibration: Any = entry.load()
    calibrate = calibration.from_statistics(statistics, gamma)
    return lambda steps: calibrate(steps[-1])


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)
