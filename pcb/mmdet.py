"""Registers the method with mmdet: `custom_imports = dict(imports=['pcb.mmdet'])` in a config, or `import pcb.mmdet`.

After that the names below work as `type=` in any mmdet config, and `PCBEpochHook` in `custom_hooks`.
"""

from __future__ import annotations

from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from pcb import heads, losses

for _module in (losses.PCBCrossEntropyLoss, heads.IterativeRoIHead):
    MODELS.register_module(module=_module)


@HOOKS.register_module()
class PCBEpochHook(Hook):
    """Tells every loss that has `set_epoch` the 1-based epoch, and reports when PCB starts to act.

    Idempotent, and right after a resume: the epoch comes from the runner. The iteration at which the gate opened is logged once and kept in
    the message hub (so also in checkpoints) as `pcb_gate_opened_at_iteration`.
    """

    KEY = "pcb_gate_opened_at_iteration"

    def before_train_epoch(self, runner) -> None:
        for module in _model(runner).modules():
            if hasattr(module, "set_epoch"):
                module.set_epoch(runner.epoch + 1)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.KEY not in runner.message_hub.runtime_info and any(gate.open for gate in _gates(runner)):
            runner.message_hub.update_info(self.KEY, runner.iter)
            runner.logger.info(f"PCB regularisation acts from iteration {runner.iter} on (epoch {runner.epoch + 1})")

    def after_train_epoch(self, runner) -> None:
        for gate in _gates(runner):
            waiting = gate.waiting_for() if runner.epoch + 1 >= gate.start_epoch and not gate.open else []
            if waiting:
                runner.logger.warning(f"PCB is still shut: {len(waiting)} classes have had no positive yet: {waiting[:20]}; "
                                      "name those without any training sample in the loss's `absent`")


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _gates(runner) -> list[losses.Regulariser]:
    return [m for m in _model(runner).modules() if isinstance(m, losses.Regulariser) and m.alpha]
