"""What every training starts from: one file for each backbone, `paths.weights`, and how a detector takes it over.

`backbones.<name>.weights` of the scale's YAML says what it holds: `pretrain` (the base detector, trained on classes of
which no experiment knows), a path to such weights or to a torchvision ResNet, or `random` (nothing). The file says it too, as `meta.kind`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from pcb.data.download import missing_file_fix
from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study import Study
from pcb.training import checkpoint
from pcb.training.hooks import say

# Parts that belong to the classes, or to the method.
FRESH = (
    "bbox_head.fc_cls.",
    "roi_head.mlp_",
    "roi_head.aux_cls.",
    "roi_head.refine.",
    "roi_head.memory.",
    ".loss_cls.",
)
PER_CLASS = {
    "bbox_head.fc_reg.": 4,
    "mask_head.conv_logits.": 1,
}  # predictors, with so many rows for each class


def initialise(model: torch.nn.Module, study: Study, backbone: str) -> None:
    """Load the starting weights of `backbone` into a detector. Raises `UserError` where the file is missing or does not fit."""
    path = study.paths.weights(backbone)
    if not path.exists():
        raise UserError(
            f"{path}: no weights to start from; training does not start at random unasked",
            f"run `pcb pretrain {backbone} --scale {study.scale['name']}`, as the workflow does",
        )
    state = checkpoint.load(path)
    kind = state.get("meta", {}).get("kind")
    if kind == "random":
        say(f"all weights start at random, as backbones.{backbone}.weights: random asks")
    elif kind == "backbone":
        take_over(
            model.backbone,
            state["state_dict"],
            path,
            lambda key: key.endswith("num_batches_tracked"),
        )
    elif kind == "detector":
        take_over(model, state["state_dict"], path, lambda key: any(part in key for part in FRESH))
    else:
        raise UserError(
            f"{path} is not a file of starting weights",
            f"delete it and run `pcb pretrain {backbone}`",
        )


def take_over(model: torch.nn.Module, theirs: dict[str, torch.Tensor], source: Path, fresh) -> None:
    """Load every weight but those for whose names `fresh` is true. A new class starts from the mean over the old ones."""
    start = {}
    for key, ours in model.state_dict().items():
        if fresh(key):
            continue
        value = theirs.get(key)
        rows = next((n for part, n in PER_CLASS.items() if part in key), None)
        if value is not None and rows and value.shape[1:] == ours.shape[1:]:
            mean = value.unflatten(0, (-1, rows)).mean(dim=0)
            value = mean.repeat(len(ours) // rows, *[1] * (ours.dim() - 1))
        if value is None or value.shape != ours.shape:
            raise UserError(
                f"{source} does not fit this detector: {key} is {'missing' if value is None else tuple(value.shape)}, not "
                f"{tuple(ours.shape)}",
                "delete it and run `pcb pretrain`, or mend `backbones` in the scale's YAML",
            )
        start[key] = value
    model.load_state_dict(start, strict=False)


def carry_over(model: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    """Load the weights of a method's first stage into its second; a predictor of another width (BAGS) and loss states start anew."""
    ours = model.state_dict()
    same = {
        key: value
        for key, value in theirs.items()
        if key in ours and ours[key].shape == value.shape and ".loss_cls." not in key
    }
    model.load_state_dict(same, strict=False)


def from_file(path: Path, name: str, sha256: str | None = None) -> dict:
    """Content of the weights file for a downloaded torchvision ResNet, or for a detector of ours as tools/ship_weights.py writes it.

    Its digest must be `sha256`, if the scale's YAML gives one, and begin as its name ends (`resnet50-0676ba61.pth`), if that ends so.
    """
    if not path.is_absolute() and not path.exists():
        path = ROOT / path
    if not path.exists():
        raise UserError(
            f"{path}: no pretrained weights for {name}; training does not start at random unasked",
            f"{missing_file_fix(path)}; or set backbones.{name}.weights there to another file, or to `random`",
        )
    digest = checkpoint.sha256(path)
    if sha256 and digest != sha256:
        raise UserError(
            f"{path} is not the file that backbones.{name}.sha256 means: its sha256 is {digest}",
            "take the right file, or mend sha256 in the scale's YAML",
        )
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if digits and not digest.startswith(digits[1]):
        raise UserError(
            f"{path} is damaged: its sha256 is {digest[:8]}…, its name says {digits[1]}",
            "download it again",
        )
    content = checkpoint.load(path)
    about = {"source": path.name, "sha256": digest}
    if content.get("meta", {}).get("kind") == "detector":
        full = {
            key: value.float() if value.is_floating_point() else value
            for key, value in content["state_dict"].items()
        }
        return {"meta": {**content["meta"], **about}, "state_dict": full}
    backbone = {key: value for key, value in content.items() if not key.startswith("fc.")}
    return {"meta": {"kind": "backbone", **about}, "state_dict": backbone}
