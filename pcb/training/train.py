"""Train one experiment, from its first step to its record, across interruptions.

A training resumes from the newest intact checkpoint in its work folder. Without one it branches
from its trunk, and without a trunk it starts from the backbone's starting weights. The record,
run.json or trunk.json, is written last.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_world_size, is_main_process

from pcb.cluster import provenance
from pcb.errors import UserError
from pcb.files import locked, write_text
from pcb.formatting import counted
from pcb.mmdet import PCBEpochHook
from pcb.study import Study
from pcb.study.current import checkpoint_of, weights_of
from pcb.study.records import require_record, write_record
from pcb.training import build, weights
from pcb.training.checkpoint import Checkpoints, digest_of, load_recorded, sha256
from pcb.training.hooks import StopRequest, print_once
from pcb.training.runner import Runner, release_memory

RESUME_ONLY = ("optimizer", "schedulers")  # in a checkpoint, but not in that of a finished training


def train(study: Study, run: str, seed: int, trunk: bool = False) -> Path:
    """Train a run and write its record.

    Args:
        study: The study.
        run: The experiment's id. A run that shares a trunk needs the trunk's record.
        seed: Seed of the training.
        trunk: Train only the epochs before PCB, as a trunk.

    Returns:
        Path of the record, `paths.train(run, seed)` or `paths.trunk(run, seed)`.

    Raises:
        UserError: A record, weights or data are missing or do not fit, another process trains this
            run, or the loss is not finite.
        SystemExit: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    record_path = study.paths.trunk(run, seed) if trunk else study.paths.train(run, seed)
    work = study.paths.work(study.fingerprint(run, seed))
    with locked(work / ".lock", run) if is_main_process() else nullcontext():
        barrier()  # the work folder exists, and no other process uses it
        kept = Checkpoints(work).load_named("trunk" if trunk else "final", print_once)
        if kept and not trunk and not branched_from_current_trunk(study, run, seed, kept[1]):
            kept = None
        path, state = kept or train_to_end(study, run, seed, work, trunk)
        if kept:
            print_once(f"kept: {run} was trained before, to {path}")
        if is_main_process():
            if (log := work / build.LOG).exists():
                write_text(
                    study.paths.training_log(run, seed, trunk), log.read_text(encoding="utf-8")
                )
            record = {
                **state["record"],
                "checkpoint": str(path),
                "sha256": sha256(path),
                "weights": digest_of(state),
            }
            write_record(record_path, record)
        barrier()
    return record_path


def train_to_end(study: Study, run: str, seed: int, work: Path, trunk: bool) -> tuple[Path, dict]:
    """Train and save the final checkpoint.

    Returns:
        Its path and content: weights and record; of a trunk also the state to resume from.
    """
    experiment, schedule = study.experiments[run], study.schedule
    stages = study.registry.stages(experiment.loss)
    origin = None if trunk or not experiment.trunk else trunk_record(study, experiment.trunk, seed)
    epochs = schedule["pcb_start_epoch"] - 1 if trunk else schedule["epochs"]
    begin = (
        partial(branch, origin=origin)
        if origin
        else lambda runner: weights.initialise(runner.bare_model, study, experiment.backbone)
    )
    first = None
    if len(stages) == 2:
        first = first_stage(study, run, seed, work, begin)
        release_memory()
        begin, epochs = partial(next_stage, state=first), stages[-1].epochs or epochs
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
        "trunk": {"run": experiment.trunk, "weights": weights_of(origin)} if origin else None,
        **about_training(study, runner, state["notes"]),
    }
    if not trunk:
        state = finished(state)
        warn_if_never_active(runner)
    stem = "trunk" if trunk else "final"
    save_final(work, stem, state)
    if is_main_process():
        shutil.rmtree(work / "first", ignore_errors=True)
    return load_final(work, stem)


def about_training(study: Study, runner: Runner, notes: dict) -> dict:
    """The part of a record that is the same for one stage and for two."""
    return {
        "batch": {
            "images": study.scale["train"]["batch_size"],
            "processes": get_world_size(),
            "micro_batches": build.micro_batches(study),
        },
        "repeat_factors": repeat_factors(runner.train_dataloader.dataset),
        "gate_opened_at_iteration": notes[PCBEpochHook.KEY],
        "seconds": round(notes["seconds"], 2),
        "cpu_seconds": round(notes["cpu_seconds"], 2),
        **provenance.record(study, runner.started),
    }


def first_stage(
    study: Study, run: str, seed: int, work: Path, begin: Callable[[Runner], None]
) -> dict:
    """Return the final state of the training that BAGS and LOCE start from; train it if needed.

    It has its own folder in the training's work folder, runs once and is resumed like any other
    training.
    """
    folder = work / "first"
    folder.mkdir(exist_ok=True)
    if (saved := Checkpoints(folder).load_named("final", print_once)) is None:
        cfg = build.config(study, run, seed, folder, stage=0, log=work / build.LOG)
        runner = execute(cfg, study, begin)
        save_final(folder, "final", {**finished(runner.state()), "epochs": runner.loop.max_epochs})
        saved = load_final(folder, "final")
    return saved[1]


def save_final(work: Path, stem: str, state: dict) -> None:
    """Save a named checkpoint on the main rank; the other ranks wait."""
    if is_main_process():
        Checkpoints(work).save_named(stem, state)
    barrier()


def load_final(work: Path, stem: str) -> tuple[Path, dict]:
    """Load a named checkpoint that was just saved."""
    saved = Checkpoints(work).load_named(stem)
    assert saved, f"{work}: {stem} was just saved"
    return saved


def finished(state: dict) -> dict:
    """Return a state without the entries for resuming: optimiser, schedulers, LOCE's memory."""
    weights = state["state_dict"]
    return {
        **{key: value for key, value in state.items() if key not in RESUME_ONLY},
        "state_dict": {k: v for k, v in weights.items() if build.FEATURE_MEMORY not in k},
    }


def execute(cfg: Config, study: Study, begin: Callable[[Runner], None]) -> Runner:
    """Run a training to its end and return its runner.

    It resumes from the newest intact checkpoint in its work folder; without one, `begin(runner)`
    loads the starting weights or state.
    """
    if cfg.device == "cpu":
        torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    started = provenance.now()
    with StopRequest() as stop:
        runner = cast(Runner, Runner.from_cfg(cfg))  # annotated as mmengine's
        runner.stop, runner.started, runner.begin = stop, started, partial(resume_or, begin)
        runner.train()
    return runner


def resume_or(begin: Callable[[Runner], None], runner: Runner) -> None:
    """Check data and heads, then resume, or `begin` without a checkpoint."""
    dataset = runner.train_dataloader.dataset
    repeat_factors(dataset)  # raise before the training rather than after it
    build.check_heads(runner.bare_model, len(dataset.metainfo["classes"]))
    if (state := runner.checkpoints.newest(print_once)) is None:
        begin(runner)
    else:
        build.load_weights(runner.bare_model, state, runner.work_dir)
        runner.set_progress(state)
        print_once(f"{runner.cfg.meta.run}: resumes from iteration {runner.iter}")


def next_stage(runner: Runner, state: dict) -> None:
    """Start from the weights of a method's first stage."""
    weights.carry_over(runner.bare_model, state["state_dict"])


def branch(runner: Runner, origin: dict) -> None:
    """Start where the trunk with the record `origin` ended; its seconds count for the trunk."""
    again = f"run `pcb trunk {origin['run']} --seed {origin['seed']}` again"
    state = load_recorded(origin["checkpoint"], origin["sha256"], again)
    build.load_weights(runner.bare_model, state, origin["checkpoint"])
    runner.set_progress(state)
    runner.notes.update(seconds=0.0, cpu_seconds=0.0)


def branched_from_current_trunk(study: Study, run: str, seed: int, state: dict) -> bool:
    """Whether a finished training started from the trunk that there is now, if it has one."""
    trunk = study.experiments[run].trunk
    if not trunk:
        return True
    branched_from = weights_of(state["record"]["trunk"] or {})
    return branched_from == weights_of(trunk_record(study, trunk, seed))


def trunk_record(study: Study, trunk: str, seed: int) -> dict:
    """Read the record of a trunk. Raises `UserError` if it is missing or stale."""
    record = require_record(
        study.paths.trunk(trunk, seed),
        study.fingerprint(trunk, seed),
        f"pcb trunk {trunk} --seed {seed}",
    )
    return {**record, "checkpoint": str(checkpoint_of(study, record))}


def repeat_factors(dataset) -> dict | None:
    """Return how often images are repeated in an epoch; None without repeat factor sampling.

    Raises:
        UserError: No image is repeated, since the threshold is below every class's frequency.
    """
    balanced = dataset.dataset
    if not hasattr(balanced, "repeat_indices"):
        return None
    images_by_repeats = Counter(Counter(balanced.repeat_indices).values())
    images, samples = sum(images_by_repeats.values()), len(balanced.repeat_indices)
    if images == samples:
        raise UserError(
            f"repeat factor sampling with train.rfs_threshold {balanced.oversample_thr:g} "
            f"repeats none of the {images} images",
            "raise train.rfs_threshold in the scale's YAML above the rarest class's frequency",
        )
    return {
        "threshold": balanced.oversample_thr,
        "images": images,
        "samples": samples,
        "images_by_repeats": {str(k): images_by_repeats[k] for k in sorted(images_by_repeats)},
    }


def warn_if_never_active(runner: Runner) -> None:
    """Print which classes PCB was waiting for if it never became active."""
    pcb = getattr(runner.bare_model.roi_head.bbox_head.loss_cls, "pcb", None)
    if pcb and pcb.alpha and (unseen := pcb.unseen_classes()):
        classes = runner.train_dataloader.dataset.metainfo["classes"]
        names = ", ".join(classes[i] for i in unseen[:5]) + ", …" * (len(unseen) > 5)
        print_once(
            f"{runner.cfg.meta.run}: PCB was never active, "
            f"because {counted(len(unseen), 'class', 'classes')} had no positive RoI: {names}"
        )
