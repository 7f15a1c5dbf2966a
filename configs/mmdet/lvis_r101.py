"""Mask R-CNN, ResNet-101-FPN, as in the paper's LVIS v1.0 experiments (Table 3)."""

_base_ = "lvis_r50.py"

model = dict(backbone=dict(depth=101))
