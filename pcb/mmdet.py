"""Registers the method with mmdet: `custom_imports = dict(imports=['pcb.mmdet'])` in a config, or `import pcb.mmdet`.

After that the names below work as `type=` in any mmdet config, and `PCBEpochHook` in `custom_hooks`. docs/plugin.md shows how.
"""

from __future__ import annotations

try:
    from mmdet.registry import HOOKS, MODELS
except ImportError as error:
    raise ImportError(
        "pcb.mmdet needs MMDetection 3.x: install it, mmcv and mmengine as its own documentation says"
    ) from error
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop

from pcb import heads, losses
from pcb.errors import UserError
from pcb.registry import LOSSES, PARADIGMS, load_class


def register(cls: type) -> None:
    """Make a class known to MMDetection under its name, as `type=` of a config.

    Does nothing where that very class is registered already.

    Raises:
        UserError: Another class is registered under that name.
    """
    registered = MODELS.module_dict.get(cls.__name__, cls)
    if registered is not cls:
        raise UserError(
            f"{cls.__name__} of {cls.__module__}: MMDetection has a class of that name, "
            f"of {registered.__module__}",
            "rename the class",
        )
    MODELS.register_module(module=cls, force=True)


def _classes() -> set[str]:
    """The classes that the registry names, as `module:Class`."""
    stages = (loss.second_stage for loss in LOSSES.values())
    named = {entry.cls for entry in (*LOSSES.values(), *PARADIGMS.values())}
    return {*named, *(stage.roi_head for stage in stages if stage)} - {""}


for spec in sorted(_classes()):
    register(load_class(spec))


@HOOKS.register_module()
class PCBEpochHook(Hook):
    """Tells every loss that has `set_epoch` the 1-based epoch, and reports when PCB starts to act.

    Idempotent, and right after a resume: the epoch comes from the runner. The iteration at which the gate opened is logged once and kept in
    the message hub (so also in checkpoints) as `pcb_gate_opened_at_iteration`.

    Args:
        iterations: what counts as an epoch where the loop is mmengine's `IterBasedTrainLoop`, which itself counts none.
    """

    KEY = "pcb_gate_opened_at_iteration"

    def __init__(self, iterations: int | None = None):
        self.iterations = iterations

    def before_train_epoch(self, runner) -> None:
        modules = list(_model(runner).modules())
        self.gates = [m for m in modules if isinstance(m, losses.Regulariser) and m.alpha]
        self.listeners = [m for m in modules if hasattr(m, "set_epoch")]
        if (
            not self.iterations
            and isinstance(getattr(runner, "train_loop", None), IterBasedTrainLoop)
            and self.gates
        ):
            raise UserError(
                "IterBasedTrainLoop counts no epochs, by which PCB would start",
                "say how many iterations are an epoch: dict(type='PCBEpochHook', iterations=...); "
                "or train with EpochBasedTrainLoop",
            )
        self.tell(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.iterations and runner.iter % self.iterations == 0:
            self.tell(runner)

    def tell(self, runner) -> None:
        for module in self.listeners:
            module.set_epoch(self.epoch(runner))

    def epoch(self, runner) -> int:
        """The 1-based epoch."""
        return 1 + (runner.iter // self.iterations if self.iterations else runner.epoch)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.KEY not in runner.message_hub.runtime_info and any(
            gate.is_active for gate in self.gates
        ):
            runner.message_hub.update_info(self.KEY, runner.iter)
            runner.logger.info(
                f"PCB regularisation acts from iteration {runner.iter} on (epoch {self.epoch(runner)})"
            )
        if self.iterations and (runner.iter + 1) % self.iterations == 0:
            self.warn(runner)

    def after_train_epoch(self, runner) -> None:
        if not self.iterations:
            self.warn(runner)

    def warn(self, runner) -> None:
        """At the end of an epoch: which classes PCB still waits for."""
        for gate in self.gates:
            waiting = (
                gate.unseen_classes()
                if gate.epoch >= gate.start_epoch and not gate.is_active
                else []
            )
            if waiting:
                runner.logger.warning(
                    f"PCB is still shut: {len(waiting)} classes have had no positive yet: {waiting[:20]}; "
                    "name those without any training sample in the loss's `absent`"
                )


@HOOKS.register_module()
class LOCEFillHook(Hook):
    """Fills LOCE's memory and mean scores before the first iteration; a training that is resumed has them in its checkpoint."""

    def __init__(self, images_per_class: int = 5):
        self.images_per_class = images_per_class

    def before_train(self, runner) -> None:
        model = _model(runner)
        if not model.roi_head.memory.written.any():
            heads.loce.prefill(
                model,
                runner.train_dataloader.dataset,
                self.images_per_class,
                get_rank(),
                get_world_size(),
            )


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
