"""`pcb status [--watch]`: the progress of a study, what runs now and when it will be done.

It reads the results folder only, so it can be used while a run is under way.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

from pcb.formatting import duration
from pcb.planning.costs import Costs
from pcb.planning.jobs import DONE, PARTIAL, TO_RUN, TRAINED, Job, jobs
from pcb.planning.timings import Timings
from pcb.study.current import pages_made, site_line
from pcb.study.study import Study
from pcb.study.variants import GAMMA_SPLITS

FAILED = ("error: ", "Traceback (most recent call last)")  # in the log of a job that ended
CLEAR = "\033[H\033[2J"  # moves to the top of the terminal and clears it
EVALUATIONS = ("train_confusion", "infer", *(f"infer-{s}" for s in GAMMA_SPLITS), "score")
RECENT = 120.0  # seconds without a new line in its log after which a job counts as ended


def status(study: Study) -> str:
    """The state of a study as text.

    One line for each table and figure with the number of its rows (times seeds) in each state, then
    the progress, the time left and the last line of each running job.
    """
    costs = Costs(study, Timings.of(study))
    states = {(job.run, job.seed): job.state for job in costs.jobs if not job.trunk}
    lines = [f"{'':<9}{'rows':>6}{DONE:>7}{TRAINED:>9}{PARTIAL:>9}{TO_RUN:>8}"]
    for key, table in study.tables.items():
        rows = Counter(states[row.run, seed] for row in table.rows for seed in study.seeds)
        lines.append(
            f"{key:<9}{rows.total():>6}{rows[DONE]:>7}{rows[TRAINED]:>9}"
            f"{rows[PARTIAL]:>9}{rows[TO_RUN]:>8}"
        )
    return "\n".join([*lines, "", *outlook(costs)])


def watch(load: Callable[[], Study], seconds: float) -> None:
    """Print the state of a study every few seconds, in place on a terminal, until all is done.

    Args:
        load: Reads the study anew.
        seconds: Seconds between two readings.
    """
    while True:
        study = load()
        start = CLEAR if sys.stdout.isatty() else ""
        print(f"{start}{time.strftime('%H:%M:%S')}\n{status(study)}\n", flush=True)
        if is_done(study):
            return
        time.sleep(seconds)


def is_done(study: Study) -> bool:
    """Whether every training is evaluated and every page made."""
    evaluated = all(job.state == DONE for job in jobs(study))
    return evaluated and pages_made(study) == len(study.targets)


def outlook(costs: Costs) -> list[str]:
    """Lines on the progress, the time left and each running job."""
    running = running_jobs(costs.study, costs.jobs)
    lines = [progress(costs)]
    seconds = [costs.items[key].seconds for key in costs.remaining(costs.items)]
    known = [value for value in seconds if value is not None]
    if running and known and len(known) == len(seconds):
        left = max(sum(known) / len(running), max(known))
        jobs = f"{len(running)} jobs run" if len(running) > 1 else "one job runs"
        lines.append(f"about {duration(left)} left while {jobs}: {done_at(time.time() + left)}")
    lines += running
    return [*lines, site_line(costs.study)] if costs.study.paths.index.exists() else lines


def overview(study: Study) -> str:
    """The progress of a study in one line."""
    return progress(Costs(study, Timings({}, [])))


def progress(costs: Costs) -> str:
    """Trainings and evaluations done, and the table that completes next."""
    trainings = [job for job in costs.jobs if not job.trunk]
    counts = Counter(job.state for job in trainings)
    return (
        f"{counts[DONE] + counts[TRAINED]} of {len(trainings)} trainings, "
        f"{counts[DONE]} evaluated{next_table(costs)}"
    )


def next_table(costs: Costs) -> str:
    """The unfinished table that needs the fewest jobs: `; next table05: 2 trainings`."""
    missing = {target: costs.remaining(costs.needs(target)) for target in costs.targets}
    unfinished = [target for target in costs.targets if missing[target]]
    if not unfinished:
        return ""
    target = min(unfinished, key=lambda name: len(missing[name]))
    trainings = sum(stage == "train" for stage, *_ in missing[target])
    needs = f"{trainings} training{'s' * (trainings > 1)}" if trainings else "evaluation only"
    return f"; next {target}: {needs}"


def done_at(moment: float, now: float | None = None) -> str:
    """A moment as `done at 14:05`, with its day where that is not today.

    Args:
        moment: Seconds since the epoch.
        now: Current time, likewise; None: read the clock.
    """
    today = time.localtime(now)[:3] == time.localtime(moment)[:3]
    return time.strftime(
        "done at %H:%M" if today else "done on %a %d %b, %H:%M", time.localtime(moment)
    )


def running_jobs(study: Study, jobs: Iterable[Job]) -> list[str]:
    """The last line in the log of every job that runs now."""
    lines = []
    for job in jobs:
        stages = {
            TRAINED: (*EVALUATIONS, "train"),  # a training may detect too, after its record
            PARTIAL: ("train", "trunk"),
            TO_RUN: ("trunk",) if job.trunk else ("train",),
        }
        shown = len(lines)
        for stage in stages.get(job.state, ()):
            log = study.paths.log(f"{stage}/{job.run}/seed{job.seed}")
            if log.exists() and time.time() - log.stat().st_mtime < RECENT:
                text = log.read_text(encoding="utf-8", errors="replace")
                logged = [line for line in text.split("\n") if line]
                if any(line.startswith(FAILED) for line in logged):
                    continue
                last = logged[-1] if logged else job.run
                if stage == "train" and job.state == TRAINED:
                    detects = last.startswith((f"{job.run} on ", f"{job.run}, "))
                    if not detects or len(lines) > shown:  # it has ended
                        continue
                lines.append(f"  {stage:<6} {last}")
    return lines
