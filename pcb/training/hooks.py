"""What happens between two iterations: the loss is checked, a checkpoint written, an epoch's line printed."""

from __future__ import annotations

import math
import signal
import threading
import time

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook

from pcb.errors import UserError
from pcb.formatting import duration


def say(text: str) -> None:
    """A line for the user, once however many processes train."""
    if is_main_process():
        print(text, flush=True)


class StopRequest:
    """Within this context SIGTERM and Ctrl-C no longer end the process but set `asked`, their number; Ctrl-C insisted upon does."""

    asked = 0
    patience = 1.0  # seconds in which a second SIGINT is the same Ctrl-C: a terminal and torchrun both send it

    def __enter__(self) -> StopRequest:
        main = threading.current_thread() is threading.main_thread()
        self.previous = (
            {number: signal.signal(number, self.set) for number in (signal.SIGTERM, signal.SIGINT)}
            if main
            else {}
        )
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def set(self, number: int, _=None) -> None:
        if not self.asked:
            self.asked, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > self.patience:
            raise KeyboardInterrupt

    def agreed(self) -> int:
        """The signal by which any process was asked, so that all stop after the same iteration; else 0."""
        if get_world_size() == 1:
            return self.asked
        flag = torch.tensor(self.asked)
        all_reduce(flag, op="max")
        return int(flag)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a training whose loss is no longer a number, before a checkpoint of it is written."""

    priority = "HIGH"

    def __init__(self, interval: int = 1):
        self.interval = interval  # reading a loss off a GPU waits for the GPU

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.losses = {key: value.detach() for key, value in outputs.items() if "loss" in key}

    def between_iterations(self, runner) -> None:
        if runner.iter % self.interval == 0:
            require_finite(runner)


def require_finite(runner) -> None:
    """Raises `UserError` where the last iteration's loss is not finite."""
    losses = {key: float(value) for key, value in runner.losses.items()}
    if not all(map(math.isfinite, losses.values())):
        parts = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
        raise UserError(
            f"{runner.cfg.meta.run}: the loss is not finite at iteration {runner.iter} ({parts})",
            "lower train.lr, set train.clip_grad or lengthen train.warmup_iters in the scale's YAML; "
            "earlier checkpoints are untouched, the same command continues from the last one",
        )


@HOOKS.register_module()
class TrainOnlyHook(Hook):
    """Freezes every parameter whose name starts with none of `parts`: the second stages of BAGS and LOCE."""

    def __init__(self, parts: list[str]):
        self.parts = tuple(parts)

    def before_train(self, runner) -> None:
        for name, parameter in runner.bare_model.named_parameters():
            if not name.startswith(self.parts):
                parameter.requires_grad_(False)


@HOOKS.register_module()
class SaveHook(Hook):
    """Writes a resumable checkpoint after every epoch, after `minutes` without one, and when the process is asked to end."""

    priority = "VERY_LOW"

    def __init__(self, minutes: float = 10.0):
        self.seconds = 60 * minutes

    def before_train(self, runner) -> None:
        self.saved = time.monotonic()

    def between_iterations(self, runner) -> None:
        loop = runner.train_loop
        stop = runner.stop.agreed() if get_world_size() == 1 or loop.iter % 10 == 0 else 0
        if (
            stop
            or loop.at_epoch_end
            or loop.iter == loop.max_iters
            or time.monotonic() - self.saved > self.seconds
        ):
            require_finite(runner)
            if is_main_process():
                runner.checkpoints.save(runner.state(), loop.iter)
            self.saved = time.monotonic()
        if stop and loop.iter < loop.max_iters:
            say(
                f"{runner.cfg.meta.run}: asked to end, saved at iteration {loop.iter}; the same command continues from there"
            )
            raise SystemExit(128 + stop)


@HOOKS.register_module()
class ProgressHook(Hook):
    """One line an epoch: `RUN  epoch 17/24  loss 1.234  lr 0.0060  0.05 s/it  ETA 12 s`; and the seconds of the training so far."""

    priority = "LOW"

    def before_train(self, runner) -> None:
        self.last = time.monotonic(), 0.0  # of CPU time all, so that a process's imports count
        self.reset()

    def reset(self) -> None:
        self.loss, self.count, self.seconds = 0.0, 0, 0.0

    def between_iterations(self, runner) -> None:
        now, loop = (time.monotonic(), time.process_time()), runner.train_loop
        for key, before, after in zip(("seconds", "cpu_seconds"), self.last, now, strict=True):
            runner.notes[key] = runner.notes.get(key, 0.0) + after - before
        self.loss, self.count, self.seconds = (
            self.loss + runner.losses["loss"],
            self.count + 1,
            self.seconds + now[0] - self.last[0],
        )
        self.last = now
        if loop.at_epoch_end or loop.iter == loop.max_iters:
            pace, per_epoch = self.seconds / self.count, loop.epoch_length
            say(
                f"{runner.cfg.meta.run}  epoch {-(-loop.iter // per_epoch)}/{-(-loop.max_iters // per_epoch)}  "
                f"loss {float(self.loss) / self.count:.3f}  lr {runner.optim_wrapper.get_lr()['lr'][0]:.4f}  {pace:.2g} s/it  "
                f"ETA {duration(pace * (loop.max_iters - loop.iter))}"
            )
            self.reset()
