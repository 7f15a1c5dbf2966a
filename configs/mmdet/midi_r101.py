"""The midi scale's larger Mask R-CNN, ResNet-101-FPN."""

_base_ = "midi_r50.py"

model = dict(backbone=dict(depth=101))
