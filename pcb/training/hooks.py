"""Hooks between two iterations: check the loss, save a checkpoint, print an epoch's line."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import TYPE_CHECKING

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook

from pcb.errors import UserError
from pcb.formatting import duration

if TYPE_CHECKING:  # the runner imports this module
    from pcb.training.runner import Runner


def print_once(text: str) -> None:
    """Print a line on the main rank only."""
    if is_main_process():
        print(text, flush=True)


class StopRequest:
    """Context in which SIGTERM and Ctrl-C only record a request to stop.

    A second Ctrl-C after `patience` seconds ends the process.

    Attributes:
        requested: Number of the signal that arrived first; 0 if none did.
        patience: Seconds in which a second SIGINT belongs to the same Ctrl-C, which reaches a
            process from the terminal and from the launcher of ranks.
    """

    requested = 0
    patience = 1.0

    def __enter__(self) -> StopRequest:
        """Install the handlers; only a process's main thread may."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
        self.previous = {number: signal.signal(number, self.request) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        """Restore the handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, number: int, _=None) -> None:
        """Handle a signal."""
        if not self.requested:
            self.requested, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > self.patience:
            raise KeyboardInterrupt

    def agreed(self) -> int:
        """Return the signal that reached any rank, or 0, so that all ranks stop together."""
        if get_world_size() == 1:
            return self.requested
        flag = torch.tensor(self.requested)
        all_reduce(flag, op="max")
        return int(flag)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a training whose loss is not finite, before a checkpoint of it is saved.

    Args:
        interval: Iterations between two checks; reading a loss on a GPU waits for the GPU.
    """

    priority = "HIGH"

    def __init__(self, interval: int = 1):
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep the losses, detached."""
        assert outputs is not None
        runner.losses = {key: value.detach() for key, value in outputs.items() if "loss" in key}

    def between_iterations(self, runner: Runner) -> None:
        """Check the losses."""
        if runner.iter % self.interval == 0:
            require_finite(runner)


def require_finite(runner: Runner) -> None:
    """Raise `UserError` if a loss of the last iteration is not finite."""
    losses = {key: float(value) for key, value in runner.losses.items()}
    if not all(map(math.isfinite, losses.values())):
        values = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
        raise UserError(
            f"{runner.cfg.meta.run}: the loss is not finite at iteration {runner.iter} ({values})",
            "lower train.lr, set train.clip_grad or increase train.warmup_iters in the scale's "
            "YAML; earlier checkpoints are intact, the same command resumes from the last one",
        )


@HOOKS.register_module()
class TrainOnlyHook(Hook):
    """Freezes all parameters except those whose names start with one of `prefixes`.

    The second stages of BAGS and LOCE train only their heads.
    """

    def __init__(self, prefixes: list[str]):
        self.prefixes = tuple(prefixes)

    def before_train(self, runner: Runner) -> None:
        """Freeze the parameters."""
        for name, parameter in runner.bare_model.named_parameters():
            if not name.startswith(self.prefixes):
                parameter.requires_grad_(False)


@HOOKS.register_module()
class SaveHook(Hook):
    """Saves a resumable checkpoint after every epoch, every `minutes`, and on a request to stop."""

    priority = "VERY_LOW"

    def __init__(self, minutes: float = 10.0):
        self.seconds = 60 * minutes

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self.saved = time.monotonic()

    def between_iterations(self, runner: Runner) -> None:
        """Save a checkpoint if one is due; end the process on a request to stop."""
        loop = runner.loop
        # With several ranks, agreeing costs a collective.
        stop = runner.stop.agreed() if get_world_size() == 1 or loop.iter % 10 == 0 else 0
        at_end = loop.iter == loop.max_iters
        overdue = time.monotonic() - self.saved > self.seconds
        if stop or loop.at_epoch_end or at_end or overdue:
            require_finite(runner)
            if is_main_process():
                runner.checkpoints.save(runner.state(), loop.iter)
            self.saved = time.monotonic()
        if stop and not at_end:
            print_once(
                f"{runner.cfg.meta.run}: stopped on request, saved at iteration {loop.iter}; "
                "the same command resumes from there"
            )
            raise SystemExit(128 + stop)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Prints a line an epoch and keeps the seconds of the training so far in `runner.notes`.

    `RUN  epoch 17/24  loss 1.234  lr 0.0060  0.05 s/it  ETA 12 s`
    """

    priority = "LOW"

    def before_train(self, runner: Runner) -> None:
        """Start the clocks; CPU time counts from the start of the process, with its imports."""
        self.last = time.monotonic(), 0.0
        self.reset()

    def reset(self) -> None:
        """Begin a new epoch's averages."""
        self.loss, self.count, self.seconds = 0.0, 0, 0.0

    def between_iterations(self, runner: Runner) -> None:
        """Add up times and losses; print at the end of an epoch."""
        now, loop = (time.monotonic(), time.process_time()), runner.loop
        for key, before, after in zip(("seconds", "cpu_seconds"), self.last, now, strict=True):
            runner.notes[key] = runner.notes.get(key, 0.0) + after - before
        self.loss = self.loss + runner.losses["loss"]  # a tensor: converting it would wait
        self.count += 1
        self.seconds += now[0] - self.last[0]
        self.last = now
        if loop.at_epoch_end or loop.iter == loop.max_iters:
            epochs = "/".join(str(-(-n // loop.epoch_length)) for n in (loop.iter, loop.max_iters))
            lr, seconds = runner.optim_wrapper.get_lr()["lr"][0], self.seconds / self.count
            eta = duration(seconds * (loop.max_iters - loop.iter))
            print_once(
                f"{runner.cfg.meta.run}  epoch {epochs}  loss {float(self.loss) / self.count:.3f}  "
                f"lr {lr:.4f}  {seconds:.2g} s/it  ETA {eta}"
            )
            self.reset()
