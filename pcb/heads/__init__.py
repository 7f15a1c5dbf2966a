"""RoI heads of the paper's paradigms, on the one step protocol of `stepped.py`; and LOCE's, which has a memory and one step."""

from pcb.heads.deep_supervision import DeepSupervisionRoIHead
from pcb.heads.iterative import IterativeRoIHead
from pcb.heads.loce import LOCERoIHead
from pcb.heads.refinement import RefinementRoIHead
from pcb.heads.stepped import SteppedRoIHead

__all__ = [
    "DeepSupervisionRoIHead",
    "IterativeRoIHead",
    "LOCERoIHead",
    "RefinementRoIHead",
    "SteppedRoIHead",
]
