"""From an experiment's factors to the model of an MMDetection config: RoI head, loss, predictors.

Everything else of a config (backbone, data, schedule) is in `pcb.training.build`. A base loss
without PCB is its PCB class with α = 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from pcb.errors import UserError
from pcb.losses.base import ClassifierLoss
from pcb.mmdet import register
from pcb.registry import ARGUMENTS, SHIPPED, Registry, load_class
from pcb.study import Experiment

STEP_WEIGHTS = {1: [1.0], 3: [0.2, 0.2, 0.6]}  # w_r by R (§4.1)


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
    registry: Registry = SHIPPED,
) -> dict:
    """Overrides for the `model` of an MMDetection config with a StandardRoIHead.

    Args:
        experiment: The experiment.
        num_classes: C, from the annotation file.
        stage: Index into `registry.stages(experiment.loss)`; inference needs the last.
        start_epoch: First 1-based epoch with PCB, label smoothing or online label smoothing.
        momenta: γ of each confusion matrix to keep (a trunk keeps those of all its branches);
            () means 0.99 alone.
        active: γ whose matrix gives the targets; None: the first.
        absent: 0-based classes without any training sample.
        instance_counts: (C,) training instances of each class.
        soft_labels: Keep the soft labels of online label smoothing too, for a branch of a trunk.
        hidden: Units of the refinement MLPs, see `IterativeRoIHead`.
        identity_start: Whether they start as the identity.
        registry: Losses and paradigms of the study.

    Returns:
        A mapping for `Config.merge_from_dict({"model": ...})`. Classes of an overlay are
        registered with MMDetection.

    Raises:
        UserError: The loss cannot be used with the paradigm, or a class cannot be loaded.
    """
    this_stage = registry.stages(experiment.loss)[stage]
    loss, paradigm = registry.losses[this_stage.loss], registry.paradigms[experiment.paradigm]
    options = {key: value for key, value in experiment.options.items() if key in loss.options}
    if paradigm.steps > 1 and not loss.with_steps:
        raise UserError(
            f"{experiment.id}: the loss {this_stage.loss!r} does not support several steps",
            "use `paradigm: plain`",
        )
    loss_class = loss_class_of(this_stage.loss, registry)
    check_arguments(loss_class, this_stage.loss, loss.takes, options)
    final_class = loss_class_of(experiment.loss, registry)
    known = {
        "alpha": experiment.pcb.alpha if experiment.pcb else 0.0,
        "momentum": list(momenta) or [0.99],
        "active": 0 if active is None else float(active),
        "num_steps": paradigm.steps,
        "start_epoch": start_epoch,
        "absent": list(absent),
        "soft_labels": soft_labels,
        "instance_counts": list(instance_counts),
        "hidden": hidden,
        "identity_start": identity_start,
        "layer_norm": loss_class.normalise_logits,
    }
    loss_cls = {
        "_delete_": True,
        "type": loss.class_name,
        "num_classes": num_classes,
        **{name: known[name] for name in loss.takes},
        **options,
    }
    roi_head = {
        "bbox_head": {"num_classes": num_classes, "loss_cls": loss_cls, **loss_class.box_head},
        # The mask head is that of the last stage from the start: the stages share its weights.
        "mask_head": {"num_classes": num_classes, **final_class.mask_head},
        **{name: known[name] for name in paradigm.takes},
    }
    if paradigm.cls:
        roi_head["type"] = paradigm.class_name
    if this_stage.roi_head:
        roi_head["type"] = load_class(this_stage.roi_head).__name__
    if paradigm.steps > 1:
        roi_head |= {
            "num_steps": paradigm.steps,
            "step_weights": STEP_WEIGHTS[paradigm.steps],
            "regression": experiment.regression,
        }
    return {"roi_head": roi_head}


def check_arguments(
    cls: type, name: str, takes: Sequence[str], options: Mapping[str, object]
) -> None:
    """Check that the constructor of a loss has the arguments that its entry says, and no others.

    Raises:
        UserError: It lacks one, or needs one that the entry does not name.
    """
    parameters = list(inspect.signature(cls).parameters.values())
    known = {parameter.name for parameter in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known |= {*takes, *options}
    where = f"losses.{name}"
    for key, given in {"takes": takes, "options": options}.items():
        if unknown := [argument for argument in given if argument not in known]:
            raise UserError(
                f"{where}.{key} names {unknown[0]!r}, which {cls.__name__} does not take",
                f"remove it from `{key}`, or add it to the constructor of {cls.__name__}",
            )
    needed = {
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    if missing := sorted(needed - {"num_classes", *takes, *options}):
        among = "`takes`" if missing[0] in ARGUMENTS else "`options`, or give it a default"
        raise UserError(
            f"{cls.__name__} needs {missing[0]!r}, which {where} does not name",
            f"add it to {among}",
        )


def loss_class_of(name: str, registry: Registry) -> type[ClassifierLoss]:
    """Load a loss and register it with MMDetection. Raises `UserError` where it is not a loss."""
    spec = registry.losses[name].cls
    cls = registry.losses[name].load()
    if not (isinstance(cls, type) and issubclass(cls, ClassifierLoss)):
        raise UserError(
            f"{spec} is not a ClassifierLoss", "subclass pcb.losses.base.ClassifierLoss"
        )
    register(cls)
    return cls
