"""Classification losses. `base.py` has their interface, `regulariser.py` is PCB itself."""

from pcb.losses.bags import BAGSLoss
from pcb.losses.base import ClassifierLoss
from pcb.losses.eqlv2 import EQLv2Loss, PCBEQLv2Loss
from pcb.losses.label_smoothing import LabelSmoothingLoss, OnlineLabelSmoothingLoss
from pcb.losses.loce import EquilibriumLoss
from pcb.losses.regulariser import Regulariser
from pcb.losses.seesaw import PCBSeesawLoss, SeesawLoss
from pcb.losses.soft_labels import SoftLabels
from pcb.losses.softmax import PCBCrossEntropyLoss, SoftTargetCrossEntropy

__all__ = [
    "BAGSLoss",
    "ClassifierLoss",
    "EQLv2Loss",
    "EquilibriumLoss",
    "LabelSmoothingLoss",
    "OnlineLabelSmoothingLoss",
    "PCBCrossEntropyLoss",
    "PCBEQLv2Loss",
    "PCBSeesawLoss",
    "Regulariser",
    "SeesawLoss",
    "SoftLabels",
    "SoftTargetCrossEntropy",
]
