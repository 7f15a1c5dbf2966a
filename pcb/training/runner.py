"""The runner: mmengine's, with resumable checkpoints and the scale's device."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from mmdet.models.detectors import TwoStageDetector
from mmengine.dist import is_main_process
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.runner import Runner as MMRunner

from pcb.files import write_json
from pcb.mmdet import PCBEpochHook
from pcb.training.checkpoint import Checkpoints
from pcb.training.hooks import StopRequest
from pcb.training.import_stubs import without_compiler
from pcb.training.loop import ResumableLoop, seed_everything
from pcb.training.memory_format import make_outputs_readable, to_channels_last


def release_memory() -> None:
    """Free the memory of runners that are no longer used; they are in reference cycles."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Runner(MMRunner):
    """mmengine's runner with our checkpoints; its own messages go to the log file only.

    Attributes:
        begin: Called with the runner before the first iteration to load weights, or the whole state
            of an earlier training.
        stop: Whether the training was asked to end early.
        notes: Facts of the training that its checkpoints carry: seconds, CPU seconds.
        losses: The last iteration's losses, detached scalars.
        unchecked: Those of the iterations since `require_finite` read them.
        overflows: Iterations in a row, up to the last check, whose loss is not finite.
        started: When the training began, ISO 8601.
    """

    # mmengine annotates these with the types that they have before they are built, too.
    optim_wrapper: OptimWrapper  # ty: ignore[incompatible-mutable-override]
    param_schedulers: list[_ParamScheduler]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.begin: Callable[[Runner], None] = lambda runner: None
        self.stop = StopRequest()
        self.notes: dict = {}
        self.losses: dict[str, torch.Tensor] = {}
        self.unchecked: list[dict[str, torch.Tensor]] = []
        self.overflows = 0
        self.started = ""

    @property
    def loop(self) -> ResumableLoop:
        """The training loop, once it is built."""
        assert isinstance(self._train_loop, ResumableLoop)
        return self._train_loop

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the work folder."""
        return Checkpoints(self.work_dir, **self.cfg.checkpoints)

    @property
    def bare_model(self) -> TwoStageDetector:
        """The detector without its DDP wrapper."""
        return cast(TwoStageDetector, getattr(self.model, "module", self.model))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Freeze what the stage does not train, move the model and wrap it for several ranks.

        mmengine would use a GPU wherever it finds one, and several ranks only with GPUs.
        """
        # Before DDP, which would wait for the gradients of parameters that are frozen later.
        if trained := self.cfg.get("trained"):
            for name, parameter in model.named_parameters():
                if not name.startswith(tuple(trained)):
                    parameter.requires_grad_(False)
        model = model.to(self.cfg.device)
        detector = cast(TwoStageDetector, model)
        if self.cfg.channels_last:
            to_channels_last(detector)
        make_outputs_readable(detector)
        if not self.distributed:
            return model
        devices = [torch.cuda.current_device()] if self.cfg.device == "cuda" else None
        # Ranks update their buffers by the same sums, so broadcasting them changes nothing.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return MMDistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def build_logger(self, *args, **kwargs):
        """Build mmengine's logger with a terminal handler for errors only."""
        logger = super().build_logger(*args, **kwargs)
        logger.handlers[0].setLevel("ERROR")  # the stream handler; the file keeps everything
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Skip: versions and hardware are in run.json."""

    def build_visualizer(self, visualizer=None) -> Any:
        """Return a stand-in: the visualizer would draw nothing, but import pyplot."""
        return SimpleNamespace(add_config=lambda config: None)

    def train(self) -> torch.nn.Module:
        """Train, from what `begin` loads to the end."""
        # DDP needs the real compiler.
        with nullcontext() if self.distributed else without_compiler():
            return super().train()

    def dump_config(self) -> None:
        """Write the config as JSON, which mmengine can read; its Python format is slow to write."""
        if is_main_process():
            write_json(Path(self.work_dir) / "config.json", self.cfg.to_dict())

    def _init_model_weights(self) -> None:
        seed_everything(self.seed, 2**32 - 1)
        super()._init_model_weights()

    def load_or_resume(self) -> None:
        """Call `begin` instead of loading mmengine's checkpoints."""
        self.begin(self)

    def state(self) -> dict:
        """Return all that is needed to resume between two iterations; there is no random state."""
        first_active = self.message_hub.runtime_info.get(PCBEpochHook.KEY)
        return {
            "iter": self.loop.iter,
            "meta": dict(self.cfg.meta),
            "notes": {**self.notes, PCBEpochHook.KEY: first_active},
            "state_dict": {k: v.detach().cpu() for k, v in self.bare_model.state_dict().items()},
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [s.state_dict() for s in self.param_schedulers],
        }

    def set_progress(self, state: dict) -> None:
        """Restore everything in a `state` except the weights."""
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.notes = dict(state["notes"])
        if (first_active := self.notes.get(PCBEpochHook.KEY)) is not None:
            self.message_hub.update_info(PCBEpochHook.KEY, first_active)
        self.loop.set_iteration(state["iter"])
