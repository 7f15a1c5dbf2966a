"""Experiment -> the part of an mmdet model config that is the method: RoI head, classification loss, predictors.

The one translation from the paper's factors (loss, paradigm, regression, PCB) to classes. Everything else of a config
(backbone, data, schedule) is `pcb.engine.build`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from pcb.errors import UserError
from pcb.study.experiment import Experiment

STEPS = {"plain": 1, "iterative": 3, "dsn": 3, "rm": 3}  # R of each paradigm
STEP_WEIGHTS = {1: [1.0], 3: [0.2, 0.2, 0.6]}            # w_r (§4.1)


def model_overrides(experiment: Experiment, *, num_classes: int, start_epoch: int = 17, momenta: Sequence[float] = (),
                    active: float | None = None, absent: Sequence[int] = (), hidden: int = 512, identity_start: bool = False) -> dict:
    """Overrides for the `model` of an mmdet config with a StandardRoIHead, to be merged by `Config.merge_from_dict`.

    Args:
        num_classes: C, from the annotation file.
        start_epoch: first 1-based epoch with PCB.
        momenta: γ of each confusion matrix to keep (a trunk keeps those of all its branches); () means 0.99 alone.
        active: the γ whose matrix gives the targets; None: the first. Plays no part where the experiment has no PCB.
        absent: 0-based classes without any training sample.
        hidden, identity_start: of the refinement MLPs, see `IterativeRoIHead`.
    """
    steps = STEPS[experiment.paradigm]
    regularised = {
        "alpha": experiment.pcb.alpha if experiment.pcb else 0.0,
        "momentum": list(momenta) or [0.99],
        "active": 0 if active is None else float(active),
        "num_steps": steps,
        "start_epoch": start_epoch,
        "absent": list(absent),
    }
    roi_head: dict = {"bbox_head": {"num_classes": num_classes}, "mask_head": {"num_classes": num_classes}}
    loss = LOSSES.get(experiment.loss)
    paradigm = PARADIGMS.get(experiment.paradigm)
    if loss is None or paradigm is None:
        missing = experiment.loss if loss is None else experiment.paradigm
        raise UserError(f"{experiment.id}: there is no method {missing!r}", "name one that docs/methods.md describes")
    roi_head["bbox_head"]["loss_cls"] = {"_delete_": True, "num_classes": num_classes, **loss(regularised)}
    roi_head.update(paradigm(hidden=hidden, identity_start=identity_start))
    if steps > 1:
        roi_head |= {"num_steps": steps, "step_weights": STEP_WEIGHTS[steps], "regression": experiment.regression}
    return {"roi_head": roi_head}


LOSSES = {
    "softmax": lambda pcb: {"type": "PCBCrossEntropyLoss", **pcb},
}

PARADIGMS = {
    "plain": lambda hidden, identity_start: {},
    "iterative": lambda hidden, identity_start: {"type": "IterativeRoIHead", "hidden": hidden, "identity_start": identity_start},
}
