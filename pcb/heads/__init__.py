"""RoI heads of the paper's paradigms, and LOCE's.

The paradigms share the step protocol of `stepped.py`; LOCE's head has a feature memory and one
step.
"""

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
