"""Channels-last convolutions, and outputs that mmcv's operators can read."""

from __future__ import annotations

import torch
from mmdet.models.detectors import TwoStageDetector
from torch import Tensor, nn


def to_channels_last(model: TwoStageDetector) -> None:
    """Convolve with channels innermost in memory, as tensor cores prefer."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload] torch's
    model.backbone.register_forward_pre_hook(
        lambda _, images: images[0].contiguous(memory_format=torch.channels_last)
    )


def make_outputs_readable(model: TwoStageDetector) -> None:
    """Make the outputs of FPN and RPN contiguous, and float32 in mixed precision.

    mmcv's RoIAlign ignores strides: it would silently misread a channels-last tensor. Neither it
    nor NMS supports bfloat16. From float16 features MMDetection 3 would pool large RoIs from
    another level than MMDetection 2, which converts both outputs to float32
    (`pcb.heads.roi_extractor`).
    """

    def readable(outputs):
        if isinstance(outputs, Tensor):
            half = outputs.dtype in (torch.float16, torch.bfloat16)
            return (outputs.float() if half else outputs).contiguous()
        return type(outputs)(readable(output) for output in outputs)

    for module in (model.neck, model.rpn_head):
        module.register_forward_hook(lambda _, inputs, outputs: readable(outputs))
