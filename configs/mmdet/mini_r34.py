"""The mini scale's larger Mask R-CNN: a half-width ResNet-34 in place of ResNet-101."""

_base_ = "mini_r18.py"

model = dict(backbone=dict(depth=34))
