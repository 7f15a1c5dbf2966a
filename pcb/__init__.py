"""Pairwise Class Balance for long-tailed instance segmentation (He et al., CVPR 2022), reproduced.

`pcb.confusion`, `pcb.losses`, `pcb.heads` and `pcb.calibration` are the method, and `pcb.mmdet`
registers it with MMDetection. The pipeline: `pcb.study` is the paper as data; `pcb.training`,
`pcb.inference` and `pcb.evaluation` make the numbers, `pcb.reporting` the pages
(docs/architecture.md).
"""

__version__ = "0.1.0"
