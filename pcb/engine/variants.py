"""The evaluation variants of a checkpoint: what each is called, and its rule from logits to scores.

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

from pcb.calibration import ConfusionMatrixCalibration, MeanScoreCalibration, NorCal
from pcb.engine.columns import gamma_of
from pcb.losses.eqlv2 import EQLv2Loss
from pcb.losses.seesaw import SeesawLoss

Rule = Callable[[list[Tensor]], Tensor]  # logits of every step, each (n, channels) -> scores (n, C+1), background last


def rules(model: nn.Module, columns: Sequence[str], matrices: Mapping[str, Tensor] | None = None,
          image_counts: Sequence[int] = ()) -> dict[str, Rule]:
    """The rule behind each column of scores.

    matrices: (C, C) confusion matrices by source, 'val' and 'train', as far as the columns need them.
    image_counts: training images of each class, for NorCal.
    """
    head = model.roi_head.bbox_head
    activation = head.loss_cls.get_activation if head.custom_cls_channels else softmax
    return {column: rule(column, activation, head.loss_cls, matrices or {}, image_counts) for column in columns}


def rule(column: str, activation: Callable[[Tensor], Tensor], loss: nn.Module, matrices: Mapping[str, Tensor],
         image_counts: Sequence[int]) -> Rule:
    if column == "plain":
        return lambda logits: activation(logits[-1])
    if column.startswith("step"):
        step = int(column.removeprefix("step")) - 1
        return lambda logits: activation(logits[step])
    if (gamma := gamma_of(column)) is not None:
        calibrate = NorCal(torch.tensor(image_counts), gamma, classifier(loss))
    else:
        kind, source = column.split("-")
        matrix = matrices[source]
        calibrate = ConfusionMatrixCalibration(matrix) if kind == "cm" else MeanScoreCalibration(matrix.diagonal())
    return lambda logits: calibrate(activation(logits[-1]))


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def classifier(loss: nn.Module) -> str:
    """How a loss's scores are made, in NorCal's words."""
    return "sigmoid" if isinstance(loss, EQLv2Loss) else "seesaw" if isinstance(loss, SeesawLoss) else "softmax"
