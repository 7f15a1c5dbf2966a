"""Deep supervision as a paradigm (Table 4, DSN): classifiers at growing depth instead of steps."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.heads.stepped import Prediction, SteppedRoIHead


class DeepSupervisionRoIHead(SteppedRoIHead):
    """Classifiers on the RoI feature, after fc1 and after fc2; the last is the box head's own.

    Step 0 classifies the flattened RoI feature, step r the output of the r-th shared layer. Boxes
    come from the deepest layer only; every step's prediction carries them. The paper names the
    method without its layout: these three depths, with the step weights and α_r of the iterative
    paradigm, are our guess.

    Args:
        **kwargs: Those of `SteppedRoIHead`; `num_steps` is 1 + the number of shared layers.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        head = self.bbox_head
        only_shared_fcs = not (head.shared_convs or head.cls_fcs or head.reg_fcs)
        if not only_shared_fcs or self.num_steps != 1 + len(head.shared_fcs):
            raise UserError(
                f"DeepSupervisionRoIHead: {self.num_steps} steps on a box head with "
                f"{len(head.shared_fcs)} shared layers",
                "use a Shared2FCBBoxHead and num_steps=3",
            )
        if self.regression != "last":
            raise UserError(
                "DeepSupervisionRoIHead: only the last step predicts boxes", "use regression='last'"
            )
        predictor = {**head.cls_predictor_cfg, "out_features": head.fc_cls.out_features}
        self.aux_cls = nn.ModuleList(
            MODELS.build({**predictor, "in_features": fc.in_features}) for fc in head.shared_fcs
        )
        for layer in self.aux_cls:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        """Return the predictions of all depths; see `SteppedRoIHead.steps`."""
        head, x, logits = self.bbox_head, roi_feats.flatten(1), []
        for classifier, fc in zip(self.aux_cls, head.shared_fcs):
            logits.append(classifier(x))
            x = torch.relu(fc(x))
        logits.append(head.fc_cls(x))
        boxes = head.fc_reg(x)
        return [(z, boxes) for z in logits]
