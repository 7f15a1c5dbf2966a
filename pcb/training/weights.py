"""The weights that a training starts from, and how a detector loads them.

Each backbone has one file, `paths.weights(backbone)`. `backbones.<name>.weights` in the scale's
YAML selects its content, which the file names in `meta.kind`: `pretrain` (a detector, pretrained on
classes outside all experiments), the path of such a detector or of a torchvision ResNet, or
`random` (no weights).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from mmdet.models.detectors import TwoStageDetector

from pcb.data.download import missing_file_fix
from pcb.errors import UserError
from pcb.files import located
from pcb.study import Study
from pcb.study.records import read_record
from pcb.study.study import fingerprint
from pcb.training import checkpoint
from pcb.training.hooks import print_once

# Parts of a detector that depend on the classes or on the method.
FRESH = (
    "bbox_head.fc_cls.",
    "roi_head.iterative.",
    "roi_head.aux_cls.",
    "roi_head.refine.",
    "roi_head.memory.",
    ".loss_cls.",
)
# Predictors, and the number of rows for each class.
PER_CLASS = {"bbox_head.fc_reg.": 4, "mask_head.conv_logits.": 1}


def initialise(model: TwoStageDetector, study: Study, backbone: str) -> None:
    """Load a backbone's starting weights into a detector.

    Raises:
        UserError: The file is missing, damaged, of another configuration or does not fit.
    """
    path = study.paths.weights(backbone)
    if not path.exists():
        raise UserError(
            f"{path}: no starting weights; set `weights: random` to train from scratch",
            f"run `pcb pretrain {backbone}`, as the workflow does",
        )
    again = f"delete it and run `pcb pretrain {backbone}`"
    record = read_record(study.paths.weights_record(backbone), again)
    if record and record.get("sha256") != checkpoint.sha256(path):
        raise checkpoint.damaged(path, again)
    state = checkpoint.load(path, fix=again)
    meta, weights = state.get("meta", {}), state.get("state_dict", {})
    kind = meta.get("kind")
    if kind and meta.get("fingerprint") != fingerprint(study.pretrain_job(backbone)):
        raise UserError(
            f"{path} holds starting weights of another configuration",
            f"run `pcb pretrain {backbone}` again",
        )
    if kind == "random":
        print_once(f"training from scratch, as backbones.{backbone}.weights is random")
    elif kind == "backbone":
        load_pretrained(
            model.backbone, weights, path, lambda key: key.endswith("num_batches_tracked")
        )
    elif kind == "detector":
        load_pretrained(model, weights, path, lambda key: any(name in key for name in FRESH))
    else:
        raise UserError(
            f"{path} is not a file of starting weights",
            f"delete it and run `pcb pretrain {backbone}`",
        )


def load_pretrained(
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    source: Path,
    is_fresh: Callable[[str], bool],
) -> None:
    """Load weights into a model with other classes.

    The rows of a predictor for each class start as the mean of its rows over the old classes.

    Args:
        model: Detector or backbone.
        weights: State dict to load; a predictor's first axis is rows per class times old classes.
        source: Its file, for messages.
        is_fresh: Whether the parameter of that name keeps its initial value.

    Raises:
        UserError: A weight is missing or has another shape.
    """
    start = {}
    for key, ours in model.state_dict().items():
        if is_fresh(key):
            continue
        value = weights.get(key)
        rows = next((n for name, n in PER_CLASS.items() if name in key), None)
        if value is not None and rows and value.shape[1:] == ours.shape[1:]:
            mean = value.unflatten(0, (-1, rows)).mean(dim=0)
            value = mean.repeat(len(ours) // rows, *[1] * (ours.dim() - 1))
        if value is None or value.shape != ours.shape:
            raise UserError(
                f"{source} does not fit this detector: {key} is "
                f"{'missing' if value is None else tuple(value.shape)}, not {tuple(ours.shape)}",
                "delete it and run `pcb pretrain`, or fix `backbones` in the scale's YAML",
            )
        start[key] = value
    model.load_state_dict(start, strict=False)


def carry_over(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load the weights of a method's first stage into its second.

    Parameters of another shape (the predictor of BAGS) and states of the loss keep their initial
    values.
    """
    ours = model.state_dict()
    same = {
        key: value
        for key, value in weights.items()
        if key in ours and ours[key].shape == value.shape and ".loss_cls." not in key
    }
    model.load_state_dict(same, strict=False)


def from_file(path: Path, name: str, sha256: str | None = None) -> dict:
    """Read a torchvision ResNet, or a detector as tools/ship_weights.py writes it.

    Args:
        path: The file; a relative path is looked up in the repository too.
        name: The backbone, for messages.
        sha256: Expected digest. If the name ends in a digest (`resnet50-0676ba61.pth`), the
            content must match that too.

    Returns:
        Content of a file of starting weights.

    Raises:
        UserError: The file is missing, damaged or not the expected one.
    """
    path = located(path)
    if not path.exists():
        raise UserError(
            f"{path}: no pretrained weights for {name}",
            f"{missing_file_fix(path)}; or set backbones.{name}.weights there to another file; "
            "or set `weights: random` to train from scratch",
        )
    digest = checkpoint.sha256(path)
    if sha256 and digest != sha256:
        raise UserError(
            f"{path} is not the file of backbones.{name}.sha256: its sha256 is {digest}",
            "use the right file, or fix sha256 in the scale's YAML",
        )
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if digits and not digest.startswith(digits[1]):
        raise UserError(
            f"{path} is damaged: its sha256 is {digest[:8]}…, not {digits[1]} as in its name",
            "download it again",
        )
    content = checkpoint.load(path)
    source = {"source": path.name, "sha256": digest}
    if content.get("meta", {}).get("kind") == "detector":
        state = content["state_dict"]  # half precision in the repository
        full = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        return {"meta": {**content["meta"], **source}, "state_dict": full}
    backbone = {key: value for key, value in content.items() if not key.startswith("fc.")}
    return {"meta": {"kind": "backbone", **source}, "state_dict": backbone}
