"""The trainings of a study as jobs, and how far each is by the results folder alone.

for job in jobs(study, "table06"): job.run, job.state, job.epochs, job.epochs_left
"""

from __future__ import annotations

from dataclasses import dataclass

from pcb.study.records import current_record
from pcb.study.study import Study

DONE, TRAINED, PARTIAL, TO_RUN = "done", "trained", "partial", "to run"


@dataclass(frozen=True)
class Job:
    """A training (or, with `trunk`, the first epochs that `branches` share): its state, and the epochs that it trains itself.

    `state`: done (trained and scored; a trunk: trained), trained (not scored), partial (a checkpoint to continue from), to run.
    A record of another configuration than the study's counts as none.
    """

    run: str
    seed: int
    state: str
    epochs: int
    trunk: bool
    tables: tuple[str, ...]
    branches: tuple[str, ...] = ()

    @property
    def epochs_left(self) -> int:
        """Epochs still to train; those of a partial one are all counted."""
        return self.epochs if self.state in (PARTIAL, TO_RUN) else 0


def jobs(study: Study, *targets: str) -> list[Job]:
    """The trainings behind the given tables and figures (all without arguments), each trunk before the first that needs it."""
    out: list[Job] = []
    runs = study.runs(*targets)
    for seed in study.seeds:
        ready: set[str] = set()
        for run in runs:
            trunk = study.experiments[run].trunk
            if trunk and trunk not in ready:
                ready.add(trunk)
                branches = tuple(b for b in runs if study.experiments[b].trunk == trunk)
                out.append(
                    Job(
                        trunk,
                        seed,
                        state(study, trunk, seed, trunk=True),
                        study.trunk_epochs,
                        True,
                        (),
                        branches,
                    )
                )
            out.append(
                Job(
                    run,
                    seed,
                    state(study, run, seed),
                    epochs_to_train(study, run),
                    False,
                    tables_of(study, run),
                )
            )
    return out


def epochs_to_train(study: Study, run: str) -> int:
    """Epochs that a run's own job trains, in all its stages, after what its trunk did."""
    experiment = study.experiments[run]
    epochs = sum(
        stage.epochs or study.schedule["epochs"] for stage in study.registry.stages(experiment.loss)
    )
    return epochs - (study.trunk_epochs if experiment.trunk else 0)


def state(study: Study, run: str, seed: int, trunk: bool = False) -> str:
    """How far a training is, by its records and its work folder."""
    paths, fingerprint = study.paths, study.fingerprint(run, seed)
    if current_record(paths.trunk(run, seed) if trunk else paths.train(run, seed), fingerprint):
        return DONE if trunk or current_record(paths.metrics(run, seed), fingerprint) else TRAINED
    waits = (
        not trunk
        and study.experiments[run].trunk == run
        and not current_record(paths.trunk(run, seed), fingerprint)
    )
    return (
        PARTIAL if not waits and any(paths.work(fingerprint).glob("iter*.pth")) else TO_RUN
    )  # trunk and its run share the folder


def tables_of(study: Study, run: str) -> tuple[str, ...]:
    return tuple(
        key for key, table in study.tables.items() if any(row.run == run for row in table.rows)
    )
