"""RoI heads of the paper's paradigms, on the one step protocol of `stepped.py`."""

from pcb.heads.iterative import IterativeRoIHead
from pcb.heads.stepped import SteppedRoIHead

__all__ = ["IterativeRoIHead", "SteppedRoIHead"]
