"""Training of one experiment: configs, the resumable loop, checkpoints, starting weights."""

from pcb.training.import_stubs import import_mmdet

import_mmdet()
