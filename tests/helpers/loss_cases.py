"""One instance of every loss, active from the first epoch, for tests of what they share."""

from __future__ import annotations

from pcb.losses import (
    BAGSLoss,
    EquilibriumLoss,
    LabelSmoothingLoss,
    OnlineLabelSmoothingLoss,
    PCBCrossEntropyLoss,
    PCBEQLv2Loss,
    PCBSeesawLoss,
)

C = 5
ACTIVE = {"start_epoch": 1, "absent": range(C), "momentum": 0.9}
# Name -> how to build it with keyword arguments, and its number of channels.
CASES = {
    "softmax": (lambda **k: PCBCrossEntropyLoss(C, 0.4, **ACTIVE | k), C + 1),
    "softmax-fg": (lambda **k: PCBCrossEntropyLoss(C, 0.4, space="fg", **ACTIVE | k), C + 1),
    "eqlv2": (lambda **k: PCBEQLv2Loss(C, 0.2, **ACTIVE | k), C + 1),
    "seesaw": (lambda **k: PCBSeesawLoss(C, 0.05, **ACTIVE | k), C + 2),
    "ls": (lambda **k: LabelSmoothingLoss(C, start_epoch=1), C + 1),
    "ols": (lambda **k: OnlineLabelSmoothingLoss(C, start_epoch=1), C + 1),
    "bags": (lambda **k: BAGSLoss(C, [1, 20, 300, 5, 6]), C + 5),
    "loce": (lambda **k: EquilibriumLoss(C), C + 1),
}
