"""CrowdDet's refinement module as a paradigm (paper App. C, Table 11): predictions are joined to the penultimate feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.heads.stepped import Prediction, SteppedRoIHead


class RefinementRoIHead(SteppedRoIHead):
    """h^0 = f, h^{r+1} = ReLU(FC [f ; p^r ; b^r]) with f the output of the shared layers, p^r foreground scores, b^r box deltas.

    The same predictors read every h^r. CrowdDet refines once, repeats the prediction four times in the input and has
    predictors of its own for the refined step (Chu et al., CVPR 2020). How the paper took it to LVIS it does not say:
    three steps, shared predictors, no repetition and the step weights of the iterative paradigm are our guess, so that
    the two differ in the refinement alone. Nothing is detached.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        head = self.bbox_head
        if not head.shared_fcs or head.cls_fcs or head.reg_fcs:
            raise UserError(
                "RefinementRoIHead needs a box head with shared layers only",
                "use a Shared2FCBBoxHead",
            )
        if self.num_steps > 1:
            width = head.fc_cls.in_features
            self.refine = nn.Linear(width + head.num_classes + head.fc_reg.out_features, width)
            nn.init.kaiming_uniform_(self.refine.weight, a=1)
            nn.init.zeros_(self.refine.bias)

    def steps(self, roi_feats: Tensor) -> list[Prediction]:
        head, feature = self.bbox_head, roi_feats.flatten(1)
        for fc in head.shared_fcs:
            feature = torch.relu(fc(feature))
        predictions = [(head.fc_cls(feature), head.fc_reg(feature))]
        while len(predictions) < self.num_steps:
            logits, boxes = predictions[-1]
            scores = head.loss_cls.get_activation(logits)[:, : head.num_classes]
            hidden = torch.relu(
                self.refine(torch.cat([feature, scores.to(feature.dtype), boxes], dim=1))
            )
            predictions.append((head.fc_cls(hidden), head.fc_reg(hidden)))
        return predictions
