"""Registers the method with MMDetection: `custom_imports = dict(imports=["pcb.mmdet"])`.

After that, or after `import pcb.mmdet`, the classes that pcb/registry.py lists work as `type=` in
any MMDetection config, `PCBEpochHook` in `custom_hooks`, and `PCBLVISMetric` as an evaluator. See
docs/plugin.md.
"""

from __future__ import annotations

from math import ceil
from typing import Any

try:
    from mmdet.registry import HOOKS, METRICS, MODELS
except ImportError as error:
    raise ImportError(
        "pcb.mmdet needs MMDetection 3.x: install it, mmcv and mmengine as its own documentation "
        "describes"
    ) from error
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from pcb.errors import UserError
from pcb.formatting import counted
from pcb.heads.loce import prefill
from pcb.heads.roi_extractor import Float32RoIExtractor
from pcb.losses import Regulariser
from pcb.lvis_metric import PCBLVISMetric
from pcb.registry import LOSSES, PARADIGMS, load_class


def register(cls: type) -> None:
    """Register a class with MMDetection under its name, as `type=` of a config.

    Does nothing where that very class is registered already.

    Raises:
        UserError: Another class is registered under that name.
    """
    registered = MODELS.module_dict.get(cls.__name__, cls)
    if registered is not cls:
        raise UserError(
            f"MMDetection already has a class {cls.__name__}, from {registered.__module__}, "
            f"which differs from the one in {cls.__module__}",
            "rename the class",
        )
    MODELS.register_module(module=cls, force=True)


def _registry_classes() -> set[str]:
    """Return the classes that the registry lists, as `module:Class`."""
    stages = (loss.second_stage for loss in LOSSES.values())
    classes = {entry.cls for entry in (*LOSSES.values(), *PARADIGMS.values())}
    return {*classes, *(stage.roi_head for stage in stages if stage)} - {""}


for spec in sorted(_registry_classes()):
    register(load_class(spec))
register(Float32RoIExtractor)
METRICS.register_module(module=PCBLVISMetric, force=True)


@HOOKS.register_module()
class PCBEpochHook(Hook):
    """Sets the 1-based epoch of every loss that has `set_epoch`, and reports when PCB starts.

    The epoch comes from the runner, so it is right after a resume. The iteration at which PCB
    starts is logged once, and kept in the message hub (and so in checkpoints) under `KEY`. While
    PCB waits for classes, the hook warns at the end of each epoch.

    Args:
        iterations: Iterations of an epoch, for `IterBasedTrainLoop`, which has no epochs.

    Raises:
        UserError: Before the first iteration: the training ends before PCB would start, or the loop
            has no epochs and `iterations` is missing.
    """

    KEY = "pcb_gate_opened_at_iteration"

    def __init__(self, iterations: int | None = None):
        self.iterations = iterations

    def before_train(self, runner: Runner) -> None:
        """Refuse a training in which PCB would never start."""
        starts = [m.start_epoch for m in _modules(runner) if isinstance(m, Regulariser) and m.alpha]
        if not starts:
            return
        if isinstance(runner.train_loop, IterBasedTrainLoop) and not self.iterations:
            raise UserError(
                "PCB starts after a number of epochs, which IterBasedTrainLoop does not count",
                "give the iterations of an epoch: dict(type='PCBEpochHook', iterations=...); "
                "or train with EpochBasedTrainLoop",
            )
        iterations = self.iterations
        epochs = ceil(runner.max_iters / iterations) if iterations else runner.max_epochs
        if max(starts) > epochs:
            raise UserError(
                f"PCB starts in epoch {max(starts)}, the training has {epochs}",
                f"set start_epoch={1 + 2 * epochs // 3} in its loss; the paper starts PCB after "
                "two thirds of the epochs, when the learning rate drops",
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Find the losses of the model and set their epoch."""
        modules = _modules(runner)
        self.regularisers = [m for m in modules if isinstance(m, Regulariser) and m.alpha]
        self.listeners = [m for m in modules if hasattr(m, "set_epoch")]
        self.set_epochs(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Set the epoch at the first iteration of each, where `iterations` defines it."""
        if self.iterations and runner.iter % self.iterations == 0:
            self.set_epochs(runner)

    def set_epochs(self, runner: Runner) -> None:
        """Set the epoch of every loss."""
        for module in self.listeners:
            module.set_epoch(self.epoch(runner))

    def epoch(self, runner: Runner) -> int:
        """Return the 1-based epoch."""
        return 1 + (runner.iter // self.iterations if self.iterations else runner.epoch)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Log the iteration at which PCB starts, once."""
        if self.KEY not in runner.message_hub.runtime_info and any(
            regulariser.is_active for regulariser in self.regularisers
        ):
            runner.message_hub.update_info(self.KEY, runner.iter)
            runner.logger.info(
                f"PCB regularisation acts from iteration {runner.iter} on "
                f"(epoch {self.epoch(runner)})"
            )
        if self.iterations and (runner.iter + 1) % self.iterations == 0:
            self.warn(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Warn about unseen classes."""
        if not self.iterations:
            self.warn(runner)

    def warn(self, runner: Runner) -> None:
        """Log the classes that PCB still waits for, after its start epoch."""
        for regulariser in self.regularisers:
            if regulariser.epoch < regulariser.start_epoch or regulariser.is_active:
                continue
            if unseen := regulariser.unseen_classes():
                number = counted(len(unseen), "class has", "classes have")
                runner.logger.warning(
                    f"PCB is still inactive: {number} had no positive yet: "
                    f"{unseen[:20]}; name those without any training sample in the loss's `absent`"
                )


@HOOKS.register_module()
class LOCEFillHook(Hook):
    """Fills LOCE's memory and mean scores before the first iteration of a training.

    A resumed training has the scores in its checkpoint, and a small memory
    (`pcb.heads.loce.FeatureMemory`); a large memory is filled anew.

    Args:
        images_per_class: Images of every class from which they are filled.
    """

    def __init__(self, images_per_class: int = 5):
        self.images_per_class = images_per_class

    def before_train(self, runner: Runner) -> None:
        """Fill the memory where it is empty."""
        model, dataset = _bare_model(runner), runner.train_dataloader.dataset
        if not model.roi_head.memory.written.any():
            ranks = get_rank(), get_world_size()
            prefill(model, dataset, self.images_per_class, *ranks, scores=runner.iter == 0)


def _bare_model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _modules(runner: Runner) -> list[Any]:
    return list(_bare_model(runner).modules())
