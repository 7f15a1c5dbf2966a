"""`pcb plan`: what a run would do and cost, from the results folder alone, as text or JSON.

Where times are not known, the first line says how to measure them.

             trainings       on its own     on top of what is done and of the tables above
           own  shared   epochs   GPU h    trainings   epochs   GPU h     disk
table01      2       0       48     101            2       48     101   3.4 GB
table02     14       2      320     812           14      288     711    21 GB

The text tables are formatted here: `tabulate` has neither a head of two rows nor a total width.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from pcb.errors import UserError
from pcb.formatting import counted, device_hours, duration, short, size
from pcb.planning.costs import Costs, Key, total
from pcb.planning.jobs import Job

WIDTH = 100
HOURS_IN = {"s": 1 / 3600, "min": 1 / 60, "m": 1 / 60, "h": 1, "d": 24}


def plan(
    costs: Costs,
    gpus: int | None = None,
    budget: float | None = None,
    cheapest: bool = False,
    options: str = "",
) -> str:
    """The plan as text of 100 columns.

    Args:
        costs: The costs of the targets.
        gpus: Number of devices that share the work; None: those of one training.
        budget: Device hours, for a list of the tables that fit into them.
        cheapest: Whether the budget is spent on the cheapest table next.
        options: Options with which `pcb` selects the study, for the commands in the text.

    Raises:
        UserError: There is a budget, but the hours are not known.
    """
    paragraphs = [trainings_text(costs), tables_text(costs), summary(costs, gpus)]
    if unknown := without_times(costs, options):
        paragraphs.insert(0, unknown)
    if budget is not None:
        paragraphs.append(budget_text(costs, budget, cheapest, options))
    return "\n\n".join(paragraphs)


def without_times(costs: Costs, options: str) -> str:
    """How to find the times that the plan lacks; empty where it has all."""
    if costs.hours(costs.remaining(costs.items)) is not None:
        return ""
    command = " ".join(filter(None, ["pcb plan --measure", options]))
    assume = ", or assume them with --seconds-per-iteration and --images-per-second"
    lines = (
        f"Hours marked ? are not known yet: `{command}` measures them on this machine"
        f"{assume if costs.gpu else ''}."
    )
    return textwrap.fill(lines, WIDTH, break_on_hyphens=False)


def trainings_text(costs: Costs) -> str:
    """One line for each training: its epochs, device hours, state and tables."""
    lines = [("run", "seed", "epochs", f"{costs.device} h", "state", "tables")]
    for job in costs.jobs:
        name = f"trunk of {job.run}" if job.trunk else job.run
        users = f"shared by {len(job.branches)}" if job.trunk else " ".join(map(short, job.tables))
        hours = device_hours(costs.items[key_of(job)].hours)
        lines.append((name, str(job.seed), str(job.epochs), hours, job.state, users))
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        f"{run:<{width}} {seed:>4} {epochs:>6} {hours:>7}  {state:<7} {users}".rstrip()
        for run, seed, epochs, hours, state, users in lines
    )


def tables_text(costs: Costs) -> str:
    """One line for each table: its cost on its own, and on top of those above it."""
    unit = f"{costs.device} h"
    more = "on top of what is done and of the tables above"
    lines = [
        f"{'':<9}{'trainings':^16}{'on its own':^19}{more:>50}",
        f"{'':<9}{'own':>7}{'shared':>9}{'epochs':>11}{unit:>8}"
        f"{'trainings':>19}{'epochs':>9}{unit:>10}{'disk':>12}",
    ]

    def added(trainings: int, epochs: int, hours: float | None, disk: float | None) -> str:
        return f"{trainings:>19}{epochs:>9,}{device_hours(hours):>10}{size(disk):>12}"

    for row in by_table(costs):
        alone, adds = row["alone"], row["adds"]
        lines.append(
            f"{row['table']:<9}{row['trainings'] - row['shared']:>7}{row['shared']:>9}"
            f"{alone['epochs']:>11,}{device_hours(alone['hours']):>8}"
            + added(adds["trainings"], adds["epochs"], adds["hours"], adds["bytes"])
        )
    rest = costs.remaining(costs.items)
    lines.append(
        f"{'all':<9}{trainings_in(costs.items):>7}{'':>28}"
        + added(trainings_in(rest), costs.epochs(rest), costs.hours(rest), costs.bytes(rest))
    )
    return "\n".join(lines)


def by_table(costs: Costs) -> list[dict]:
    """The cost of each target on its own, and on top of what is done and of those before it."""
    rows, paid = [], list[Key]()
    for target in costs.targets:
        needs = costs.needs(target)
        adds = costs.remaining(needs, paid)
        rows.append(
            {
                "table": target,
                "trainings": trainings_in(needs),
                "shared": trainings_in(set(needs) & set(paid)),
                "alone": {"epochs": costs.epochs(needs), "hours": costs.hours(needs)},
                "adds": {
                    "trainings": trainings_in(adds),
                    "epochs": costs.epochs(adds),
                    "hours": costs.hours(adds),
                    "bytes": costs.bytes(adds),
                },
            }
        )
        paid += needs
    return rows


def key_of(job: Job) -> Key:
    """The key of a training among `Costs.items`."""
    return ("trunk" if job.trunk else "train", job.run, job.seed)


def trainings_in(keys: Iterable[Key]) -> int:
    """Number of trainings, without trunks, among some jobs."""
    return sum(stage == "train" for stage, *_ in keys)


def summary(costs: Costs, gpus: int | None = None) -> str:
    """Epochs, time and disk, and where the timings are from."""
    entries = {
        "epochs": [epochs(costs)],
        "time": [time(costs, gpus)],
        "disk": [disk(costs)],
        "timings": sources(costs),
    }
    lines = []
    for name, texts in entries.items():
        wrapped = [
            line
            for text in texts
            for line in textwrap.wrap(text, WIDTH - 9, subsequent_indent="  ")
        ]
        lines += [f"{name if i == 0 else '':<9}{line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def epochs(costs: Costs) -> str:
    """Epochs that remain, and those that shared trunks save."""
    first, second, trained = epoch_counts(costs)
    per_run = costs.study.schedule["epochs"]
    sum_of = f" ({first:,} = {first // per_run} x {per_run}, and {second} of second stages)"
    return (
        f"{costs.epochs(costs.remaining(costs.items)):,} to train of {trained:,}; "
        f"without shared trunks {first + second:,}{sum_of if second else ''}: "
        f"{first + second - trained:,} saved"
    )


def epoch_counts(costs: Costs) -> tuple[int, int, int]:
    """Epochs of first and of second stages if trunks were not shared, and all if they are."""
    study = costs.study
    runs = [job.run for job in costs.jobs if not job.trunk]
    stages = [s for run in runs for s in study.registry.stages(study.experiments[run].loss)]
    second = sum(stage.epochs or 0 for stage in stages)
    return len(runs) * study.schedule["epochs"], second, costs.epochs(costs.items)


def time(costs: Costs, gpus: int | None = None) -> str:
    """Device hours that remain, and the time that they take on some devices."""
    remaining = costs.remaining(costs.items)
    hours = costs.hours(remaining)
    training = costs.hours([key for key in remaining if key[0] != "infer"])
    if hours is None or training is None:
        return "not known yet; the first line says how to measure it"
    devices = gpus or (costs.per_training if costs.gpu else os.cpu_count() or 1)
    longest = max((costs.items[key].seconds or 0 for key in remaining), default=0)
    elapsed = duration(max(longest, hours * 3600 / devices))
    evaluating = "to detect" if costs.gpu else "to detect and score"
    return (
        f"{device_hours(hours)} {costs.device} hours ({device_hours(training)} to train, "
        f"{device_hours(hours - training)} {evaluating}): "
        f"about {elapsed} on {counted(devices, costs.device)}"
    )


def disk(costs: Costs) -> str:
    """Bytes of what a run would leave, and whether they fit on the disk."""
    remaining = costs.remaining(costs.items)
    folder = costs.study.paths.root
    data = 0.0 if folder.joinpath("data").exists() else costs.data_bytes()
    checkpoints = costs.bytes([key for key in remaining if key[0] != "infer"])
    detections = costs.bytes([key for key in remaining if key[0] == "infer"])
    needed = total([checkpoints, detections, data])
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    parts = [f"data {size(data)}"] if data else []
    parts += [f"checkpoints {size(checkpoints)}", f"detections {size(detections)}"]
    work = costs.work_bytes()
    more = f"; {size(work)} more for each training while it runs" if work and remaining else ""
    fits = needed is None or needed + (work or 0) < free
    return (
        f"{size(needed)} ({', '.join(parts)}){more}; {size(free)} free"
        f"{'' if fits else ': NOT ENOUGH'}"
    )


def sources(costs: Costs) -> list[str]:
    """Where the timings are from, and what is not counted."""
    lines = list(costs.timings.sources)
    if datasets := costs.inexact():
        lines.append(
            f"{' and '.join(datasets)}: RFS is counted without the images that it repeats; "
            "`pcb check-data` counts them"
        )
    return lines


def budget_text(costs: Costs, budget: float, cheapest: bool, options: str) -> str:
    """The tables that fit into a budget, by which rule, and the command that makes just these."""
    chosen, rest = costs.affordable(budget, cheapest)
    spent = sum(hours for _, hours in chosen)
    order = "the cheapest next" if cheapest else "in the paper's order"
    lines = [
        f"budget   {device_hours(budget)} {costs.device} hours pay for {len(chosen)} of "
        f"{len(costs.targets)} tables and figures, which take {device_hours(spent)} of them;",
        f"         chosen {order}, each if what it adds still fits",
    ]
    for target, hours in chosen:
        lines.append(f"           {target:<9}{'+' + device_hours(hours) if hours else 'done':>8}")
    for target, hours in rest:
        lines.append(f"           {target:<9}{'+' + device_hours(hours):>8}  does not fit")
    if rest and spent:
        targets = [target for target, _ in chosen if costs.remaining(costs.needs(target))]
        command = ["pcb reproduce", *([options] if options else []), *targets]
        lines.append(f"         {' '.join(command)}")
    return "\n".join(lines)


def as_data(costs: Costs, budget: float | None = None, cheapest: bool = False) -> dict:
    """The plan as JSON values. Hours are device hours; null means not known.

    Args:
        costs: The costs of the targets.
        budget: Device hours, for a list of the tables that fit into them.
        cheapest: Whether the budget is spent on the cheapest table next.

    Raises:
        UserError: There is a budget, but the hours are not known.
    """
    remaining = costs.remaining(costs.items)
    first, second, trained = epoch_counts(costs)
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
        "epochs": {
            "left": costs.epochs(remaining),
            "all": trained,
            "without_trunks": first + second,
        },
        "hours": costs.hours(remaining),
        "bytes": costs.bytes(remaining),
        "timings": costs.timings.sources,
        "epochs_without_repeats": costs.inexact(),
    }
    if budget is not None:
        chosen, rest = costs.affordable(budget, cheapest)
        out["budget"] = {
            "hours": budget,
            "fits": [target for target, _ in chosen],
            "does_not_fit": [target for target, _ in rest],
        }
    return out


def budget_hours(text: str) -> float:
    """Read a length of time: `100h`, `3d`, `90min`, or a plain number of hours.

    Raises:
        UserError: It is not a length of time.
    """
    units: Sequence[str] = sorted(HOURS_IN, key=len, reverse=True)
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * HOURS_IN.get(unit, 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{text!r} is not a length of time", "write it like 100h, 3d or 90min")
    return value
