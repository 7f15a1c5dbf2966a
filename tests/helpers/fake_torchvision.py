"""As much of torchvision's detection as the example on the plug-in page calls.

`RoIHeads.forward` and `fastrcnn_loss` take the same steps as torchvision 0.16's, for boxes that are
given as features: no backbone, no RPN.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

FEATURE = (256, 7, 7)


class BoxPredictor(nn.Module):
    """Class logits, background first, and four box deltas for each, background included."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes)
        self.bbox_pred = nn.Linear(channels, 4 * num_classes)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


class RoIHeads(nn.Module):
    """The box branch."""

    def __init__(self, num_classes: int):
        super().__init__()
        inputs = FEATURE[0] * FEATURE[1] * FEATURE[2]
        self.box_head = nn.Sequential(nn.Flatten(1), nn.Linear(inputs, 16), nn.ReLU())
        self.box_predictor = BoxPredictor(16, num_classes)

    def forward(self, features, targets=None):
        """Losses of features (n, 256, 7, 7) in training, else scores (n, num_classes)."""
        logits, deltas = self.box_predictor(self.box_head(features))
        if self.training:
            labels = [t["labels"] for t in targets]
            boxes = [t["boxes"] for t in targets]
            loss = sys.modules["torchvision.models.detection.roi_heads"].fastrcnn_loss
            classifier, box = loss(logits, deltas, labels, boxes)
            return {"loss_classifier": classifier, "loss_box_reg": box}
        return F.softmax(logits, -1)


def fastrcnn_loss(class_logits, box_regression, labels, regression_targets):
    """torchvision's: cross entropy, and smooth L1 on the deltas of each positive's own class."""
    labels, regression_targets = torch.cat(labels), torch.cat(regression_targets)
    classification = F.cross_entropy(class_logits, labels)
    positive = torch.where(labels > 0)[0]
    box_regression = box_regression.reshape(len(class_logits), -1, 4)
    box_loss = F.smooth_l1_loss(
        box_regression[positive, labels[positive]],
        regression_targets[positive],
        beta=1 / 9,
        reduction="sum",
    )
    return classification, box_loss / labels.numel()


class Detector(nn.Module):
    """A detector whose images are the features of their RoIs."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.roi_heads = RoIHeads(num_classes)

    def forward(self, images, targets=None):
        """Losses, or scores (n, num_classes)."""
        return self.roi_heads(torch.cat(images), targets)


def modules() -> dict[str, ModuleType]:
    """The modules by name, for `sys.modules`."""
    names = ["torchvision", "torchvision.models", "torchvision.models.detection"]
    made = {name: ModuleType(name) for name in [*names, f"{names[-1]}.roi_heads"]}
    detection, roi_heads = (made[name] for name in list(made)[-2:])
    roi_heads.fastrcnn_loss = fastrcnn_loss
    detection.roi_heads = roi_heads
    detection.fasterrcnn_resnet50_fpn_v2 = lambda num_classes: Detector(num_classes)
    return made
