"""The evaluation variants of a checkpoint: what each is called, and its rule from the steps' scores to its own.

    plain                 the detector's own scores
    step1, step2          those of an earlier step (Table 7); boxes stay the last step's
    cm-val, ms-val        calibrated by the confusion matrix (Eq. 6) or mean scores (Eq. 8) of the split itself: an upper bound (Table 1)
    cm-train              by the matrix of the training images in test mode (Table 4)
    norcal                by class counts (Table 8), for γ over a grid: one column of scores each; the scorer chooses

Background keeps its score in CM and MS. All of them act before thresholds and NMS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pcb.calibration import Statistics
from pcb.registry import CALIBRATIONS
from pcb.study.variants import NORCAL, gamma_of

Rule = Callable[
    [list[Tensor]], Tensor
]  # scores of every step, each (n, C+1), background last -> scores of the variant


def activation(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """How the classifier's logits (n, channels) become scores (n, C+1)."""
    head = model.roi_head.bbox_head
    return head.loss_cls.get_activation if head.custom_cls_channels else softmax


def rules(
    model: nn.Module,
    columns: Sequence[str],
    matrices: Mapping[str, Tensor] | None = None,
    image_counts: Sequence[int] = (),
) -> dict[str, Rule]:
    """The rule behind each column of scores.

    matrices: (C, C) confusion matrices by source, 'val' and 'train', as far as the columns need them.
    image_counts: training images of each class, for NorCal.
    """
    kind = getattr(model.roi_head.bbox_head.loss_cls, "score_kind", "softmax")
    return {column: rule(column, kind, matrices or {}, image_counts) for column in columns}


def rule(
    column: str, kind: str, matrices: Mapping[str, Tensor], image_counts: Sequence[int]
) -> Rule:
    if column == "plain":
        return lambda steps: steps[-1]
    if column.startswith("step"):
        step = int(column.removeprefix("step")) - 1
        return lambda steps: steps[step]
    gamma = gamma_of(column)
    entry = CALIBRATIONS[column if gamma is None else NORCAL.rstrip("-")]
    matrix = matrices[entry.statistics_of] if entry.statistics_of else None
    statistics = Statistics(matrix, torch.tensor(image_counts), kind)
    calibrate = entry.load().from_statistics(statistics, gamma)
    return lambda steps: calibrate(steps[-1])


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)
