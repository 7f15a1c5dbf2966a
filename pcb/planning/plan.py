"""`pcb plan`: what a run would do and cost, from the results folder alone. Text of 100 columns, or JSON.

             trainings       on its own     on top of what is done and of the tables above
           own  shared   epochs   GPU h    trainings   epochs   GPU h     disk
table01      2       0       48     101            2       48     101   3.4 GB
table02     14       2      320     812           14      288     711    21 GB
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from pcb.errors import UserError
from pcb.formatting import device_hours, duration, short, size
from pcb.planning.costs import Costs, Key, total
from pcb.planning.jobs import Job

HOURS_IN = {"s": 1 / 3600, "min": 1 / 60, "m": 1 / 60, "h": 1, "d": 24}
WIDTH = 100
UNKNOWN = "not known yet: `pcb plan --measure` with the same options measures it on this machine"
BY_HAND = ", or give --seconds-per-iteration and --images-per-second"


def plan(
    costs: Costs,
    gpus: int | None = None,
    budget: float | None = None,
    cheapest: bool = False,
    options: str = "",
) -> str:
    """The trainings, the tables, and what all of it comes to. `gpus`: devices to spread it over; `budget`: device hours."""
    parts = [trainings(costs), tables(costs), "\n".join(summary(costs, gpus))]
    if budget is not None:
        parts.append(affordable(costs, budget, cheapest, options))
    return "\n\n".join(parts)


def trainings(costs: Costs) -> str:
    """One line per training: what it shares, how far it is, what it costs."""
    unit = f"{costs.device} h"
    lines = [("run", "seed", "epochs", unit, "state", "tables")]
    for job in costs.jobs:
        name = f"trunk of {job.run}" if job.trunk else job.run
        shown = f"shared by {len(job.branches)}" if job.trunk else " ".join(map(short, job.tables))
        lines.append(
            (
                name,
                str(job.seed),
                str(job.epochs),
                device_hours(costs.items[key_of(job)].hours),
                job.state,
                shown,
            )
        )
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        f"{run:<{width}} {seed:>4} {epochs:>6} {cost:>7}  {state:<7} {of}".rstrip()
        for run, seed, epochs, cost, state, of in lines
    )


def key_of(job: Job) -> Key:
    return ("trunk" if job.trunk else "train", job.run, job.seed)


def by_table(costs: Costs) -> list[dict]:
    """What each table costs on its own, and on top of what is done and of the tables before it."""
    rows, paid = [], []
    for target in costs.targets:
        needs = costs.needs(target)
        adds = costs.left(needs, paid)
        rows.append(
            {
                "table": target,
                "trainings": count(needs),
                "shared": count(set(needs) & set(paid)),
                "alone": {"epochs": costs.epochs(needs), "hours": costs.hours(needs)},
                "adds": {
                    "trainings": count(adds),
                    "epochs": costs.epochs(adds),
                    "hours": costs.hours(adds),
                    "bytes": costs.bytes(adds),
                },
            }
        )
        paid += needs
    return rows


def count(keys: Iterable[Key]) -> int:
    return sum(stage == "train" for stage, *_ in keys)


def tables(costs: Costs) -> str:
    unit = f"{costs.device} h"
    lines = [
        f"{'':<9}{'trainings':^16}{'on its own':^19}{'on top of what is done and of the tables above':>50}",
        f"{'':<9}{'own':>7}{'shared':>9}{'epochs':>11}{unit:>8}{'trainings':>19}{'epochs':>9}{unit:>10}{'disk':>12}",
    ]
    rows = by_table(costs)
    for row in rows:
        adds = row["adds"]
        lines.append(
            f"{row['table']:<9}{row['trainings'] - row['shared']:>7}{row['shared']:>9}"
            f"{row['alone']['epochs']:>11,}{device_hours(row['alone']['hours']):>8}"
            f"{adds['trainings']:>19}{adds['epochs']:>9,}{device_hours(adds['hours']):>10}{size(adds['bytes']):>12}"
        )
    every = costs.left(costs.items)
    lines.append(
        f"{'all':<9}{count(costs.items):>7}{'':>28}{count(every):>19}{costs.epochs(every):>9,}"
        f"{device_hours(costs.hours(every)):>10}{size(costs.bytes(every)):>12}"
    )
    return "\n".join(lines)


def summary(costs: Costs, gpus: int | None = None) -> list[str]:
    """Epochs and what trunks save, time, disk, and where the pace is from."""
    said = [
        ("epochs", [epochs(costs)]),
        ("time", [clock(costs, gpus)]),
        ("disk", [disk(costs)]),
        ("pace", sources(costs)),
    ]
    return [line for name, texts in said for line in indented(name, texts)]


def indented(name: str, texts: Sequence[str]) -> list[str]:
    """Texts beside a name, wrapped."""
    lines = [
        line for text in texts for line in textwrap.wrap(text, WIDTH - 8, subsequent_indent="  ")
    ]
    return [f"{name if i == 0 else '':<8}{line}" for i, line in enumerate(lines)]


def epochs(costs: Costs) -> str:
    naive, extra, dag = savings(costs)
    more = f" ({naive:,} = {naive // costs.study.schedule['epochs']} x {costs.study.schedule['epochs']}, and {extra} of second stages)"
    return (
        f"{costs.epochs(costs.left(costs.items)):,} to train of {dag:,}; without shared trunks {naive + extra:,}"
        f"{more if extra else ''}: {naive + extra - dag:,} saved"
    )


def savings(costs: Costs) -> tuple[int, int, int]:
    """Epochs of the paper's schedule if each training were done alone, those of second stages, and those that the DAG trains."""
    runs = [job for job in costs.jobs if not job.trunk]
    second = sum(
        stage.epochs or 0
        for job in runs
        for stage in costs.study.registry.stages(costs.study.experiments[job.run].loss)
    )
    return len(runs) * costs.study.schedule["epochs"], second, costs.epochs(costs.items)


def clock(costs: Costs, gpus: int | None = None) -> str:
    left = costs.left(costs.items)
    whole = costs.hours(left)
    if whole is None:
        return UNKNOWN + (BY_HAND if costs.gpu else "")
    train = costs.hours([key for key in left if key[0] != "infer"])
    devices = gpus or (costs.per_training if costs.gpu else os.cpu_count() or 1)
    spread = f"{devices} {costs.device}{'s' * (devices > 1)}"
    least = max((costs.items[key].seconds for key in left), default=0)
    return (
        f"{device_hours(whole)} {costs.device} hours ({device_hours(train)} to train, {device_hours(whole - train)} to detect"
        f"{'' if costs.gpu else ' and score'}): about {duration(max(least, whole * 3600 / devices))} on {spread}"
    )


def disk(costs: Costs) -> str:
    left = costs.left(costs.items)
    kept = [
        costs.bytes([key for key in left if (key[0] == "infer") == detections])
        for detections in (False, True)
    ]
    folder = costs.study.paths.root
    data = 0.0 if folder.joinpath("data").exists() else costs.data_bytes()
    needed = total([*kept, data])
    free = shutil.disk_usage(
        next(path for path in [folder.resolve(), *folder.resolve().parents] if path.exists())
    ).free
    parts = [f"data {size(data)}"] if data else []
    parts += [
        f"{name} {size(value)}"
        for name, value in zip(("checkpoints", "detections"), kept, strict=True)
    ]
    scratch = costs.scratch()
    more = f"; {size(scratch)} more for each training while it runs" if scratch and left else ""
    short_of = "" if needed is None or needed + (scratch or 0) < free else ": NOT ENOUGH"
    return f"{size(needed)} ({', '.join(parts)}){more}; {size(free)} free{short_of}"


def sources(costs: Costs) -> list[str]:
    """Where the pace is from, and what is not counted."""
    lines = list(costs.pace.sources)
    if unsure := costs.unsure():
        lines.append(
            f"{' and '.join(unsure)}: RFS is counted without the images that it repeats; `pcb check-data` counts them"
        )
    return lines


def affordable(costs: Costs, budget: float, cheapest: bool, options: str = "") -> str:
    """Which tables a budget of device hours pays for, by which rule, and the command that makes just these."""
    taken, rest = costs.within(budget, cheapest)
    spent = sum(value for _, value in taken)
    order = "the cheapest next" if cheapest else "in the paper's order"
    lines = [
        f"budget  {device_hours(budget)} {costs.device} hours pay for {len(taken)} of {len(costs.targets)} tables and figures, "
        f"{device_hours(spent)} of them;",
        f"        taken {order}, each if what it adds still fits",
    ]
    lines += [
        f"          {target:<9}{'+' + device_hours(value) if value else 'no more':>8}"
        for target, value in taken
    ]
    lines += [
        f"          {target:<9}{'+' + device_hours(value):>8}  does not fit"
        for target, value in rest
    ]
    if rest and spent:
        names = " ".join(target for target, _ in taken if costs.left(costs.needs(target)))
        lines.append(f"        {' '.join(['pcb reproduce', *filter(None, [options]), names])}")
    return "\n".join(lines)


def as_data(costs: Costs, budget: float | None = None, cheapest: bool = False) -> dict:
    """The plan for machines: what `plan` says, as numbers. Hours are device hours; null: not known."""
    left = costs.left(costs.items)
    naive, second, dag = savings(costs)
    out = {
        "scale": costs.study.scale["name"],
        "seeds": list(costs.study.seeds),
        "device": costs.device,
        "devices_per_training": costs.per_training,
        "trainings": [
            {
                "run": job.run,
                "seed": job.seed,
                "trunk": job.trunk,
                "epochs": job.epochs,
                "state": job.state,
                "tables": list(job.tables),
                "hours": costs.items[key_of(job)].hours,
            }
            for job in costs.jobs
        ],
        "tables": by_table(costs),
        "epochs": {"left": costs.epochs(left), "all": dag, "without_trunks": naive + second},
        "hours": costs.hours(left),
        "bytes": costs.bytes(left),
        "pace": costs.pace.sources,
        "epochs_without_repeats": costs.unsure(),
    }
    if budget is not None:
        taken, rest = costs.within(budget, cheapest)
        out["budget"] = {
            "hours": budget,
            "fits": [target for target, _ in taken],
            "does_not_fit": [target for target, _ in rest],
        }
    return out


def budget_hours(text: str) -> float:
    """`100h`, `3d`, `90min` or a plain number of hours. Raises `UserError`."""
    for unit in sorted(HOURS_IN, key=len, reverse=True):
        if text.endswith(unit):
            number, factor = text.removesuffix(unit), HOURS_IN[unit]
            break
    else:
        number, factor = text, 1
    try:
        value = float(number) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{text!r} is no length of time", "write it like 100h, 3d or 90min")
    return value
