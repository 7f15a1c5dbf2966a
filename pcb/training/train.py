"""`train`: one experiment from its first step to its record, whatever interrupts it on the way.

A training goes on from the newest good checkpoint in its own work folder; without one it branches from its trunk;
without a trunk it starts from the pretrained weights. The record, run.json, is written last.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_world_size, is_main_process

from pcb.cluster import provenance
from pcb.errors import UserError
from pcb.files import locked, write_json
from pcb.mmdet import PCBEpochHook
from pcb.study import Study
from pcb.study.records import require_record
from pcb.training import build, weights
from pcb.training.checkpoint import Checkpoints, load_recorded, sha256
from pcb.training.hooks import StopRequest, say
from pcb.training.runner import Runner

RESUMING = (
    "optimizer",
    "schedulers",
)  # parts of a checkpoint that a finished training does not need


def train(study: Study, run: str, seed: int, trunk: bool = False) -> Path:
    """Train `run` and write its record `paths.train(run, seed)`; with `trunk` only up to PCB, and `paths.trunk(run, seed)`.

    A run that shares a trunk, the trunk's own experiment included, needs the trunk's record. Returns the path of the
    record. Raises `UserError` for what a user can mend; SIGTERM and Ctrl-C save and raise `SystemExit`.
    """
    record_path = study.paths.trunk(run, seed) if trunk else study.paths.train(run, seed)
    work, stem = study.paths.work(study.fingerprint(run, seed)), "trunk" if trunk else "final"
    with locked(work / ".lock", run) if is_main_process() else nullcontext():
        path, state = Checkpoints(work).kept(stem, say) or train_to_end(
            study, run, seed, work, trunk
        )
        if is_main_process():
            write_json(
                record_path, {**state["record"], "checkpoint": str(path), "sha256": sha256(path)}
            )
        barrier()
    return record_path


def train_to_end(study: Study, run: str, seed: int, work: Path, trunk: bool) -> tuple[Path, dict]:
    """Train, and keep the final checkpoint, which is returned: the weights and the record; of a trunk the whole state."""
    experiment, schedule = study.experiments[run], study.schedule
    origin = None if trunk or not experiment.trunk else trunk_record(study, experiment.trunk, seed)
    epochs = schedule["pcb_start_epoch"] - 1 if trunk else schedule["epochs"]
    begin = (
        partial(branch, origin=origin)
        if origin
        else lambda runner: weights.initialise(runner.bare_model, study, experiment.backbone)
    )
    first = None
    stages = study.registry.stages(experiment.loss)
    if len(stages) == 2:
        first = first_stage(study, run, seed, work / "first", begin)
        begin, epochs = partial(next_stage, state=first), stages[-1].epochs
    runner = execute(build.config(study, run, seed, work, until_epoch=epochs), study, begin)
    for key in ("seconds", "cpu_seconds"):
        runner.notes[key] += first["notes"][key] if first else 0.0
    state = runner.state()
    state["record"] = {
        "run": run,
        "seed": seed,
        "fingerprint": work.name,
        "epochs": epochs + (first["epochs"] if first else 0),
        "iterations": runner.iter + (first["iter"] if first else 0),
        "batch": {
            "images": study.scale["train"]["batch_size"],
            "processes": get_world_size(),
            "micro_batches": build.micro_batches(study),
        },
        "trunk": {"run": experiment.trunk, "sha256": origin["sha256"]} if origin else None,
        "repeat_factors": repeat_factors(runner.train_dataloader.dataset),
        "gate_opened_at_iteration": state["notes"][PCBEpochHook.KEY],
        "seconds": round(runner.notes["seconds"], 2),
        "cpu_seconds": round(runner.notes["cpu_seconds"], 2),
        **provenance.record(study, runner.started),
    }
    if not trunk:
        state = finished(state)
        warn_of_shut_gate(runner)
    if is_main_process():
        Checkpoints(work).keep_as("trunk" if trunk else "final", state)
        shutil.rmtree(work / "first", ignore_errors=True)
    barrier()
    return Checkpoints(work).kept("trunk" if trunk else "final")


def first_stage(
    study: Study, run: str, seed: int, work: Path, begin: Callable[[Runner], None]
) -> dict:
    """The ordinary training that BAGS and LOCE start from, kept in a folder of its own: done once, continued like any other."""
    work.mkdir(exist_ok=True)
    if (kept := Checkpoints(work).kept("final", say)) is None:
        runner = execute(build.config(study, run, seed, work, stage=0), study, begin)
        state = {**finished(runner.state()), "epochs": runner.train_loop.max_epochs}
        if is_main_process():
            Checkpoints(work).keep_as("final", state)
        barrier()
        kept = Checkpoints(work).kept("final")
    return kept[1]


def finished(state: dict) -> dict:
    """A checkpoint's state without what only a training that goes on needs: the optimiser's, and LOCE's memory of features."""
    state = {key: value for key, value in state.items() if key not in RESUMING}
    return {
        **state,
        "state_dict": {
            key: value for key, value in state["state_dict"].items() if build.MEMORY not in key
        },
    }


def next_stage(runner: Runner, state: dict) -> None:
    weights.carry_over(runner.bare_model, state["state_dict"])


def execute(cfg: Config, study: Study, begin: Callable[[Runner], None]) -> Runner:
    """Run a training to its end: from the newest good checkpoint in its work folder, else from what `begin` makes of the runner."""
    if cfg.device == "cpu":
        torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    started = provenance.now()
    with StopRequest() as stop:
        runner = Runner.from_cfg(cfg)
        runner.stop, runner.started, runner.begin = stop, started, partial(resume_or, begin)
        runner.train()
    return runner


def resume_or(begin: Callable[[Runner], None], runner: Runner) -> None:
    dataset = runner.train_dataloader.dataset
    repeat_factors(dataset)  # an error now rather than after the training
    build.check_heads(runner.bare_model, len(dataset.metainfo["classes"]))
    if (state := runner.checkpoints.newest(say)) is None:
        begin(runner)
    else:
        build.load_weights(runner.bare_model, state, runner.work_dir)
        runner.set_progress(state)
        say(f"{runner.cfg.meta.run}: goes on from iteration {runner.iter}")


def branch(runner: Runner, origin: dict) -> None:
    """Start where a trunk ended. Its own time is not this training's."""
    state = load_recorded(origin["checkpoint"], origin["sha256"])
    build.load_weights(runner.bare_model, state, origin["checkpoint"])
    runner.set_progress(state)
    runner.notes.update(seconds=0.0, cpu_seconds=0.0)


def trunk_record(study: Study, trunk: str, seed: int) -> dict:
    """The record of the trunk that a run branches from. Raises `UserError` where it is missing."""
    return require_record(
        study.paths.trunk(trunk, seed),
        study.fingerprint(trunk, seed),
        f"pcb trunk {trunk} --seed {seed}",
    )


def repeat_factors(dataset) -> dict | None:
    """How often images are repeated in an epoch; None without repeat factor sampling.

    Raises `UserError` where the sampling repeats nothing, because its threshold is below every class's frequency.
    """
    balanced = dataset.dataset
    if not hasattr(balanced, "repeat_indices"):
        return None
    times = Counter(Counter(balanced.repeat_indices).values())
    images, samples = sum(times.values()), len(balanced.repeat_indices)
    if images == samples:
        raise UserError(
            f"repeat factor sampling with train.rfs_threshold {balanced.oversample_thr:g} repeats none of the {images} images",
            "raise train.rfs_threshold in the scale's YAML above the rarest class's share of images",
        )
    return {
        "threshold": balanced.oversample_thr,
        "images": images,
        "samples": samples,
        "images_by_repeats": {str(k): times[k] for k in sorted(times)},
    }


def warn_of_shut_gate(runner: Runner) -> None:
    pcb = getattr(runner.bare_model.roi_head.bbox_head.loss_cls, "pcb", None)
    if pcb and pcb.alpha and (waiting := pcb.unseen_classes()):
        classes = runner.train_dataloader.dataset.metainfo["classes"]
        names = ", ".join(classes[i] for i in waiting[:5])
        say(
            f"{runner.cfg.meta.run}: PCB never acted, for {len(waiting)} classes had no positive RoI: {names}{', …' * (len(waiting) > 5)}"
        )
