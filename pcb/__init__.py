"""Pairwise Class Balance for long-tailed instance segmentation (He et al., CVPR 2022), reproduced.

`pcb.study` is the paper as data, `pcb.confusion`, `pcb.losses` and `pcb.heads` are the method, `pcb.mmdet` registers it
with mmdet, `pcb.engine` trains and evaluates one experiment, `pcb.reporting` turns results into tables.
"""

__version__ = "0.1.0"
