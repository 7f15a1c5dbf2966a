"""Classification losses of the paper. Each is a short file; `base.py` says how they are called, `regulariser.py` is PCB itself."""

from pcb.losses.base import ClassifierLoss
from pcb.losses.regulariser import Regulariser
from pcb.losses.softmax import PCBCrossEntropyLoss

__all__ = ["ClassifierLoss", "PCBCrossEntropyLoss", "Regulariser"]
