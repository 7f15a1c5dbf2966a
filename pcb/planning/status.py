"""`pcb status`: how far a study is, what runs and how long the rest may take, from the results folder alone, also during a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from pcb.formatting import duration
from pcb.planning.costs import Costs
from pcb.planning.jobs import DONE, PARTIAL, TO_RUN, TRAINED, Job
from pcb.planning.timings import Pace
from pcb.study.study import Study
from pcb.study.variants import GAMMA_SPLITS

WITHIN = 120.0  # seconds


def status(study: Study) -> str:
    """One line per table and figure: how many of its rows (times seeds) are measured or wait for a job. Then what runs."""
    costs = Costs(study, Pace.of(study))
    states = {(job.run, job.seed): job.state for job in costs.jobs if not job.trunk}
    text = [f"{'':<9}{'rows':>6}{DONE:>7}{TRAINED:>9}{PARTIAL:>9}{TO_RUN:>8}"]
    for key, table in study.tables.items():
        cells = [states[row.run, seed] for row in table.rows for seed in study.seeds]
        counts = [cells.count(name) for name in (DONE, TRAINED, PARTIAL, TO_RUN)]
        text.append("{:<9}{:>6}{:>7}{:>9}{:>9}{:>8}".format(key, len(cells), *counts))
    return "\n".join([*text, "", *outlook(costs)])


def outlook(costs: Costs) -> list[str]:
    """How far it is, when all is done, and the last line of each running job."""
    running = under_way(costs.study, costs.jobs)
    said = [so_far(costs)]
    left = [costs.items[key].seconds for key in costs.left(costs.items)]
    if running and left and None not in left:
        seconds = max(sum(left) / len(running), max(left))
        jobs = f"{len(running)} jobs run" if len(running) > 1 else "one job runs"
        said.append(f"about {duration(seconds)} left while {jobs}: {at(time.time() + seconds)}")
    return said + running


def overview(study: Study) -> str:
    """How far a study is, in one line."""
    return so_far(Costs(study, Pace({}, [])))


def so_far(costs: Costs) -> str:
    """Trainings and evaluations done of all, and the table that completes next."""
    trainings = [job for job in costs.jobs if not job.trunk]
    counts = Counter(job.state for job in trainings)
    return f"{counts[DONE] + counts[TRAINED]} of {len(trainings)} trainings, {counts[DONE]} evaluated{next_table(costs)}"


def next_table(costs: Costs) -> str:
    """`; next table05: 2 trainings`: the unfinished table that the fewest jobs keep from its numbers."""
    missing = {target: costs.left(costs.needs(target)) for target in costs.targets}
    unfinished = [target for target in costs.targets if missing[target]]
    if not unfinished:
        return ""
    target = min(unfinished, key=lambda name: len(missing[name]))
    away = sum(stage == "train" for stage, *_ in missing[target])
    return (
        f"; next {target}: {f'{away} training' + 's' * (away > 1) if away else 'evaluation only'}"
    )


def at(moment: float, now: float | None = None) -> str:
    """`done at 14:05`, with the day where it is not today's."""
    today = time.localtime(now)[:3]
    return time.strftime(
        "done at %H:%M" if time.localtime(moment)[:3] == today else "done on %a %d %b, %H:%M",
        time.localtime(moment),
    )


def under_way(study: Study, todo: Sequence[Job]) -> list[str]:
    """The last line of the log of every job that wrote one in the last `WITHIN` seconds and has not ended."""
    lines = []
    for job in todo:
        stages = {
            TRAINED: ("train_confusion", "infer", *(f"infer-{s}" for s in GAMMA_SPLITS), "score"),
            PARTIAL: ("train", "trunk"),
            TO_RUN: ("trunk",) if job.trunk else ("train",),
        }
        for stage in stages.get(job.state, ()):
            log = study.paths.log(f"{stage}/{job.run}/seed{job.seed}")
            if log.exists() and time.time() - log.stat().st_mtime < WITHIN:
                said = log.read_text(errors="replace").split("\n")
                lines.append(
                    f"  {stage:<6} "
                    + (next((line for line in reversed(said) if line), "") or job.run)
                )
    return lines
