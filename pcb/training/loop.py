"""The training loop: a training is a pure function of its seed, however often it is interrupted.

Nothing random survives from one iteration to the next. The sampler's batches follow from (seed, epoch), an item's
augmentation from (seed, epoch, index), and every iteration reseeds torch, numpy and random from (seed, iteration,
rank). So a training resumed at any iteration, or branched from another's checkpoint, takes the same steps as one that
was never interrupted: on a CPU bit for bit.

An iteration is one batch and one step of the optimiser, however many GPUs share it. Where they cannot hold it at once
(`accumulate` = k), each takes its share in k parts, and k parts on g GPUs are what k·g GPUs would do: the same images
together, the same random numbers, every loss normalised within its part, as mmdet does within a GPU, and gradients averaged.
Warm-up, learning rates and epochs count iterations, so they hold. So does the matrix of PCB: it learns from the parts together,
once they are through (Eq. 9 once a batch and step); the soft targets within a batch are therefore those before it, where
without parts they already know its earlier steps. EQL v2, Seesaw and LOCE count part by part: their sums over a batch are the
same, but its later parts already know the earlier ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.registry import LOOPS
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner import Runner as MMRunner

from pcb.files import write_json
from pcb.losses import Regulariser
from pcb.mmdet import PCBEpochHook
from pcb.training.checkpoint import Checkpoints
from pcb.training.hooks import StopRequest
from pcb.training.import_stubs import uncompiled


def seed_everything(*key: int) -> None:
    """Seed torch, numpy and random from a tuple of non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(3)
    # Without a GPU torch.manual_seed would leave its words for one, with a stack trace, each time.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(
        int(words[0])
    )
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


@LOOPS.register_module()
class ResumableLoop(EpochBasedTrainLoop):
    """Epochs of a data loader whose sampler is an `EpochSampler`; starts and stops at any iteration.

    `max_iters`, if given, is the length of the training in place of `max_epochs`, within an epoch if need be. After
    every iteration, and after the end of an epoch where it ends one, hooks get `between_iterations(runner)`:
    `runner.iter` then counts what is done, and the runner's state is that of a checkpoint. What the data loader yields
    is a part of a batch, the sampler's `parts` of them an iteration.
    """

    def __init__(
        self, runner, dataloader, max_epochs: int = 1, max_iters: int | None = None, seed: int = 0
    ):
        super().__init__(runner, dataloader, max_epochs)
        self.parts = self.dataloader.sampler.parts
        self.epoch_length = len(self.dataloader) // self.parts
        self._max_iters = max_iters or max_epochs * self.epoch_length
        self.seed = seed

    def set_iteration(self, iteration: int) -> None:
        self._iter = iteration
        self._epoch = iteration // self.epoch_length

    @property
    def at_epoch_end(self) -> bool:
        return self._iter % self.epoch_length == 0

    def run(self) -> torch.nn.Module:
        # The optimiser's wrapper counts parts. It starts between two batches, and none is ever cut short.
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, -1)
        self.runner.call_hook("before_train")
        while self._iter < self._max_iters:
            self.run_epoch()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        start = self._iter - self._epoch * self.epoch_length
        self.dataloader.sampler.set_position(self._epoch, start)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        parts = iter(self.dataloader)
        for index in range(start, self.epoch_length):
            self.run_iter(index, islice(parts, self.parts))
            if self.at_epoch_end:
                self.runner.call_hook("after_train_epoch")
                self._epoch += 1
            self.runner.call_hook("between_iterations")
            if self._iter >= self._max_iters:
                break

    def run_iter(self, index: int, parts: Iterator[dict]) -> None:
        """One iteration: number `index` of its epoch, on the parts of this process's share of the batch."""
        seed_everything(self.seed, self._iter, get_rank())
        self.runner.call_hook("before_train_iter", batch_idx=index)
        losses: dict[str, torch.Tensor] = {}
        with ExitStack() as deferred:
            if self.parts > 1:
                for module in self.runner.model.modules():
                    if isinstance(module, Regulariser):
                        deferred.enter_context(module.deferred_updates())
            for place, part in enumerate(parts):
                if place:
                    seed_everything(self.seed, self._iter, place * get_world_size() + get_rank())
                outputs = self.runner.model.train_step(
                    part, optim_wrapper=self.runner.optim_wrapper
                )
                for key, value in outputs.items():
                    losses[key] = losses.get(key, 0) + value / self.parts
        self.runner.call_hook("after_train_iter", batch_idx=index, outputs=losses)
        self._iter += 1


def lay_out(model: torch.nn.Module, channels_last: bool) -> None:
    """Let a detector convolve with channels innermost, as tensor cores want it, and hand mmcv's operators what they can read.

    RoIAlign takes memory as it lies, so that it would mistake one order for the other without a word. Neither it nor NMS knows bfloat16.
    """

    def readable(_, inputs, found):
        if isinstance(found, torch.Tensor):
            return (found.float() if found.dtype == torch.bfloat16 else found).contiguous()
        return type(found)(readable(_, inputs, part) for part in found)

    if channels_last:
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                module.to(memory_format=torch.channels_last)
        model.backbone.register_forward_pre_hook(
            lambda _, images: images[0].contiguous(memory_format=torch.channels_last)
        )
    model.neck.register_forward_hook(readable)
    model.rpn_head.register_forward_hook(readable)


class Runner(MMRunner):
    """mmengine's runner with our checkpoints, and with its own words kept to the log file.

    `begin` gives the runner its start: weights, or the whole state of an earlier training. `stop` tells when to end
    early, `notes` are facts of the training that its checkpoints carry.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.begin: Callable[[Runner], None] = lambda runner: None
        self.stop = StopRequest()
        self.notes: dict = {}
        self.losses: dict = {}

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.work_dir, **self.cfg.checkpoints)

    @property
    def bare_model(self) -> torch.nn.Module:
        return getattr(self.model, "module", self.model)

    def wrap_model(self, model_wrapper_cfg, model: torch.nn.Module) -> torch.nn.Module:
        """On the device that the scale names: mmengine would take a GPU wherever it sees one, and several processes only with GPUs."""
        model = model.to(self.cfg.device)
        lay_out(model, self.cfg.channels_last)
        if not self.distributed:
            return model
        here = [torch.cuda.current_device()] if self.cfg.device == "cuda" else None
        return MMDistributedDataParallel(model, device_ids=here, broadcast_buffers=False)

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        logger.handlers[0].setLevel("ERROR")  # the stream handler; the file keeps everything
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Not here: versions and hardware are in run.json."""

    def build_visualizer(self, visualizer=None) -> SimpleNamespace:
        """None: it would draw nothing, and import pyplot for it."""
        return SimpleNamespace(add_config=lambda config: None)

    def train(self) -> torch.nn.Module:
        with nullcontext() if self.distributed else uncompiled():  # DDP asks the compiler for more
            return super().train()

    def dump_config(self) -> None:
        """The whole config as JSON, which mmengine reads too and which is written in no time."""
        if is_main_process():
            write_json(Path(self.work_dir) / "config.json", self.cfg.to_dict())

    def _init_model_weights(self) -> None:
        seed_everything(self.seed, 2**32 - 1)
        super()._init_model_weights()

    def load_or_resume(self) -> None:
        self.begin(self)

    def state(self) -> dict:
        """All that a training needs to go on, between two iterations: no random state, see the top of this file."""
        return {
            "iter": self._train_loop.iter,
            "meta": dict(self.cfg.meta),
            "notes": {
                **self.notes,
                PCBEpochHook.KEY: self.message_hub.runtime_info.get(PCBEpochHook.KEY),
            },
            "state_dict": {k: v.detach().cpu() for k, v in self.bare_model.state_dict().items()},
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [s.state_dict() for s in self.param_schedulers],
        }

    def set_progress(self, state: dict) -> None:
        """Take over all of a `state` but the weights."""
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.notes = dict(state["notes"])
        if (opened := self.notes.get(PCBEpochHook.KEY)) is not None:
            self.message_hub.update_info(PCBEpochHook.KEY, opened)
        self._train_loop.set_iteration(state["iter"])
