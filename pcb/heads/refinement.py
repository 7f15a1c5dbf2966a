"""CrowdDet's refinement module as a paradigm (App. C, Table 11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcb.errors import UserError
from pcb.heads.stepped import Prediction, SteppedRoIHead


class RefinementRoIHead(SteppedRoIHead):
    """h^0 = f, h^{r+1} = ReLU(FC [f ; p^r ; b^r]), with the same predictors on every h^r.

    f is the output of the shared layers, p^r the foreground scores, b^r the box deltas. Nothing is
    detached.

    Source: Chu et al., CVPR 2020, which refines once, repeats the prediction four times in the
    input and has own predictors for the refined step. The paper does not describe its form on LVIS:
    three steps, shared predictors, no repetition and the step weights of the iterative paradigm are
    our guess, so that the two paradigms differ in the refinement alone.

    Args:
        **kwargs: Those of `SteppedRoIHead`.
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
        """Return the predictions of all steps; see `SteppedRoIHead.steps`."""
        head, feature = self.bbox_head, roi_feats.flatten(1)
        for fc in head.shared_fcs:
            feature = torch.relu(fc(feature))
        predictions = [(head.fc_cls(feature), head.fc_reg(feature))]
        while len(predictions) < self.num_steps:
            logits, boxes = predictions[-1]
            scores = head.loss_cls.get_activation(logits)[:, : head.num_classes]
            joined = torch.cat([feature, scores.to(feature.dtype), boxes], dim=1)
            refined = torch.relu(self.refine(joined))
            predictions.append((head.fc_cls(refined), head.fc_reg(refined)))
        return predictions
