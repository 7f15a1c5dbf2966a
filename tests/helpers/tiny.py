"""A Mask R-CNN small enough for unit tests, and synthetic inputs for it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import pcb.mmdet  # noqa: F401  registers
from pcb.study.experiment import PCB, Experiment
from pcb.training.model import model_overrides

init_default_scope("mmdet")
C, D = 6, 8  # classes, channels
EXPERIMENTS = [  # loss and paradigm: every combination of the paper
    ("softmax", "plain"),
    ("softmax", "iterative"),
    ("softmax", "dsn"),
    ("softmax", "rm"),
    ("eqlv2", "plain"),
    ("eqlv2", "iterative"),
    ("seesaw", "plain"),
    ("seesaw", "iterative"),
    ("ls", "plain"),
    ("ols", "plain"),
    ("bags", "plain"),
    ("loce", "plain"),
]

EXTRACTOR = {
    "type": "SingleRoIExtractor",
    "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
    "out_channels": D,
    "featmap_strides": [4],
}
BOX_HEAD = {
    "type": "Shared2FCBBoxHead",
    "in_channels": D,
    "fc_out_channels": 16,
    "num_classes": C,
    "loss_bbox": {"type": "L1Loss"},
}
RCNN = {
    "assigner": {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": 0.5,
        "neg_iou_thr": 0.5,
        "min_pos_iou": 0.5,
    },
    "sampler": {
        "type": "RandomSampler",
        "num": 16,
        "pos_fraction": 0.25,
        "add_gt_as_proposals": True,
    },
    "mask_size": 14,
    "pos_weight": -1,
}


def roi_head(kind="IterativeRoIHead", alpha=0.4, loss_steps=None, bbox_head=None, **kwargs):
    """A box-only RoI head with the PCB softmax loss."""
    loss = {
        "type": "PCBCrossEntropyLoss",
        "num_classes": C,
        "alpha": alpha,
        "num_steps": loss_steps or kwargs.get("num_steps", 3),
    }
    if kind == "IterativeRoIHead":
        kwargs.setdefault("hidden", 32)
    return MODELS.build(
        ConfigDict(
            type=kind,
            bbox_roi_extractor=EXTRACTOR,
            bbox_head=BOX_HEAD | {"loss_cls": loss} | (bbox_head or {}),
            train_cfg=RCNN,
            **kwargs,
        )
    )


def rois(n=9):
    g = torch.Generator().manual_seed(3)
    corner = 60 * torch.rand(n, 2, generator=g)
    return torch.cat(
        [torch.zeros(n, 1), corner, corner + 10 + 20 * torch.rand(n, 2, generator=g)], 1
    )


def sampling():
    """What the sampler yields for one image: 3 positives and 6 negatives."""
    boxes = rois()[:, 1:]
    return SimpleNamespace(
        priors=boxes,
        pos_priors=boxes[:3],
        neg_priors=boxes[3:],
        pos_gt_bboxes=boxes[:3] + 1,
        pos_gt_labels=torch.tensor([0, 2, 2]),
    )


def sample(size=96):
    """One image's ground truth: two squares, with masks."""
    masks = np.zeros((2, size, size), dtype=np.uint8)
    masks[0, 10:40, 10:40], masks[1, 50:90, 45:85] = 1, 1
    shapes = dict.fromkeys(
        ("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (size, size)
    )
    out = DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0), "img_id": 0})
    out.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 40, 40], [45, 50, 85, 90]]),
        labels=torch.tensor([0, 4]),
        masks=BitmapMasks(masks, size, size),
    )
    return out


def mask_rcnn(loss="softmax", paradigm="plain", pcb=True, **kwargs):
    """The mini scale's detector, with fewer channels, for an experiment of the given factors."""
    config = Config.fromfile("configs/mmdet/mini_r18.py")
    experiment = Experiment(
        "test", "v05", "r50", "rfs", loss, paradigm, pcb=PCB(0.4, 0.9) if pcb else None
    )
    config.merge_from_dict(
        {
            "model": model_overrides(
                experiment,
                num_classes=C,
                momenta=[0.9],
                hidden=32,
                identity_start=True,
                instance_counts=[3, 50, 2000, 7, 400, 60],
                **kwargs,
            )
        }
    )
    config.merge_from_dict(
        {
            "model.type": "MaskRCNN",
            "model.backbone.base_channels": 8,
            "model.backbone.frozen_stages": -1,
            "model.neck.in_channels": [8, 16, 32, 64],
        }
    )
    model = MODELS.build(config.model)
    model.init_weights()
    return model.train()
