"""The mini scale's larger backbone, in the place of ResNet-101: ResNet-34 of half width."""

_base_ = "mini_r18.py"

model = dict(backbone=dict(depth=34))
