"""Deep supervision as a paradigm (Table 4, DSN): classifiers at growing depth take the place of recurrent steps."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.heads.stepped import Prediction, SteppedRoIHead


class DeepSupervisionRoIHead(SteppedRoIHead):
    """Step 0 classifies the flattened RoI feature, step r the output of the r-th shared layer; the last is the box head's own.

    The paper names the method and no layout: that it is these three depths, with the step weights and α_r of the
    iterative paradigm, is our guess. Boxes come from the deepest layer only; every step's prediction carries them.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        head = self.bbox_head
        if (
            self.num_steps != 1 + len(head.shared_fcs)
            or head.shared_convs
            or head.cls_fcs
            or head.reg_fcs
        ):
            raise UserError(
                f"DeepSupervisionRoIHead: {self.num_steps} steps on a box head with {len(head.shared_fcs)} shared layers",
                "use a Shared2FCBBoxHead and num_steps=3",
            )
        if self.regression != "last":
            raise UserError(
                "DeepSupervisionRoIHead: only the last step predicts boxes", "use regression='last'"
            )
        widths = [fc.in_features for fc in head.shared_fcs]
        self.aux_cls = nn.ModuleList(
            MODELS.build(
                {
                    **head.cls_predictor_cfg,
                    "in_features": width,
                    "out_features": head.fc_cls.out_features,
                }
            )
            for width in widths
        )
        for layer in self.aux_cls:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        head, x, logits = self.bbox_head, roi_feats.flatten(1), []
        for classify, fc in zip(self.aux_cls, head.shared_fcs, strict=True):
            logits.append(classify(x))
            x = torch.relu(fc(x))
        logits.append(head.fc_cls(x))
        boxes = head.fc_reg(x)
        return [(z, boxes) for z in logits]
