"""Experiment -> the part of a training that is the method: RoI head, classification loss, predictors, and its stages.

The one translation from the paper's factors (loss, paradigm, regression, PCB) to classes. Everything else of a config
(backbone, data, the schedule of an ordinary training) is `pcb.training.build`'s. A plain base loss is its PCB class with α = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pcb.errors import UserError
from pcb.study.experiment import Experiment

STEPS = {"plain": 1, "iterative": 3, "dsn": 3, "rm": 3}  # R of each paradigm
STEP_WEIGHTS = {1: [1.0], 3: [0.2, 0.2, 0.6]}  # w_r (§4.1)
PRIOR_BIAS = -6.907  # EQL v2: every sigmoid starts at 0.001


@dataclass(frozen=True)
class Stage:
    """A training of its own within an experiment. It starts from the last stage's final weights.

    `epochs`, `milestones` (None: the study's), `lr` (a factor on the scale's). `trained`: prefixes of the parameters
    that learn (() means all). `hooks`: mmengine hooks that it needs.
    """

    loss: str
    epochs: int | None = None
    milestones: tuple[int, ...] | None = None
    lr: float = 1.0
    trained: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()


BOX_HEAD = "roi_head.bbox_head."
TWO_STAGES = {
    "bags": (Stage("softmax"), Stage("bags", 12, (8, 11), 0.5, (BOX_HEAD + "fc_cls",))),
    "loce": (
        Stage("softmax"),
        Stage(
            "loce",
            6,
            (3, 5),
            1.0,
            (BOX_HEAD + "fc_cls", BOX_HEAD + "fc_reg", "rpn_head", "roi_head.mask_head"),
            ("LOCEFillHook",),
        ),
    ),
}


def stages(experiment: Experiment) -> tuple[Stage, ...]:
    """The stages of an experiment: one, or two for BAGS and LOCE, of which the first is plain softmax."""
    return TWO_STAGES.get(experiment.loss, (Stage(experiment.loss),))


def model_overrides(
    experiment: Experiment,
    *,
    num_classes: int,
    stage: int = -1,
    start_epoch: int = 17,
    momenta: Sequence[float] = (),
    active: float | None = None,
    absent: Sequence[int] = (),
    instance_counts: Sequence[int] = (),
    soft_labels: bool = False,
    hidden: int = 512,
    identity_start: bool = False,
) -> dict:
    """Overrides for the `model` of an mmdet config with a StandardRoIHead, to be merged by `Config.merge_from_dict`.

    Args:
        num_classes: C, from the annotation file.
        stage: which of `stages(experiment)`; inference needs the last.
        start_epoch: first 1-based epoch with PCB, label smoothing or online label smoothing.
        momenta: γ of each confusion matrix to keep (a trunk keeps those of all its branches); () means 0.99 alone.
        active: the γ whose matrix gives the targets; None: the first. Plays no part where the experiment has no PCB.
        absent: 0-based classes without any training sample.
        instance_counts: training instances of each class; only BAGS needs them.
        soft_labels: keep the soft labels of online label smoothing too; for a trunk from which it branches.
        hidden, identity_start: of the refinement MLPs, see `IterativeRoIHead`.
    """
    loss, steps = stages(experiment)[stage].loss, STEPS[experiment.paradigm]
    bbox_head: dict = {"num_classes": num_classes}
    mask_head: dict = {"num_classes": num_classes}
    roi_head: dict = {"bbox_head": bbox_head, "mask_head": mask_head}
    pcb = {
        "alpha": experiment.pcb.alpha if experiment.pcb else 0.0,
        "momentum": list(momenta) or [0.99],
        "active": 0 if active is None else float(active),
        "num_steps": steps,
        "start_epoch": start_epoch,
        "absent": list(absent),
    }
    losses = {
        "softmax": {"type": "PCBCrossEntropyLoss", **pcb, "soft_labels": soft_labels},
        "eqlv2": {"type": "PCBEQLv2Loss", **pcb},
        "seesaw": {"type": "PCBSeesawLoss", **pcb},
        "ls": {"type": "LabelSmoothingLoss", "start_epoch": start_epoch},
        "ols": {"type": "OnlineLabelSmoothingLoss", "start_epoch": start_epoch},
        "bags": {"type": "BAGSLoss", "instance_counts": list(instance_counts)},
        "loce": {"type": "EquilibriumLoss"},
    }
    paradigms = {
        "plain": {},
        "iterative": {
            "type": "IterativeRoIHead",
            "hidden": hidden,
            "identity_start": identity_start,
            "layer_norm": loss == "eqlv2",
        },
        "dsn": {"type": "DeepSupervisionRoIHead"},
        "rm": {"type": "RefinementRoIHead"},
    }
    if steps > 1 and loss not in ("softmax", "eqlv2", "seesaw"):
        raise UserError(
            f"{experiment.id}: {loss} has no step weights", "give it the paradigm plain"
        )
    bbox_head["loss_cls"] = {"_delete_": True, "num_classes": num_classes, **losses[loss]}
    roi_head |= paradigms[experiment.paradigm]
    if steps > 1:
        roi_head |= {
            "num_steps": steps,
            "step_weights": STEP_WEIGHTS[steps],
            "regression": experiment.regression,
        }
    if loss == "eqlv2":
        bbox_head["init_cfg"] = [
            {"type": "Normal", "std": 0.01, "bias": PRIOR_BIAS, "override": {"name": "fc_cls"}},
            {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
            {
                "type": "Xavier",
                "distribution": "uniform",
                "override": [{"name": f"{part}_fcs"} for part in ("shared", "cls", "reg")],
            },
        ]
    if loss == "seesaw":
        bbox_head["cls_predictor_cfg"] = {"type": "NormedLinear"}
    if experiment.loss in ("seesaw", "loce"):
        mask_head["predictor_cfg"] = {"type": "NormedConv2d"}
    if loss == "loce":
        roi_head["type"] = "LOCERoIHead"
    return {"roi_head": roi_head}
