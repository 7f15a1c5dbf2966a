"""What the study would do and how far it is, from the results folder alone: `jobs`, and as text `plan` and `status`.

    run                                                   seed  epochs  state     tables
    trunk of v05_r50_rfs_softmax_plain                       0      16  to run    shared by 8
    v05_r50_rfs_softmax_plain                                0       8  to run    1 2 4 8 10
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pcb.methods import stages
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
                out.append(Job(trunk, seed, state(study, trunk, seed, trunk=True), study.trunk_epochs, True, (), branches))
            out.append(Job(run, seed, state(study, run, seed), epochs_to_train(study, run), False, tables_of(study, run)))
    return out


def epochs_to_train(study: Study, run: str) -> int:
    """Epochs that a run's own job trains, in all its stages, after what its trunk did."""
    experiment = study.experiments[run]
    epochs = sum(stage.epochs or study.schedule["epochs"] for stage in stages(experiment))
    return epochs - (study.trunk_epochs if experiment.trunk else 0)


def state(study: Study, run: str, seed: int, trunk: bool = False) -> str:
    """How far a training is, by its records and its work folder."""
    paths, fingerprint = study.paths, study.fingerprint(run, seed)
    if is_current(paths.trunk(run, seed) if trunk else paths.train(run, seed), fingerprint):
        return DONE if trunk or is_current(paths.metrics(run, seed), fingerprint) else TRAINED
    waits = not trunk and study.experiments[run].trunk == run and not is_current(paths.trunk(run, seed), fingerprint)
    return PARTIAL if not waits and any(paths.work(fingerprint).glob("iter*.pth")) else TO_RUN  # trunk and its run share the folder


def is_current(record: Path, fingerprint: str) -> bool:
    """Whether a job's record is there and was made by the study as it is now."""
    try:
        return json.loads(record.read_text()).get("fingerprint") == fingerprint
    except (OSError, ValueError, AttributeError):
        return False


def tables_of(study: Study, run: str) -> tuple[str, ...]:
    return tuple(key for key, table in study.tables.items() if any(row.run == run for row in table.rows))


def plan(study: Study, targets: Sequence[str] = ()) -> str:
    """One line per training of `targets` (all without), then what sharing the first epochs saves. At most 100 columns."""
    todo = jobs(study, *targets)
    lines = [("run", "seed", "epochs", "state", "tables")]
    for job in todo:
        name = f"trunk of {job.run}" if job.trunk else job.run
        tables = f"shared by {len(job.branches)}" if job.trunk else " ".join(map(short, job.tables))
        lines.append((name, str(job.seed), str(job.epochs), job.state, tables))
    width = max(len(line[0]) for line in lines)
    text = [f"{name:<{width}}  {seed:>4}  {epochs:>6}  {state:<9} {tables}".rstrip() for name, seed, epochs, state, tables in lines]
    return "\n".join([*text, "", *totals(study, todo)])


def totals(study: Study, todo: Sequence[Job]) -> list[str]:
    """The epochs of all jobs and those left, and how many there would be if no trunk were shared."""
    trainings = [job for job in todo if not job.trunk]
    each = study.schedule["epochs"]
    whole = len(trainings) * each
    second = sum(stage.epochs or 0 for job in trainings for stage in stages(study.experiments[job.run]))
    more = f", plus {second} of second stages" if second else ""
    return [f"{sum(job.epochs for job in todo)} epochs, {sum(job.epochs_left for job in todo)} left to train",
            f"without shared trunks {whole + second}: {whole} = {len(trainings)} x {each} of the paper's schedule{more}"]


def status(study: Study) -> str:
    """One line per table and figure: how many of its rows (times seeds) are measured or wait for a job."""
    states = {(job.run, job.seed): job.state for job in jobs(study) if not job.trunk}
    text = [f"{'':<9}{'rows':>6}{DONE:>7}{TRAINED:>9}{PARTIAL:>9}{TO_RUN:>8}"]
    for key, table in study.tables.items():
        cells = [states[row.run, seed] for row in table.rows for seed in study.seeds]
        counts = [cells.count(name) for name in (DONE, TRAINED, PARTIAL, TO_RUN)]
        text.append("{:<9}{:>6}{:>7}{:>9}{:>9}{:>8}".format(key, len(cells), *counts))
    return "\n".join([*text, "", *outlook(study)])


def outlook(study: Study) -> list[str]:
    """Trainings and evaluations done of all, the last line of each job under way, and how long the rest may take."""
    todo = jobs(study)
    trainings = [job for job in todo if not job.trunk]
    counts = Counter(job.state for job in trainings)
    running = under_way(study, todo)
    left = seconds_left(study, todo) / max(1, len(running))
    eta = f"; about {duration(left)} left" if left and running else ""
    return [f"{counts[DONE] + counts[TRAINED]} of {len(trainings)} trainings done, {counts[DONE]} evaluated{eta}", *running]


def under_way(study: Study, todo: Sequence[Job], within: float = 120) -> list[str]:
    """The last line of the log of every job that wrote one in the last `within` seconds and has not ended."""
    lines = []
    for job in todo:
        stages = {TRAINED: ("infer", "score"), PARTIAL: ("train", "trunk"), TO_RUN: ("trunk",) if job.trunk else ("train",)}
        for stage in stages.get(job.state, ()):
            log = study.paths.log(f"{stage}/{job.run}/seed{job.seed}")
            if log.exists() and time.time() - log.stat().st_mtime < within:
                said = log.read_text(errors="replace").split("\n")
                lines.append(f"  {stage:<6} " + (next((line for line in reversed(said) if line), "") or job.run))
    return lines


def seconds_left(study: Study, todo: Sequence[Job]) -> float:
    """Time of what is left on one device: epochs at the mean pace of the finished trainings, evaluations at their mean time; 0: unknown."""
    finished = [job for job in todo if not job.trunk and job.state in (DONE, TRAINED)]
    records = [json.loads(study.paths.train(job.run, job.seed).read_text()) for job in finished]
    epochs = sum(job.epochs for job in finished)
    pace = sum(record.get("seconds", 0.0) for record in records) / epochs if epochs else 0.0
    evaluations = [sum(measured(study, stage, job) for stage in ("infer", "score")) for job in finished if job.state == DONE]
    waiting = sum(not job.trunk and job.state != DONE for job in todo)
    return pace * sum(job.epochs_left for job in todo) + (fmean(evaluations) if evaluations else 0.0) * waiting


def measured(study: Study, stage: str, job: Job) -> float:
    """Seconds that a job took, by Snakemake's benchmark file; 0 where it was run by hand."""
    try:
        names, values = study.paths.benchmark(f"{stage}/{job.run}/seed{job.seed}").read_text().splitlines()[:2]
    except (OSError, ValueError):
        return 0.0
    return float(dict(zip(names.split("\t"), values.split("\t"), strict=True))["s"])


def duration(seconds: float) -> str:
    """`43 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def short(target: str) -> str:
    """`table05` -> `5`, `figure1` -> `F1`."""
    return target.removeprefix("table").lstrip("0") if target.startswith("table") else target.replace("figure", "F")
