"""The command `pcb`: one verb per stage of the pipeline, what the workflow's rules call and what a person calls by hand.

Thin: it parses, calls one function and prints. A mistake that the user can mend ends as two lines, `error:` and `fix:`, and
status 2; an interrupt as status 130; anything else keeps its traceback, for it is a bug. Each verb imports only what it needs,
and its docstring is its help.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT, locked, unwritable


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    try:
        arguments.do(arguments)
    except UserError as error:
        return tell(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pcb plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if told := unwritable(error):
            return tell(told)
        raise
    return 0


def tell(error: UserError) -> int:
    """Two lines, and the exit status of a user's mistake."""
    print(f"error: {error.what}", file=sys.stderr)
    if error.fix:
        print(f"fix: {error.fix}", file=sys.stderr)
    return 2


# The verbs -------------------------------------------------------------------------------------------------------------


def reproduce(arguments):
    """Make everything, or the named targets. Becomes snakemake: its Ctrl-C, its exit status; one line per job."""
    loaded = study(arguments)
    known_targets(loaded, set(arguments.targets) - {"all", "train_all"})
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", arguments.cores]
    command += ["--config", f"scale={arguments.scale}"]
    with locked(loaded.paths.lock, "these results"):
        pass
    if left_locked(loaded.paths.root.parent):
        print(
            "an earlier run was killed and left this folder locked; nothing else runs here: unlocking it",
            flush=True,
        )
        again([*command, "--unlock"])
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *command, "--", *arguments.targets])


def plan(arguments):
    """Say what a run would do and cost, and do nothing. Reads the results folder: what is done, what is left, what trunks save, hours,
    disk. Hours come from finished trainings, else from what `--measure` (or `pcb measure`) found, else from the two paces given."""
    import json

    from pcb.planning.costs import Costs
    from pcb.planning.plan import as_data, budget_hours
    from pcb.planning.plan import plan as text
    from pcb.planning.timings import Pace

    loaded = study(arguments)
    known_targets(loaded, arguments.targets)
    if arguments.measure:
        again(
            [
                "pcb",
                "measure",
                *(
                    ["--study", arguments.study]
                    if arguments.study
                    else ["--scale", arguments.scale]
                ),
            ]
        )
    assumed = {
        "iteration": arguments.seconds_per_iteration,
        "image": arguments.images_per_second and 1 / arguments.images_per_second,
    }
    costs = Costs(
        loaded,
        Pace.of(loaded, {what: value for what, value in assumed.items() if value}),
        arguments.targets,
    )
    budget = arguments.budget and budget_hours(arguments.budget) * (arguments.gpus or 1)
    if arguments.json:
        print(json.dumps(as_data(costs, budget, arguments.cheapest), indent=1))
    else:
        print(text(costs, arguments.gpus, budget, arguments.cheapest))


def measure(arguments):
    """Time a few iterations and a batch of detections of each kind of training. Writes results/SCALE/pace.json for `pcb plan`."""
    from pcb.cluster.gpus import installed
    from pcb.cluster.torchrun import ranks

    loaded = study(arguments)
    hardware = loaded.scale["hardware"]
    gpus = hardware["gpus_per_job"] if installed() else 0
    with ranks(gpus, hardware["device"], arguments.given):
        from pcb.planning.measure import measure as run

        run(loaded, arguments.iterations)


def status(arguments):
    """Say how far each table is, what runs and how long the rest may take. Reads the results folder, also of a run under way."""
    from pcb.planning.status import status as text

    print(text(study(arguments)))


def make_data(arguments):
    """Draw an emoji-LVIS data set. Writes images and LVIS annotations below results/SCALE/data/, its manifest last."""
    from pcb.synthetic.generate import generate

    generate(study(arguments), arguments.dataset)


def download(arguments):
    """Fetch what the public offers of the scale's annotations, images and weights. Writes to where its YAML expects them."""
    from pcb.data.download import download as run

    run(study(arguments), arguments.names)


def check_data(arguments):
    """Check data sets before anything trains on them. Reads annotations and images, lists all faults at once, writes a report."""
    from pcb.data.lvis.check import check

    loaded = study(arguments)
    faults = []
    for dataset in arguments.datasets or loaded.scale["datasets"]:
        try:
            check(loaded, dataset)
            print(f"{dataset}: in order; report in {loaded.paths.data_check(dataset)}")
        except UserError as error:
            faults.append(error)
    if faults:
        raise UserError(
            "\n".join(fault.what for fault in faults),
            "\n".join(dict.fromkeys(fault.fix for fault in faults)),
        )


def contact_sheet(arguments):
    """Draw images of a data set with their masks, names and r/c/f. Reads its annotations, writes one PNG."""
    from pcb.synthetic.contact_sheet import contact_sheet as draw

    files = study(arguments).scale["datasets"][arguments.dataset]
    if arguments.split not in files:
        splits = ", ".join(split for split in ("train", "val", "dev") if split in files)
        raise UserError(
            f"the scale names no split {arguments.split!r} for {arguments.dataset}",
            f"choose one of: {splits}",
        )
    draw(files[arguments.split], files["images"], arguments.out)
    print(arguments.out)


def pretrain(arguments):
    """Provide the weights that a backbone's trainings start from. Writes results/SCALE/pretrained/BACKBONE.pth."""
    from pcb.cluster.gpus import lease

    loaded = study(arguments)
    trains = loaded.scale["backbones"][arguments.backbone]["weights"] == "pretrain"
    with lease(min(1, loaded.scale["hardware"]["gpus_per_job"]) if trains else 0):
        from pcb.training.pretrain import pretrain as run

        run(loaded, arguments.backbone)


def train(arguments):
    """Train one experiment. Starts from its trunk if it has one, continues what was cut off, writes the run's run.json last."""
    from pcb.cluster.torchrun import ranks

    loaded = study(arguments)
    known_run(loaded, arguments)
    hardware = loaded.scale["hardware"]
    with ranks(hardware["gpus_per_job"], hardware["device"], arguments.given):
        from pcb.training.train import train as run

        run(loaded, arguments.run, arguments.seed, trunk=arguments.verb == "trunk")


def trunk(arguments):
    """Train a shared trunk, up to the last epoch before PCB starts. Continues what was cut off, writes trunk.json last."""
    train(arguments)


def infer(arguments):
    """Run a trained detector over the validation images. Reads run.json; writes detections and the confusion matrix."""
    from pcb.cluster.gpus import lease

    loaded = study(arguments)
    known_run(loaded, arguments)
    with lease(min(1, loaded.scale["hardware"]["gpus_per_job"])):
        from pcb.inference.infer import infer as run

        run(loaded, arguments.run, arguments.seed, split=arguments.split)


def score(arguments):
    """Score a run's detections by LVIS's rules. Reads the detections, writes metrics.json. Needs no GPU."""
    from pcb.evaluation.score import score as run

    loaded = study(arguments)
    known_run(loaded, arguments)
    run(loaded, arguments.run, arguments.seed, split=arguments.split)


def gather(arguments):
    """Gather a table's rows, ours beside the paper's. Reads its runs' metrics.json, writes results/SCALE/gathered/TARGET.csv."""
    from pcb.reporting.gather import gather as run

    run(study(arguments), arguments.target)


def render(arguments):
    """Render a table or figure. Reads the gathered CSV, runs notebooks/TARGET.ipynb, writes notebook, HTML, CSV, Markdown, LaTeX."""
    from pcb.reporting.notebook.render import render as run

    run(study(arguments), arguments.target)


def site(arguments):
    """Write results/SCALE/site/index.html from whatever exists. Reads metrics and rendered pages."""
    from pcb.reporting.site.build import build

    print(build(study(arguments)))


def publish(arguments):
    """Copy a results folder's site, in small and without paths of this machine, to commit or to send. Writes DEST/index.html."""
    from pcb.reporting.publish import publish as run
    from pcb.reporting.publish import size

    index = run(study(arguments), arguments.destination)
    print(f"{index}, {size(index.parent) / 2**20:.1f} MiB in all")


def bias(arguments):
    """Report the pairwise bias of anybody's detections: PwB, M_rf, the worst pairs. Reads ground truth and results in COCO or LVIS JSON."""
    from pcb.evaluation.bias import measure, report, write

    found = measure(arguments.gt, arguments.dt, arguments.iou, arguments.train)
    print(report(found, arguments.pairs, arguments.least))
    if arguments.out:
        write(found, arguments.out, arguments.least)


# What they share -------------------------------------------------------------------------------------------------------


def study(arguments):
    if not (ROOT / "configs").is_dir():
        raise UserError(
            "the pipeline runs in a checkout of the repository; here only the package is installed",
            "clone the repository and run `make setup` there; `pcb bias` and `import pcb.mmdet` need no checkout",
        )
    from pcb.study import load_study

    return load_study(arguments.study or arguments.scale)


def left_locked(results):
    """Whether Snakemake's locks lie here, and no run of any scale lives that could have made them."""
    if not any(Path(".snakemake/locks").glob("*.lock")):
        return False
    try:
        with ExitStack() as each:
            for lock in results.glob("*/.lock"):
                each.enter_context(locked(lock, "these results"))
    except UserError:
        return False
    return True


def again(command):
    """Another program in a process of its own. Its failure is ours."""
    import subprocess

    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if status:
        raise SystemExit(status)


def positive(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def known_run(loaded, arguments):
    """A run's name must be one of the paper's, and its seed one of the study's."""
    if arguments.run not in loaded.experiments:
        raise UserError(
            f"no experiment is called {arguments.run!r}",
            "see `pcb plan`, or configs/paper.yaml, for the names",
        )
    if arguments.seed not in loaded.seeds:
        raise UserError(
            f"seed {arguments.seed} is not among the study's seeds {list(loaded.seeds)}",
            f"add it: snakemake --config seeds={','.join(map(str, [*loaded.seeds, arguments.seed]))}",
        )


def known_targets(loaded, targets):
    for target in targets:
        if target not in loaded.targets:
            raise UserError(
                f"no table, figure or page is called {target!r}",
                f"choose one of: {', '.join(loaded.targets)}",
            )


def contents() -> str:
    """The verbs by what they are for, each with the first sentence of its docstring."""
    groups = {
        "the whole": (reproduce, plan, measure, status),
        "data": (make_data, download, check_data, contact_sheet),
        "one run": (pretrain, trunk, train, infer, score),
        "pages": (gather, render, site, publish),
        "anybody's detections": (bias,),
    }
    return "\n".join(
        f"{title}:\n"
        + "".join(
            textwrap.fill(
                inspect.getdoc(do).split(". ")[0].rstrip("."),
                100,
                initial_indent=f"  {do.__name__.replace('_', '-'):<15}",
                subsequent_indent=" " * 17,
            )
            + "\n"
            for do in verbs
        )
        for title, verbs in groups.items()
    )


def parser() -> argparse.ArgumentParser:
    about = (
        "Pairwise Class Balance, from data to tables: the steps that `snakemake` runs, each by hand.\n"
        "`pcb VERB --help` says what it reads and writes."
    )
    top = argparse.ArgumentParser(
        prog="pcb",
        usage="pcb VERB ...",
        description=f"{about}\n\n{contents()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(
        dest="verb", required=True, metavar="VERB", prog="pcb", help=argparse.SUPPRESS
    )

    def verb(do):
        command = verbs.add_parser(do.__name__.replace("_", "-"), description=inspect.getdoc(do))
        command.set_defaults(do=do, study=None)
        if do is bias:
            return command
        which = command.add_mutually_exclusive_group()
        which.add_argument(
            "--scale",
            default="mini",
            metavar="NAME",
            help="a name under configs/scale/ or a YAML file (default: mini)",
        )
        if do is not reproduce:
            which.add_argument(
                "--study",
                metavar="FILE",
                help="study.json of a results folder, as the workflow wrote it",
            )
        return command

    command = verb(reproduce)
    command.add_argument(
        "targets", nargs="*", help="table01 … table11, figure1, train_all (default: everything)"
    )
    command.add_argument("--cores", default="all")
    command = verb(plan)
    command.add_argument("targets", nargs="*", help="tables and figures (default: all)")
    command.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="spread the hours over so many devices (default: those of one training)",
    )
    command.add_argument(
        "--budget",
        metavar="100h",
        help="say which tables that pays for: device hours, or with --gpus by the clock",
    )
    command.add_argument(
        "--cheapest",
        action="store_true",
        help="spend the budget on the cheapest table next, not in the paper's order",
    )
    command.add_argument("--measure", action="store_true", help="measure this machine's pace first")
    command.add_argument(
        "--seconds-per-iteration", type=positive, metavar="S", help="assume this of every training"
    )
    command.add_argument(
        "--images-per-second",
        type=positive,
        metavar="N",
        help="assume that one device detects on so many",
    )
    command.add_argument("--json", action="store_true", help="for machines")
    verb(measure).add_argument(
        "--iterations",
        type=int,
        default=10,
        metavar="N",
        help="timed in each kind of training (default: 10)",
    )
    verb(status)
    verb(make_data).add_argument("dataset", choices=["v05", "v1", "pretrain"])
    verb(download).add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="of configs/downloads.yaml (default: all that the scale needs)",
    )
    verb(check_data).add_argument("datasets", nargs="*", metavar="v05|v1", help="default: both")
    command = verb(contact_sheet)
    command.add_argument("dataset", choices=["v05", "v1"])
    command.add_argument("--split", default="train", choices=["train", "val", "dev"])
    command.add_argument("--out", default="contact-sheet.png", metavar="PNG")
    verb(pretrain).add_argument("backbone", choices=["r50", "r101"])
    for do in (trunk, train, infer, score):
        command = verb(do)
        command.add_argument("run", help="id of an experiment in configs/paper.yaml")
        command.add_argument("--seed", type=int, default=0)
        if do in (infer, score):
            command.add_argument("--split", default="val", choices=["val", "dev"])
    for do in (gather, render):
        verb(do).add_argument("target", help="table01 … table11, figure1, gallery, pairs")
    verb(site)
    verb(publish).add_argument(
        "destination", metavar="DEST", help="a folder that does not exist yet, or an earlier copy"
    )
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
        "--pairs", type=int, default=20, metavar="N", help="how many pairs to print (default: 20)"
    )
    command.add_argument(
        "--least",
        type=int,
        default=1,
        metavar="N",
        help="pairs of classes with at least N matched objects (default: 1)",
    )
    command.add_argument("--out", metavar="FILE", help="everything as .json, or all pairs as .csv")
    return top


if __name__ == "__main__":
    raise SystemExit(main())
