"""Verbs about the whole: `reproduce`, `doctor`, `plan`, `measure`, `status`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from argparse import Namespace

from pcb.cli.arguments import Verbs, add_json, cores, interval, natural, positive
from pcb.cli.devices import on_gpus
from pcb.cli.errors import report, with_options
from pcb.cli.selection import check, check_targets, load, options_of, selected
from pcb.errors import UserError
from pcb.files import ROOT

OTHER_TARGETS = ("all", "train_all", "site", "download")  # rules of the Snakefile, beside the pages


def reproduce(arguments: Namespace) -> None:
    """Run the whole pipeline, or what the named targets need.

    Replaces this process by `snakemake` and keeps its exit status; prints one line per job.
    Finished work is not repeated.
    """
    study = load(arguments)
    check_targets(study, [t for t in arguments.targets if t not in OTHER_TARGETS])
    config = [f"{key}={value}" for key, value in selected(arguments, default="mini").items()]
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", arguments.cores]
    command += ["--config", *config, "--", *arguments.targets]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *command])


def doctor(arguments: Namespace) -> None:
    """Check this machine, the environment and the data; print the fix of each problem.

    Takes seconds to a minute and changes nothing. Exit status 1 if anything is an error. With
    --only and --device it reads no scale.
    """
    import json
    from dataclasses import replace

    from pcb.doctor import report as doctor

    if arguments.device:
        machine = doctor.Machine(arguments.device == "cuda")
    else:
        machine = doctor.of_study(load(arguments))
    for name in arguments.only:
        check("check", name, [*doctor.ENVIRONMENT, *doctor.STUDY])
    options = options_of(arguments)
    findings = [
        replace(finding, fix=with_options(finding.fix, options))
        for finding in doctor.diagnose(machine, arguments.only)
    ]
    if arguments.json:
        print(json.dumps(doctor.as_data(findings), indent=1))
    else:
        print(doctor.text(findings))
    if doctor.as_data(findings)["errors"]:
        raise SystemExit(1)


def plan(arguments: Namespace) -> None:
    """Print what a run would do and what it would cost, and run nothing.

    Reads the results folder: which trainings are done, how many epochs, device hours and bytes the
    others take. The times come from finished trainings, else from `pcb measure`, else from the two
    options below.
    """
    import json

    from pcb.planning import plan as plans
    from pcb.planning.costs import Costs
    from pcb.planning.timings import Timings

    study = load(arguments)
    check_targets(study, arguments.targets)
    options = options_of(arguments)
    if arguments.measure:
        run_separately(["pcb", "measure", *options])
    assumed = {}
    if arguments.seconds_per_iteration:
        assumed["iteration"] = arguments.seconds_per_iteration
    if arguments.images_per_second:
        assumed["image"] = 1 / arguments.images_per_second
    costs = Costs(study, Timings.of(study, assumed), arguments.targets)
    budget = None
    if arguments.budget:
        budget = plans.budget_hours(arguments.budget) * (arguments.gpus or 1)
    if arguments.json:
        print(json.dumps(plans.as_data(costs, budget, arguments.cheapest), indent=1))
    else:
        print(plans.plan(costs, arguments.gpus, budget, arguments.cheapest, shlex.join(options)))


def measure(arguments: Namespace) -> None:
    """Time a few iterations and a batch of detections of each kind of training.

    Writes results/SCALE/timings.json, which `pcb plan` reads.
    """
    from pcb.cluster.gpus import installed

    study = load(arguments)
    gpus = None if installed() else 0  # without a GPU only sizes are measured
    with on_gpus(study, arguments, gpus):
        from pcb.planning.measure import measure as run

        run(study, arguments.iterations)


def status(arguments: Namespace) -> None:
    """Print the progress of each table, what runs now and when it will be done.

    Reads the results folder only, so it can be used while a run is under way. With --watch it
    prints anew until everything is done, or until Ctrl-C; an error of a file that changes
    meanwhile is printed in its place.
    """
    from pcb.planning.status import status as text
    from pcb.planning.status import watch

    study = load(arguments)  # a wrong option ends the watch, too
    if arguments.watch is None:
        print(text(study))
        return
    while True:
        try:
            watch(lambda: load(arguments), arguments.watch)
            return
        except UserError as error:
            report(error, options_of(arguments))
            time.sleep(arguments.watch)


def run_separately(command: list[str]) -> None:
    """Run a Python module as a process of its own; exit with its status if it fails."""
    import subprocess

    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if status:
        raise SystemExit(status)


VERBS = (reproduce, doctor, plan, measure, status)


def add_to(verbs: Verbs) -> None:
    """Add the verbs and their arguments."""
    command = verbs.add(reproduce, study=False)
    command.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables, figures and pages, such as table05, figure1 or gallery; "
        "train_all: every training (default: everything)",
    )
    command.add_argument(
        "--cores", type=cores, default="all", metavar="N", help="CPU cores to use (default: all)"
    )
    command = verbs.add(plan)
    command.add_argument(
        "targets", nargs="*", metavar="TARGET", help="tables and figures (default: all)"
    )
    command.add_argument(
        "--gpus",
        type=natural,
        metavar="N",
        help="number of devices that share the work (default: those of one training)",
    )
    command.add_argument(
        "--budget",
        metavar="100h",
        help="list the tables that fit into this many device hours, or, with --gpus, into this "
        "much time on those devices",
    )
    command.add_argument(
        "--cheapest",
        action="store_true",
        help="spend the budget on the cheapest table next, not in the paper's order",
    )
    command.add_argument(
        "--measure", action="store_true", help="run `pcb measure` first, on this machine"
    )
    command.add_argument(
        "--seconds-per-iteration", type=positive, metavar="S", help="assume it for every training"
    )
    command.add_argument(
        "--images-per-second",
        type=positive,
        metavar="N",
        help="assume this speed of detection on one device",
    )
    add_json(command)
    verbs.add(measure).add_argument(
        "--iterations",
        type=natural,
        default=10,
        metavar="N",
        help="number of timed iterations of each kind of training (default: 10)",
    )
    command = verbs.add(status)
    command.add_argument(
        "--watch",
        nargs="?",
        type=interval,
        const=5.0,
        metavar="SECONDS",
        help="print anew every SECONDS (default: 5) until everything is done",
    )
    command = verbs.add(doctor)
    add_json(command)
    command.add_argument(
        "--only", nargs="+", default=[], metavar="CHECK", help="run only these checks"
    )
    command.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="check the environment for this device, without a scale",
    )
