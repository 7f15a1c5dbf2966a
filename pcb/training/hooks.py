"""Hooks between two iterations: check the loss, save a checkpoint, print and log progress."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook

from pcb.cluster import provenance
from pcb.confusion import ConfusionMatrix, pairwise_bias
from pcb.errors import UserError
from pcb.files import write_text
from pcb.formatting import duration

if TYPE_CHECKING:  # the runner imports this module
    from pcb.training.runner import Runner

# Iterations with a loss that is not finite after which a training with a loss scale stops, and the
# smallest scale: each such iteration halves it, and it starts at 65,536.
IN_A_ROW = 10
SMALLEST_SCALE = 1.0


def print_once(text: str) -> None:
    """Print a line on the main rank only."""
    if is_main_process():
        print(text, flush=True)


class StopRequest:
    """Context in which SIGTERM, SIGHUP and Ctrl-C only record a request to stop.

    SIGHUP arrives when the terminal is closed; under `nohup`, which ignores it, it stays ignored.

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
        numbers = [signal.SIGTERM, signal.SIGINT] if in_main_thread else []
        if in_main_thread and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
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

    With a dynamic loss scale (`train.amp: fp16`) a loss that is not finite costs one step, which is
    skipped, and halves the scale. There a training stops after `IN_A_ROW` of them, or when the
    scale has fallen below `SMALLEST_SCALE`.

    Args:
        interval: Iterations between two checks; reading losses on a GPU waits for the GPU. Every
            iteration counts, whenever it is read.
    """

    priority = "HIGH"

    def __init__(self, interval: int = 1):
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep the losses, detached."""
        assert outputs is not None
        runner.losses = {key: value.detach() for key, value in outputs.items() if "loss" in key}
        runner.unchecked.append(runner.losses)

    def between_iterations(self, runner: Runner) -> None:
        """Check the losses."""
        if runner.iter % self.interval == 0:
            require_finite(runner)


def require_finite(runner: Runner) -> None:
    """Check the losses since the last check; raise `UserError` as `FiniteLossHook` describes."""
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    unchecked, runner.unchecked = runner.unchecked, []
    if not unchecked:
        return
    allowed = IN_A_ROW - 1 if scaler else 0
    totals = torch.stack([losses["loss"] for losses in unchecked]).tolist()
    for index, total in enumerate(totals):
        runner.overflows = 0 if math.isfinite(total) else runner.overflows + 1
        if runner.overflows > allowed:
            where = f"at iteration {runner.iter - len(totals) + index + 1}"
            values = ", ".join(f"{key} {float(v):.4g}" for key, v in unchecked[index].items())
            in_a_row = f", after {allowed} others in a row" if allowed else ""
            raise diverged(runner, f"the loss is not finite {where}{in_a_row} ({values})")
    if scaler and (scale := scaler.get_scale()) < SMALLEST_SCALE:
        raise diverged(runner, f"the loss scale has fallen to {scale:.2g} by {runner.iter}")


def require_finite_state(state: dict) -> None:
    """Raise `UserError` if a weight or buffer in a `Runner.state` is not finite."""
    for name, value in state["state_dict"].items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{state['meta']['run']}: {name} is not finite after iteration {state['iter']}",
                "lower train.lr, or set train.amp: none in the scale's YAML; earlier checkpoints "
                "are intact, the same command resumes from the last one",
            )


def diverged(runner: Runner, what: str) -> UserError:
    """Return the error for a training whose losses are not finite."""
    return UserError(
        f"{runner.cfg.meta.run}: {what}",
        "lower train.lr, set train.clip_grad or increase train.warmup_iters in the scale's "
        "YAML; earlier checkpoints are intact, the same command resumes from the last one",
    )


@HOOKS.register_module()
class SaveHook(Hook):
    """Saves a resumable checkpoint after an epoch, every `minutes`, and on a request to stop.

    Attributes:
        apart: Seconds since the last checkpoint within which the end of an epoch saves none.
    """

    priority = "VERY_LOW"
    apart = 15.0

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
        passed = time.monotonic() - self.saved
        due = passed > (self.apart if loop.at_epoch_end else self.seconds)
        if stop or at_end or due:
            require_finite(runner)
            if is_main_process():
                state = runner.state()
                require_finite_state(state)
                runner.checkpoints.save(state, loop.iter)
            self.saved = time.monotonic()
        if stop and not at_end:
            barrier()  # a rank that ends early would count as failed
            print_once(
                f"{runner.cfg.meta.run}: stopped on request, saved at iteration {loop.iter}; "
                "the same command resumes from there"
            )
            raise SystemExit(128 + stop)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Prints a line and logs a record every `interval` iterations of an epoch and at its end.

    `RUN  epoch 17/24  150/6250  loss 1.234 (cls 0.71, ...)  lr 0.0200  0.45 s/it  9.1 GB  ETA 5 h`

    At the end of an epoch the line omits the iterations. Losses and seconds are means since the
    last record. docs/scaling.md lists the keys of a record. The hook also keeps the seconds of the
    training so far in `runner.notes`.

    Args:
        interval: Iterations between two records.
    """

    priority = "LOW"

    def __init__(self, interval: int = 50):
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Start the clocks; CPU time counts from the start of the process, with its imports."""
        self.last = time.monotonic(), 0.0
        self.losses: list[dict[str, torch.Tensor]] = []
        self.seconds = 0.0
        self.log = TrainingLog(Path(runner.cfg.log.file), runner.cfg.log.stage)
        if is_main_process():
            self.log.resume(runner.iter)

    def between_iterations(self, runner: Runner) -> None:
        """Collect times and losses; print and log them if it is time."""
        now, loop = (time.monotonic(), time.process_time()), runner.loop
        for key, before, after in zip(("seconds", "cpu_seconds"), self.last, now, strict=True):
            runner.notes[key] = runner.notes.get(key, 0.0) + after - before
        self.losses.append(runner.losses)  # tensors: converting them would wait for a GPU
        self.seconds += now[0] - self.last[0]
        self.last = now
        within = (loop.iter - 1) % loop.epoch_length + 1
        ends_epoch = loop.at_epoch_end or loop.iter == loop.max_iters
        if is_main_process() and (ends_epoch or within % self.interval == 0):
            record = self.record(runner, ends_epoch)
            self.log.append(record)
            print(progress_line(runner, record, "" if ends_epoch else f"  {within}"), flush=True)
        if ends_epoch or within % self.interval == 0:
            self.losses, self.seconds = [], 0.0

    def record(self, runner: Runner, ends_epoch: bool) -> dict:
        """What is known since the last record."""
        loop, device = runner.loop, runner.cfg.device
        record = {
            "epoch": -(-loop.iter // loop.epoch_length),
            "iteration": loop.iter,
            "lr": float(f"{runner.optim_wrapper.get_lr()['lr'][0]:.6g}"),
            **mean_losses(self.losses),
            "seconds_per_iteration": round(self.seconds / len(self.losses), 4),
            "seconds": round(runner.notes["seconds"], 2),
            "memory_mib": provenance.peak_memory(device),
        }
        if scaler := getattr(runner.optim_wrapper, "loss_scaler", None):
            record["loss_scale"] = scaler.get_scale()
        if ends_epoch and (bias := moving_bias(runner.bare_model)):
            record["pwb"] = bias
        return record


def mean_losses(losses: list[dict[str, torch.Tensor]]) -> dict:
    """Mean of each loss over some iterations, read with one synchronisation.

    Returns:
        `loss`, their sum, and `losses` by name. A mean is over the iterations in which the loss
        exists (PCB's only while it acts) and is finite; None where there are none.
    """
    read = iter(torch.stack([value for each in losses for value in each.values()]).tolist())
    values: dict[str, list[float]] = {}
    for name, value in ((name, next(read)) for each in losses for name in each):
        values.setdefault(name, []).extend([value] if math.isfinite(value) else [])
    means = {
        name: float(f"{fmean(values[name]):.5g}") if values[name] else None
        for name in sorted(values)
    }
    return {"loss": means.pop("loss"), "losses": means}


@torch.no_grad()
def moving_bias(model: torch.nn.Module) -> dict[str, float]:
    """PwB of the moving confusion matrix (rows divided by their sums), by its momentum.

    Empty for a detector whose losses keep no matrix; of several matrices, that of the last.
    """
    found: dict[str, float] = {}
    for module in model.modules():
        if isinstance(module, ConfusionMatrix):
            for momentum, matrix in zip(module.momenta.tolist(), module.bank, strict=True):
                rows = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1e-12)
                found[f"{momentum:g}"] = round(pairwise_bias(rows).item(), 5)
    return found


def progress_line(runner: Runner, record: dict, within: str) -> str:
    """A record as the line that `ProgressHook` prints."""
    loop = runner.loop
    epochs = f"{record['epoch']}/{-(-loop.max_iters // loop.epoch_length)}"
    within = within and f"{within}/{loop.epoch_length}"
    shown = {k: math.nan if v is None else v for k, v in record["losses"].items()}
    parts = ", ".join(f"{k.removeprefix('loss_')} {v:.3g}" for k, v in shown.items())
    loss = math.nan if record["loss"] is None else record["loss"]
    seconds = record["seconds_per_iteration"]
    gpu = record["memory_mib"].get("gpu")
    memory = f"  {gpu / 1024:.1f} GB" if gpu else ""
    eta = duration(seconds * (loop.max_iters - loop.iter))
    return (
        f"{runner.cfg.meta.run}  epoch {epochs}{within}  loss {loss:.3f} ({parts})  "
        f"lr {record['lr']:.4f}  {seconds:.2g} s/it{memory}  ETA {eta}"
    )


class TrainingLog:
    """Records of a training, one JSON object a line, without those of iterations that were lost.

    Args:
        path: The file.
        stage: Index of the stage that writes; the file has all stages of a training.
    """

    def __init__(self, path: Path, stage: int) -> None:
        self.path, self.stage = path, stage

    def resume(self, iteration: int) -> None:
        """Drop the records after `iteration` of this stage, and an incomplete last line."""
        kept = []
        for line in (
            self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        ):
            try:
                record = json.loads(line)
                if (record["stage"], record["iteration"]) <= (self.stage, iteration):
                    kept.append(f"{line}\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_text(self.path, "".join(kept))

    def append(self, record: dict) -> None:
        """Add a record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **record}) + "\n")
