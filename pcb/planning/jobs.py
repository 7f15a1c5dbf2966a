"""The trainings of a study, and the state of each, read from the results folder alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from pcb.evaluation import ahead
from pcb.study.current import current_metrics, current_training, current_trunk, lacking
from pcb.study.study import Study

MAIN_TABLE = "table02"  # made first
DONE, TRAINED, PARTIAL, TO_RUN = "done", "trained", "partial", "to run"


@dataclass(frozen=True)
class Job:
    """A training, or the first epochs that several trainings share.

    Attributes:
        run: Id of the experiment.
        seed: Its seed.
        state: `DONE` (trained, and scored in all variants that a table shows; a trunk: trained),
            `TRAINED` (not scored in all of them), `PARTIAL` (it would resume from a checkpoint) or
            `TO_RUN`. A record of another configuration counts as missing.
        epochs: Epochs that this job trains itself.
        trunk: Whether it is a trunk.
        tables: Tables and figures with a row of this run; () for a trunk.
        branches: Runs that branch from a trunk; () for a training.
    """

    run: str
    seed: int
    state: str
    epochs: int
    trunk: bool
    tables: tuple[str, ...]
    branches: tuple[str, ...] = ()


def jobs(study: Study, *targets: str) -> list[Job]:
    """List the trainings behind some targets, each trunk before the first run that needs it.

    Args:
        study: The study.
        targets: Tables, figures and pages; all of them without arguments.
    """
    out: list[Job] = []
    runs = study.runs(*targets)
    for seed in study.seeds:
        listed: set[str] = set()
        for run in runs:
            trunk = study.experiments[run].trunk
            if trunk and trunk not in listed:
                listed.add(trunk)
                branches = tuple(b for b in runs if study.experiments[b].trunk == trunk)
                state = trunk_state(study, trunk, seed)
                out.append(Job(trunk, seed, state, study.trunk_epochs, True, (), branches))
            epochs, tables = epochs_to_train(study, run), tables_of(study, run)
            out.append(Job(run, seed, run_state(study, run, seed), epochs, False, tables))
    return out


def targets_in_order(study: Study) -> list[str]:
    """Targets in the order in which a run makes them: Table 2, then what needs few further runs.

    Table 2 is the paper's main result. A target has its place by the number of its runs that those
    before it do not need.
    """
    out: list[str] = []
    while remaining := [target for target in study.targets if target not in out]:
        known = set(study.runs(*out)) if out else set()
        further = {target: len({*study.runs(target)} - known) for target in remaining}
        first = MAIN_TABLE in remaining
        out.append(MAIN_TABLE if first else min(remaining, key=further.__getitem__))
    return out


def epochs_to_train(study: Study, run: str) -> int:
    """Epochs that a run's own job trains, in all its stages, without those of its trunk."""
    experiment = study.experiments[run]
    stages = study.registry.stages(experiment.loss)
    epochs = sum(stage.epochs or study.schedule["epochs"] for stage in stages)
    return epochs - (study.trunk_epochs if experiment.trunk else 0)


def run_state(study: Study, run: str, seed: int) -> str:
    """The state of a training, from its records and its work folder."""
    if current_training(study, run, seed):
        metrics = current_metrics(study, run, seed)
        return DONE if metrics and not lacking(study, metrics, run) else TRAINED
    if study.experiments[run].trunk == run and trunk_state(study, run, seed) != DONE:
        return TO_RUN  # any checkpoint in the work folder that they share is the trunk's
    return PARTIAL if has_checkpoint(study, study.fingerprint(run, seed)) else TO_RUN


def trunk_state(study: Study, trunk: str, seed: int) -> str:
    """The state of a trunk, from its record and its work folder."""
    if current_trunk(study, trunk, seed):
        return DONE
    return PARTIAL if has_checkpoint(study, study.fingerprint(trunk, seed)) else TO_RUN


def has_checkpoint(study: Study, fingerprint: str) -> bool:
    """Whether a training left a checkpoint to resume from."""
    return any(study.paths.work(fingerprint).glob("iter*.pth"))


def discard(study: Study, rule: str, run: str, seed: str, split: str = "val") -> None:
    """Delete what a job would keep or resume from, so that it starts anew.

    Args:
        study: The study.
        rule: The job's rule: `trunk`, `train`, `infer`, `infer_split` or `train_confusion`; for
            others nothing is deleted.
        run: Experiment.
        seed: Seed of the training.
        split: Split of `infer_split`.
    """
    paths, of = study.paths, (run, int(seed))
    if rule in ("trunk", "train"):
        work = paths.work(study.fingerprint(*of))
        names = {"trunk": ("trunk.*.pth", "iter*.pth"), "train": ("final.*.pth", "iter*.pth")}
        for path in (path for name in names[rule] for path in work.glob(name)):
            path.unlink(missing_ok=True)
        if rule == "train":
            shutil.rmtree(work / "first", ignore_errors=True)
    if rule in ("infer", "infer_split"):
        ahead.discard(study, *of, split)
        paths.detections(*of, split).unlink(missing_ok=True)  # or a training would not detect
        shutil.rmtree(paths.detections(*of, split).with_suffix(""), ignore_errors=True)
        shutil.rmtree(paths.confusion(*of, split).with_suffix(""), ignore_errors=True)
    if rule == "train_confusion":
        shutil.rmtree(paths.confusion(*of, "train").with_suffix(""), ignore_errors=True)


def tables_of(study: Study, run: str) -> tuple[str, ...]:
    """Tables and figures that have a row of this run."""
    return tuple(key for key, table in study.tables.items() if run in table.runs)
