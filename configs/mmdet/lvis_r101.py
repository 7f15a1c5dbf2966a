"""Mask R-CNN, ResNet-101-FPN, as the paper trains it on LVIS v1.0 (Table 3)."""

_base_ = "lvis_r50.py"

model = dict(backbone=dict(depth=101))
