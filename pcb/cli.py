"""The command `pcb`: one verb for each stage of the pipeline, as the workflow's rules call it.

Each verb parses its arguments, calls one function and prints; its docstring is its help. It
imports what it needs when it runs, so that `pcb --help` starts at once. Exit status: 2 after a
mistake that the user can fix (two lines, `error:` and `fix:`), 130 after an interrupt. Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import inspect
import io
import os
import re
import select
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, NoReturn

from pcb.errors import UserError, choose, combined
from pcb.files import ROOT, registered, unwritable
from pcb.frequency import THRESHOLDS

if TYPE_CHECKING:
    from pcb.study import Study

STUDY_OPTIONS = ("scale", "paper", "results", "study")
# Verbs that write nothing into the results folder. A run of the workflow waits for the others.
READERS = ("reproduce", "plan", "status", "doctor", "download", "contact-sheet", "export")
# Verbs that only print. Others have not done their work where the output is cut off.
PRINTERS = ("plan", "status", "doctor", "verdict", "compare", "bias")
OTHER_TARGETS = ("all", "train_all", "site", "download")  # rules of the Snakefile, beside the pages


def main(argv: list[str] | None = None) -> int:
    """Run `pcb` with the given arguments, by default the process's own.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):  # a locale without "…" or "Δ" must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return run(argv)
    finally:
        unread()  # else Python would try again when it exits, with a traceback


def run(argv: list[str] | None) -> int:
    """Run one verb; a mistake of the user is printed. Returns the exit status."""
    arguments = parser().parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    arguments.until_end = ExitStack()
    try:
        with arguments.until_end:
            arguments.do(arguments)
        sys.stdout.flush()
    except UserError as error:
        return report(error, options_of(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not unread():  # another pipe, such as that of a worker
            raise
        return 0 if arguments.verb in PRINTERS else 128 + signal.SIGPIPE
    except OSError as error:
        if for_user := unwritable(error):
            return report(for_user)
        raise
    except ImportError as error:
        if for_user := not_installed(error, arguments.verb):
            return report(for_user)
        raise
    return 0


def unread() -> bool:
    """Whether nobody reads the output any more, as in `pcb plan | head`; the rest is discarded."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    try:
        output = sys.stdout.fileno()
    except OSError:  # replaced by a stream in memory
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):  # no POLLERR, no POLLHUP
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def not_installed(error: ImportError, verb: str) -> UserError | None:
    """Return the user's mistake behind a failed import: a package that is not installed.

    Returns:
        The mistake; None if the module belongs to this package, or to one that is installed.
    """
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    name = missing.name if isinstance(missing, ModuleNotFoundError) else None
    if not name or name.partition(".")[0] == "pcb" or "." in name:
        return None
    return UserError(
        f"`pcb {verb}` needs the package {name}, which is not installed for {sys.executable}",
        "run `make setup` in a clone of the repository, which installs all packages, and use the "
        ".venv/bin/pcb there",
    )


def report(error: UserError, options: Sequence[str] = ()) -> int:
    """Print a user's mistake in two lines.

    Args:
        error: The mistake.
        options: Options that select the study. Commands in the error get them too, `snakemake`
            as `--config`, so that they can be copied.

    Returns:
        The exit status.
    """
    lines = [f"error: {error.what}", *([f"fix: {error.fix}"] if error.fix else [])]
    for line in lines:
        print(with_options(line, options), file=sys.stderr)
    return 2


def with_options(text: str, options: Sequence[str]) -> str:
    """Add the options that select the study to the commands in a text."""
    selection = f" {shlex.join(options)}" if options else ""
    given = dict(zip(options[::2], options[1::2], strict=True))
    pairs = [f"{key[2:]}={value}" for key, value in given.items() if key != "--study"]
    config = f" --config {shlex.join(pairs)}" if pairs else ""
    text = re.sub(r"`(pcb [a-z][^`]*)`", lambda match: f"`{match[1]}{selection}`", text)
    if "--study" in given:  # a job of the workflow does not know its `--config`
        own = " with this study's `--config`"
        return re.sub(rf"(`snakemake --cores [^`]*`)(?!{own})", rf"\1{own}", text)
    return re.sub(r"`(snakemake --cores [^`]*)`", lambda match: f"`{match[1]}{config}`", text)


# The verbs -----------------------------------------------------------------------------------


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
    from pcb.cluster.launcher import ranks

    study = load(arguments)
    hardware = study.scale["hardware"]
    gpus = hardware["gpus_per_job"] if installed() else 0  # without a GPU only sizes are measured
    require_gpus(study, gpus)
    with ranks(gpus, hardware["device"], arguments.given):
        from pcb.planning.measure import measure as run

        run(study, arguments.iterations)


def status(arguments: Namespace) -> None:
    """Print the progress of each table, what runs now and when it will be done.

    Reads the results folder only, so it can be used while a run is under way. With --watch it
    prints anew until everything is done, or until Ctrl-C.
    """
    from pcb.planning.status import status as text
    from pcb.planning.status import watch

    if arguments.watch is None:
        print(text(load(arguments)))
    else:
        watch(lambda: load(arguments), arguments.watch)


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


def new_scale(arguments: Namespace) -> None:
    """Write the scale of a data set of your own: a commented YAML file that runs as it is.

    Reads two annotation files in COCO's or LVIS's format and the header of every image; writes
    configs/scale/NAME.yaml and, where no shipped detector fits the images, configs/mmdet/NAME.py.
    Prints how each value was chosen, and the next commands. See docs/own-data.md.
    """
    require_checkout()
    from pcb.cluster.gpus import installed
    from pcb.planning.new_scale import Own, propose, refuse_existing

    given = {key: vars(arguments)[key] for key in Own.__dataclass_fields__}
    if not given["device"]:
        given["device"] = "cuda" if installed() else "cpu"
        why = "a GPU was found" if installed() else "no GPU was found"
        print(f"device     {given['device']}: {why}; --device chooses")
    own = Own(**{key: value for key, value in given.items() if value is not None})
    if not arguments.dry_run:  # not only after minutes of reading
        refuse_existing(own, [own.scale_file], arguments.force)
    proposal = propose(own, lists=not arguments.dry_run)
    if not arguments.dry_run:
        proposal.write(arguments.force)
    print(proposal.report())
    if arguments.dry_run:
        for path, text in proposal.files.items():
            print(f"\n--- {path}, not written\n{text}", end="")
        return
    print(f"\nwritten: {', '.join(map(str, proposal.files))}\nnext:\n{proposal.next_commands()}")


def make_data(arguments: Namespace) -> None:
    """Draw an emoji-LVIS data set.

    Writes images and LVIS annotations to results/SCALE/data/, and its manifest last.
    """
    from pcb.synthetic.generate import generate

    study = load(arguments)
    check("data set", arguments.dataset, [*study.scale["datasets"], "pretrain"])
    generate(study, arguments.dataset)


def download(arguments: Namespace) -> None:
    """Download the public files that a scale needs.

    Writes annotations, images and weights to the paths in the scale's YAML file.
    """
    from pcb.data.download import download as run

    run(load(arguments), arguments.names)


def check_data(arguments: Namespace) -> None:
    """Check data sets before anything trains on them.

    Reads annotations and the header of every image, lists all faults at once, and writes a report.
    With --deep it also decodes every image and compares generated ones with their digests.
    """
    from pcb.data.lvis.check import check as run
    from pcb.data.lvis.federated import LVIS_SAMPLE

    study = load(arguments)
    faults = []
    for dataset in arguments.datasets or study.scale["datasets"]:
        check("data set", dataset, study.scale["datasets"])
        try:
            report = run(study, dataset, arguments.deep)
        except UserError as error:
            faults.append(error)
            continue
        release = report["matches_release"]
        equal = f"equal to the LVIS {release} release" if release else "not a release of LVIS"
        own = study.scale["datasets"][dataset].get("title")
        equal = f"{own}, {groups_text(report)}" if own else equal
        print(f"{dataset}: no faults, {equal}; report in {study.paths.data_check(dataset)}")
        train = report["splits"]["train"]
        if train["unusable"]:
            reasons = ", ".join(f"{reason} ({n:,})" for reason, n in train["reasons"].items())
            print(
                f"  train: {train['unusable']:,} of {train['annotations']:,} annotations are not "
                f"trained on: {reasons}"
            )
        labels = report["splits"]["val"]["federated"]
        if study.scale["datasets"][dataset].get("format") == "coco":
            print("  val: every class counts in every image, by COCO's rule")
        else:
            print(
                f"  val: {labels['negative']:.1f} of {labels['classes']:,} classes an image are "
                f"verified to be absent, {labels['not_exhaustive']:.2f} are not exhaustive "
                f"({LVIS_SAMPLE['negative']:.1f} of {LVIS_SAMPLE['classes']:,} and "
                f"{LVIS_SAMPLE['not_exhaustive']:.2f} in LVIS v0.5)"
            )
        for warning in report["warnings"]:
            print(f"  warning: {warning}")
    if faults:
        raise combined(faults)


def groups_text(report: dict) -> str:
    """The classes of a checked data set by group, with the counts that divide the groups."""
    train = report["splits"]["train"]
    rare, common = train["thresholds"]
    numbers = train["groups"]
    return (
        f"{numbers['r']} rare, {numbers['c']} common and {numbers['f']} frequent classes "
        f"(in at most {rare}, at most {common} and more train images)"
    )


def contact_sheet(arguments: Namespace) -> None:
    """Draw images of a data set with their masks, class names and groups.

    Reads the annotations, writes one PNG.
    """
    from pcb.synthetic.contact_sheet import contact_sheet as draw

    study = load(arguments)
    check("data set", arguments.dataset, study.scale["datasets"])
    files = study.scale["datasets"][arguments.dataset]
    check("split", arguments.split, [s for s in ("train", "val", "dev") if s in files])
    draw(files[arguments.split], files["images"], arguments.out)
    print(arguments.out)


def pretrain(arguments: Namespace) -> None:
    """Provide the weights that a backbone's trainings start from.

    Writes results/SCALE/pretrained/BACKBONE.pth.
    """
    from pcb.cluster.gpus import lease

    study = load(arguments)
    check("backbone", arguments.backbone, study.scale["backbones"])
    trains = study.scale["backbones"][arguments.backbone]["weights"] == "pretrain"
    gpus = min(1, study.scale["hardware"]["gpus_per_job"]) if trains else 0
    require_gpus(study, gpus)
    with lease(gpus):
        from pcb.training.pretrain import pretrain as run

        run(study, arguments.backbone)


def train(arguments: Namespace) -> None:
    """Train one experiment.

    Starts from its trunk if it has one, resumes from its last checkpoint, and writes run.json last.
    """
    from pcb.cluster.launcher import ranks

    study = load(arguments)
    check_run(study, arguments)
    hardware = study.scale["hardware"]
    require_gpus(study, hardware["gpus_per_job"])
    with ranks(hardware["gpus_per_job"], hardware["device"], arguments.given):
        from pcb.training.train import train as run

        run(study, arguments.run, arguments.seed, trunk=arguments.verb == "trunk")


def trunk(arguments: Namespace) -> None:
    """Train the first epochs that several experiments share.

    They end before PCB starts; resumes from its last checkpoint and writes trunk.json last.
    """
    train(arguments)


def infer(arguments: Namespace) -> None:
    """Run a trained detector over the validation images.

    Reads run.json, and confusion-train.npz where a table needs it; writes detections and the
    confusion matrix. With --split, over other images, on which NorCal's hyper-parameter is chosen.
    """
    from pcb.cluster.launcher import ranks

    study = load(arguments)
    check_run(study, arguments)
    hardware = study.scale["hardware"]
    require_gpus(study, hardware["gpus_per_job"])
    with ranks(hardware["gpus_per_job"], hardware["device"], arguments.given, backend="gloo"):
        from pcb.inference.infer import infer as run

        run(study, arguments.run, arguments.seed, split=arguments.split)


def confusion(arguments: Namespace) -> None:
    """Measure a trained detector's confusion matrix on the training images.

    Reads run.json, writes confusion-train.npz, for the variant cm-train.
    """
    from pcb.cluster.launcher import ranks

    study = load(arguments)
    check_run(study, arguments)
    hardware = study.scale["hardware"]
    require_gpus(study, hardware["gpus_per_job"])
    with ranks(hardware["gpus_per_job"], hardware["device"], arguments.given, backend="gloo"):
        from pcb.inference.infer import train_confusion

        train_confusion(study, arguments.run, arguments.seed)


def oracle(arguments: Namespace) -> None:
    """Calibrate a run with statistics of the scored images, and of other images.

    Reads run.json, writes oracle.json: AP on parts of the validation set, each calibrated with its
    own statistics and with those of a part that has no image in common with it.
    """
    from pcb.cluster.gpus import lease

    study = load(arguments)
    check_run(study, arguments)
    with lease(min(1, study.scale["hardware"]["gpus_per_job"])):
        from pcb.inference.oracle import oracle as run

        run(study, arguments.run, arguments.seed)


def score(arguments: Namespace) -> None:
    """Score a run's detections by LVIS's or COCO's rules.

    Reads the detections, writes metrics.json; needs no GPU.
    """
    from pcb.evaluation.score import score as run

    study = load(arguments)
    check_run(study, arguments)
    run(study, arguments.run, arguments.seed, split=arguments.split)


def export(arguments: Namespace) -> None:
    """Write a trained detector as a plain MMDetection config and checkpoint.

    Reads run.json and its checkpoint; writes DEST/config.py, weights.pth, classes.json and a README
    that says what the detector needs and predicts.
    """
    from pcb.inference.export import export as run

    study = load(arguments)
    check_run(study, arguments)
    print(run(study, arguments.run, arguments.seed, arguments.destination, arguments.force))


def gather(arguments: Namespace) -> None:
    """Gather the numbers or pictures of a page.

    Reads its runs' metrics and detections, writes results/SCALE/gathered/TARGET.json.
    """
    from pcb.reporting.gather import gather as run

    study = load(arguments)
    check_targets(study, [arguments.target])
    run(study, arguments.target)


def render(arguments: Namespace) -> None:
    """Render a table, figure or page.

    Reads the gathered file and runs the page's notebook; writes the notebook, HTML and, for a table
    or figure, CSV, Markdown, LaTeX and PNG. Then the index page is written again, at most once a
    minute.
    """
    from pcb.reporting.notebook.render import render as run
    from pcb.reporting.site.build import refresh

    study = load(arguments)
    check_targets(study, [arguments.target])
    run(study, arguments.target)
    if line := refresh(study):
        print(line)


def site(arguments: Namespace) -> None:
    """Write the index page from the results that exist.

    Reads metrics and rendered pages, writes results/SCALE/site/index.html.
    """
    from pcb.reporting.site.build import build

    print(build(load(arguments)))


def publish(arguments: Namespace) -> None:
    """Copy the site to a folder that can be committed or sent.

    Removes this machine's paths; writes DEST/index.html, and DEST/published.json, which lists the
    files of the copy. An earlier copy is replaced; everything else in DEST stays as it is.
    """
    from pcb import formatting
    from pcb.reporting.publish import publish as run
    from pcb.reporting.publish import size

    index = run(load(arguments), arguments.destination)
    print(f"{index}, {formatting.size(size(index.parent))} in all")


def verdict(arguments: Namespace) -> None:
    """Print whether PCB reproduces, where the gain comes from, and on which data.

    The lines follow from the results by a rule. `--write README.md` sets them between the marks of
    that file, which a test compares with the published results.
    """
    from pcb.reporting import findings
    from pcb.reporting import verdict as lines
    from pcb.reporting.results import Results

    study = load(arguments)
    if arguments.published:
        found = lines.of_published(study, arguments.published)
    else:
        results = Results(study)
        found = lines.of_results(results, findings.collect(results)["claims"])
    if arguments.write:
        lines.write_into(arguments.write, found)
    else:
        print(lines.plain(found))


def compare(arguments: Namespace) -> None:
    """Compare two folders of results, by table cell and by claim.

    Takes results folders, published copies or sites. Values are compared on the seeds that both
    have; differences are B − A, with 95 % intervals where there are several seeds or bootstraps.
    Exit status 0 if all is equal within the tolerance, 1 if anything differs, 2 after a mistake.
    """
    import json

    from pcb.reporting import compare as comparing

    found = comparing.compare(arguments.a, arguments.b, arguments.tolerance, arguments.common)
    if arguments.json:
        print(json.dumps(comparing.as_data(found), indent=1))
    else:
        print(comparing.report(found, arguments.all))
    if not found.equal:
        raise SystemExit(1)


def bias(arguments: Namespace) -> None:
    """Measure the pairwise bias of any detector's results: PwB, M_rf, the worst pairs.

    Reads ground truth and detections in COCO or LVIS JSON; needs no checkout.
    """
    from pcb.evaluation import bias as bias_of

    measured = bias_of.measure(
        arguments.gt, arguments.dt, arguments.iou, arguments.train, arguments.thresholds
    )
    if arguments.out:
        bias_of.write(measured, arguments.out, arguments.least)
    print(bias_of.report(measured, arguments.pairs, arguments.least))


# Shared by the verbs --------------------------------------------------------------------------


def load(arguments: Namespace) -> Study:
    """Load the study that `--scale`, `--paper` and `--results`, or `--study`, select."""
    require_checkout()
    from pcb.study import load_study
    from pcb.study.load import notice_of_old_results, notice_of_unused_gpus

    if notice := notice_of_other_checkout(Path.cwd()):
        print(f"note: {notice}", file=sys.stderr)
    options = selected(arguments, default="mini")
    if "study" in options and len(options) > 1:
        raise UserError(
            "--study names a whole study; --scale, --paper and --results cannot change it",
            "leave out --study, or the others",
        )
    overrides = {"results": options["results"]} if "results" in options else None
    if "study" in options:
        study = load_study(options["study"])
    else:
        study = load_study(options["scale"], options.get("paper"), overrides)
        for notice in filter(None, (notice_of_old_results(study), notice_of_unused_gpus(study))):
            print(f"note: {notice}", file=sys.stderr)
    if arguments.verb not in READERS:
        names = (vars(arguments).get(key) for key in ("run", "target", "dataset", "backbone"))
        doing = f"`pcb {' '.join([arguments.verb, *filter(None, names)])}`"
        arguments.until_end.enter_context(registered(study.paths.jobs, doing))
    return study


def require_checkout() -> None:
    """Raise `UserError` where the package is installed without the repository's configs."""
    if not (ROOT / "configs").is_dir():
        raise UserError(
            "the pipeline runs in a checkout of the repository; only the package is installed here",
            "clone the repository and run `make setup` there; "
            "`pcb bias` and `import pcb.mmdet` need no checkout",
        )


def notice_of_other_checkout(cwd: Path) -> str | None:
    """A warning if the working directory is in another checkout than the one that `pcb` runs."""
    for folder in (cwd, *cwd.parents):
        if (folder / "Snakefile").is_file() and (folder / "pcb/cli.py").is_file():
            if folder.resolve() == ROOT:
                return None
            return (
                f"this `pcb` is installed from {ROOT} and reads the configs there, not those of "
                f"{folder}; `python -m pcb` in {folder} runs the latter"
            )
    return None


def selected(arguments: Namespace, default: str | None = None) -> dict[str, str]:
    """The options that select the study, as given; with `default`, the scale if none is named."""
    given = {key: vars(arguments).get(key) for key in STUDY_OPTIONS}
    options = {key: value for key, value in given.items() if value is not None}
    return options if "study" in options or default is None else {"scale": default} | options


def options_of(arguments: Namespace) -> list[str]:
    """The options that select the study, as given on the command line."""
    return [word for key, value in selected(arguments).items() for word in (f"--{key}", value)]


def require_gpus(study: Study, gpus: int) -> None:
    """Stop a job whose environment cannot use GPUs, with the fix that `pcb doctor` prints."""
    if gpus:  # the import is spared on a CPU
        from pcb.doctor.report import require_gpus as require

        require(study, gpus)


def run_separately(command: list[str]) -> None:
    """Run a Python module as a process of its own; exit with its status if it fails."""
    import subprocess

    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if status:
        raise SystemExit(status)


def natural(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return value


def distance(text: str) -> float:
    """A number from 0 on, for argparse."""
    value = float(text)
    if not value >= 0:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def check(what: str, name: str, known: Collection[str]) -> None:
    """Raise `UserError` where `name` is not among the `known` names."""
    if name not in known:
        raise UserError(f"no {what} is called {name!r}", choose(name, known))


def check_run(study: Study, arguments: Namespace) -> None:
    """Check that the study has the experiment and the seed."""
    if arguments.run not in study.experiments:
        raise UserError(
            f"no experiment is called {arguments.run!r}",
            choose(arguments.run, study.experiments, "`pcb plan` lists"),
        )
    if arguments.seed not in study.seeds:
        seeds = ",".join(map(str, [*study.seeds, arguments.seed]))
        options = {"scale": study.scale["name"]} | selected(arguments)
        config = shlex.join(f"{key}={value}" for key, value in options.items())
        raise UserError(
            f"seed {arguments.seed} is not among the study's seeds {list(study.seeds)}",
            f"add it to `seeds` in the scale's YAML file, or run the workflow with it: "
            f"snakemake --cores all --config {config} seeds={seeds}",
        )


def check_targets(study: Study, targets: Collection[str]) -> None:
    """Check that the study has the tables, figures or pages."""
    for target in targets:
        if reason := study.absent(target):
            raise UserError(
                reason, f"choose one of: {', '.join(study.targets)}, or edit the scale's YAML"
            )
        check("table, figure or page", target, study.targets)


# The command line ------------------------------------------------------------------------------


def contents() -> str:
    """The verbs by purpose, each with the first sentence of its docstring."""
    groups: dict[str, tuple[FunctionType, ...]] = {
        "the whole": (reproduce, doctor, plan, measure, status),
        "data": (new_scale, make_data, download, check_data, contact_sheet),
        "one run": (pretrain, trunk, train, infer, confusion, score, oracle, export),
        "pages": (gather, render, site, verdict, publish, compare),
        "any detector": (bias,),
    }
    lines = []
    for title, verbs in groups.items():
        lines += [f"{title}:", *(f"  {name_of(do):<15}{summary(do)}" for do in verbs), ""]
    return "\n".join(lines)


def name_of(do: FunctionType) -> str:
    """The verb of a function: `make-data`."""
    return do.__name__.replace("_", "-")


def summary(do: FunctionType) -> str:
    """The first line of a verb's help, without its full stop."""
    return (inspect.getdoc(do) or "").split("\n")[0].rstrip(".")


class Parser(argparse.ArgumentParser):
    """A parser whose error on a wrong verb names the nearest ones."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        if found := re.search(
            r"argument VERB: invalid choice: '(.*?)' \(choose from (.*)\)", message
        ):
            verb, known = found[1], re.findall(r"[\w-]+", found[2])
            raise SystemExit(report(UserError(f"pcb has no verb {verb!r}", choose(verb, known))))
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line. Imports nothing of the pipeline."""
    top = Parser(
        prog="pcb",
        usage="pcb VERB ...",
        description=(
            "Pairwise Class Balance, from data to tables: the steps that `snakemake` runs, "
            "one by one.\n`pcb VERB --help` describes what a verb reads and writes.\n\n"
        )
        + contents(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(
        dest="verb", required=True, metavar="VERB", prog="pcb", help=argparse.SUPPRESS
    )

    of_scale = Parser(add_help=False)
    of_scale.add_argument(
        "--scale",
        metavar="NAME",
        help="a name under configs/scale/ or a YAML file (default: mini)",
    )
    of_scale.add_argument(
        "--paper",
        metavar="FILE",
        help="a YAML file with your own study, laid over configs/paper.yaml; "
        "see docs/adding-a-row.md",
    )
    of_scale.add_argument(
        "--results",
        metavar="FOLDER",
        help="the folder of all results, with a subfolder SCALE (default: results)",
    )
    of_study = Parser(add_help=False)
    of_study.add_argument(
        "--study",
        metavar="FILE",
        help="the study.json of a results folder, instead of the three options above",
    )

    def verb(do: FunctionType) -> argparse.ArgumentParser:
        shared = {bias: [], compare: [], new_scale: [], reproduce: [of_scale]}.get(
            do, [of_scale, of_study]
        )
        command = verbs.add_parser(name_of(do), description=inspect.getdoc(do), parents=shared)
        command.set_defaults(do=do)
        return command

    command = verb(reproduce)
    command.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables, figures and pages, such as table05, figure1 or gallery; "
        "train_all: every training (default: everything)",
    )
    command.add_argument(
        "--cores", default="all", metavar="N", help="CPU cores to use (default: all)"
    )
    command = verb(plan)
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
    command.add_argument("--json", action="store_true", help="print JSON")
    verb(measure).add_argument(
        "--iterations",
        type=natural,
        default=10,
        metavar="N",
        help="number of timed iterations of each kind of training (default: 10)",
    )
    command = verb(status)
    command.add_argument(
        "--watch",
        nargs="?",
        type=positive,
        const=5.0,
        metavar="SECONDS",
        help="print anew every SECONDS (default: 5) until everything is done",
    )
    command = verb(doctor)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="CHECK", help="run only these checks"
    )
    command.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="check the environment for this device, without a scale",
    )
    command = verb(new_scale)
    command.add_argument("--train", required=True, metavar="JSON", help="annotations to train on")
    command.add_argument("--val", required=True, metavar="JSON", help="annotations to score on")
    command.add_argument(
        "--images", required=True, metavar="FOLDER", help="the images of both, by `file_name`"
    )
    command.add_argument(
        "--dev",
        metavar="JSON",
        help="annotations on which NorCal's hyper-parameter is chosen (default: a part of train)",
    )
    command.add_argument(
        "--name", default="mine", help="name of the scale and of the data set (default: mine)"
    )
    command.add_argument(
        "--title", default="", metavar="TEXT", help="its name on pages (default: --name)"
    )
    command.add_argument(
        "--format",
        choices=["coco", "lvis"],
        help="coco: every class counts in every image; lvis: federated labels, a class counts "
        "only where it was verified (default: what the files show)",
    )
    command.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="cpu: a small detector, to compare methods in minutes; cuda: Mask R-CNN, R50-FPN "
        "(default: cuda where a GPU is found)",
    )
    command.add_argument(
        "--gpus", type=natural, default=1, metavar="N", help="GPUs of a training (default: 1)"
    )
    command.add_argument(
        "--epochs",
        type=natural,
        metavar="N",
        help="epochs, the learning rate drops in proportion (default: by the size of the data)",
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="ImageNet weights of ResNet-50, on cuda (default: what `pcb download` fetches)",
    )
    command.add_argument(
        "--out", metavar="YAML", help="the file to write (default: configs/scale/NAME.yaml)"
    )
    command.add_argument("--force", action="store_true", help="replace files of an earlier call")
    command.add_argument("--dry-run", action="store_true", help="print the files, write nothing")
    verb(make_data).add_argument(
        "dataset", help="a data set of the scale, such as v05, or pretrain"
    )
    verb(download).add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="names in configs/downloads.yaml (default: all that the scale needs)",
    )
    command = verb(check_data)
    command.add_argument(
        "datasets", nargs="*", metavar="DATASET", help="data sets of the scale (default: all)"
    )
    command.add_argument(
        "--deep",
        action="store_true",
        help="read and decode every image file again, also those that look unchanged",
    )
    command = verb(contact_sheet)
    command.add_argument("dataset", help="a data set of the scale, such as v05")
    command.add_argument("--split", default="train", help="train (default), val or dev")
    command.add_argument("--out", default="contact-sheet.png", metavar="PNG")
    verb(pretrain).add_argument("backbone", help="a backbone of the scale, such as r50")
    for do in (trunk, train, infer, confusion, score, oracle, export):
        command = verb(do)
        command.add_argument("run", help="the id of an experiment, as `pcb plan` lists it")
        if do is export:
            command.add_argument("destination", metavar="DEST", help="the folder to write")
            command.add_argument(
                "--force", action="store_true", help="replace the files of an earlier export"
            )
        command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
        if do in (infer, score):
            command.add_argument(
                "--split",
                default="val",
                choices=["val", "dev", "train-subset"],
                help="val (default), dev or train-subset, a fixed sample of the training images",
            )
    for do in (gather, render):
        verb(do).add_argument("target", help="a table, figure or page, such as table05")
    verb(site)
    command = verb(verdict)
    command.add_argument(
        "--published",
        type=Path,
        metavar="DIR",
        help="of a copy that `pcb publish` wrote, such as results/published/mini",
    )
    command.add_argument(
        "--write", type=Path, metavar="FILE", help="a Markdown file with the marks of a verdict"
    )
    verb(publish).add_argument(
        "destination", metavar="DEST", help="a folder that does not exist yet, or an earlier copy"
    )
    command = verb(compare)
    command.add_argument("a", metavar="A", help="a results folder, such as results/mini, or a site")
    command.add_argument("b", metavar="B", help="another, such as results/published/mini")
    command.add_argument(
        "--tolerance",
        type=distance,
        default=0.05,
        metavar="POINTS",
        help="values up to this far apart are equal (default: 0.05, half of the last digit)",
    )
    command.add_argument(
        "--common",
        action="store_true",
        help="leave out what only one side has; with different seeds the claims too",
    )
    command.add_argument("--all", action="store_true", help="list all differences")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = verb(bias)
    command.add_argument("--gt", required=True, metavar="JSON", help="annotations")
    command.add_argument(
        "--dt",
        required=True,
        metavar="JSON",
        help="detections: [{image_id, category_id, bbox, score}, ...]",
    )
    command.add_argument(
        "--iou", choices=["bbox", "segm"], default="bbox", help="match boxes (default) or masks"
    )
    command.add_argument(
        "--train",
        metavar="JSON",
        help="annotations whose image counts decide r, c and f (default: the categories' own)",
    )
    command.add_argument(
        "--thresholds",
        type=natural,
        nargs=2,
        default=THRESHOLDS,
        metavar=("R", "C"),
        help="most images of a rare and of a common class (default: 10 100), as in a scale",
    )
    command.add_argument(
        "--pairs",
        type=natural,
        default=20,
        metavar="N",
        help="number of printed pairs (default: 20)",
    )
    command.add_argument(
        "--least",
        type=natural,
        default=1,
        metavar="N",
        help="pairs of classes with at least N matched objects (default: 1)",
    )
    command.add_argument("--out", metavar="FILE", help="everything as .json, or all pairs as .csv")
    return top


if __name__ == "__main__":
    raise SystemExit(main())
