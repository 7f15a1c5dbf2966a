"""The trainings of a study, and the state of each, read from the results folder alone."""

from __future__ import annotations

from dataclasses import dataclass

from pcb.study.records import current_record
from pcb.study.study import Study

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


def epochs_to_train(study: Study, run: str) -> int:
    """Epochs that a run's own job trains, in all its stages, without those of its trunk."""
    experiment = study.experiments[run]
    stages = study.registry.stages(experiment.loss)
    epochs = sum(stage.epochs or study.schedule["epochs"] for stage in stages)
    return epochs - (study.trunk_epochs if experiment.trunk else 0)


def run_state(study: Study, run: str, seed: int) -> str:
    """The state of a training, from its records and its work folder."""
    paths, fingerprint = study.paths, study.fingerprint(run, seed)
    if current_record(paths.train(run, seed), fingerprint):
        metrics = current_record(paths.metrics(run, seed), fingerprint)
        scored = metrics and set(study.variants(run)) <= set(metrics.get("variants", ()))
        return DONE if scored else TRAINED
    if study.experiments[run].trunk == run and trunk_state(study, run, seed) != DONE:
        return TO_RUN  # any checkpoint in the work folder that they share is the trunk's
    return PARTIAL if has_checkpoint(study, fingerprint) else TO_RUN


def trunk_state(study: Study, trunk: str, seed: int) -> str:
    """The state of a trunk, from its record and its work folder."""
    fingerprint = study.fingerprint(trunk, seed)
    if current_record(study.paths.trunk(trunk, seed), fingerprint):
        return DONE
    return PARTIAL if has_checkpoint(study, fingerprint) else TO_RUN


def has_checkpoint(study: Study, fingerprint: str) -> bool:
    """Whether a training left a checkpoint to resume from."""
    return any(study.paths.work(fingerprint).glob("iter*.pth"))


def tables_of(study: Study, run: str) -> tuple[str, ...]:
    """Tables and figures that have a row of this run."""
    return tuple(key for key, table in study.tables.items() if run in table.runs)
