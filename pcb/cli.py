"""The command `pcb`: one verb per stage of the pipeline, what the workflow's rules call and what a person calls by hand.

Thin: it parses, calls one function and prints. A mistake that the user can mend ends as two lines, `error:` and `fix:`, and
status 2; an interrupt as status 130; anything else keeps its traceback, for it is a bug. Each verb imports only what it needs.
"""

from __future__ import annotations

import argparse
import os
import sys

from pcb.errors import UserError


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        arguments.do(arguments)
    except UserError as error:
        print(f"error: {error.what}", file=sys.stderr)
        if error.fix:
            print(f"fix: {error.fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pcb plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def study(arguments):
    from pcb.study import load_study

    return load_study(arguments.study or arguments.scale)


def make_data(arguments):
    from pcb.data.emoji import generate

    generate(study(arguments), arguments.dataset)


def check_data(arguments):
    from pcb.data.check import check

    loaded = study(arguments)
    faults = []
    for dataset in arguments.datasets or loaded.scale["datasets"]:
        try:
            check(loaded, dataset)
            print(f"{dataset}: in order; report in {loaded.paths.data_check(dataset)}")
        except UserError as error:
            faults.append(error)
    if faults:
        raise UserError("\n".join(fault.what for fault in faults), "\n".join(dict.fromkeys(fault.fix for fault in faults)))


def contact_sheet(arguments):
    from pcb.data.sheet import contact_sheet as draw

    loaded = study(arguments)
    files = loaded.scale["datasets"].get(arguments.dataset)
    if not files or not files.get(arguments.split):
        known = ", ".join(f"{dataset} {split}" for dataset, spec in loaded.scale["datasets"].items() for split in ("train", "val", "dev") if split in spec)
        raise UserError(f"scale {loaded.scale['name']!r} has no {arguments.dataset} {arguments.split}", f"choose one of: {known}")
    draw(files[arguments.split], files["images"], arguments.out)
    print(arguments.out)


def pretrain(arguments):
    from pcb.engine.gpus import lease

    loaded = study(arguments)
    with lease(min(1, loaded.scale["hardware"]["gpus_per_job"])):
        from pcb.engine.pretrain import pretrain as run

        run(loaded, arguments.backbone)


def train(arguments):
    from pcb.engine.gpus import lease

    loaded = study(arguments)
    known(loaded, arguments)
    with lease(loaded.scale["hardware"]["gpus_per_job"]):
        from pcb.engine.train import train as run

        run(loaded, arguments.run, arguments.seed, trunk=arguments.verb == "trunk")


def infer(arguments):
    from pcb.engine.gpus import lease

    loaded = study(arguments)
    known(loaded, arguments)
    with lease(min(1, loaded.scale["hardware"]["gpus_per_job"])):
        from pcb.engine.infer import infer as run

        run(loaded, arguments.run, arguments.seed, split=arguments.split)


def score(arguments):
    from pcb.engine.score import score as run

    loaded = study(arguments)
    known(loaded, arguments)
    run(loaded, arguments.run, arguments.seed)


def gather(arguments):
    from pcb.reporting.gather import gather as run

    run(study(arguments), arguments.target)


def render(arguments):
    from pcb.reporting.render import render as run

    run(study(arguments), arguments.target)


def index(arguments):
    from pcb.reporting.site import build

    print(build(study(arguments)))


def plan(arguments):
    from pcb.study.plan import plan as text

    print(text(study(arguments), arguments.targets))


def status(arguments):
    from pcb.study.plan import status as text

    print(text(study(arguments)))


def reproduce(arguments):
    """Become Snakemake: its Ctrl-C, its exit code, its progress."""
    command = [sys.executable, "-m", "snakemake", "--cores", arguments.cores, "--config", f"scale={arguments.scale}", "--", *arguments.targets]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def known(loaded, arguments):
    """A run's name must be one of the paper's, and its seed one of the study's."""
    if arguments.run not in loaded.experiments:
        raise UserError(f"no experiment is called {arguments.run!r}", "see `pcb plan`, or configs/paper.yaml, for the names")
    if arguments.seed not in loaded.seeds:
        raise UserError(f"seed {arguments.seed} is not among the study's seeds {list(loaded.seeds)}", 'add it: --config seeds=0,1')


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pcb", description="Pairwise Class Balance, from data to tables. The workflow (`snakemake`) calls these "
                                  "verbs in order; each can be called by hand.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, do, text):
        command = verbs.add_parser(name, help=text.split(".")[0], description=text)
        command.set_defaults(do=do)
        which = command.add_mutually_exclusive_group()
        which.add_argument("--study", metavar="FILE", help="study.json of a results folder, as the workflow wrote it")
        which.add_argument("--scale", default="mini", metavar="NAME", help="a name under configs/scale/ or a YAML file (default: mini)")
        return command

    def run_verb(name, do, text):
        command = verb(name, do, text)
        command.add_argument("run", help="id of an experiment in configs/paper.yaml")
        command.add_argument("--seed", type=int, default=0)
        return command

    reproduce_ = verb("reproduce", reproduce, "Make everything, or the named targets. Runs snakemake, shows one line per job, ends with where to look.")
    reproduce_.add_argument("targets", nargs="*", help="table01 … table11, figure1, train_all (default: everything)")
    reproduce_.add_argument("--cores", default="all")
    plan_ = verb("plan", plan, "Say what a run would do, and do nothing. Per table: trainings, epochs saved by shared trunks. Reads the results folder.")
    plan_.add_argument("targets", nargs="*", help="tables and figures (default: all)")
    verb("status", status, "Say what is done, what runs and how long the rest may take. Reads the results folder, also while it is being filled.")

    command = verb("make-data", make_data, "Draw an emoji-LVIS data set. Writes images and LVIS annotations below results/SCALE/data/, its manifest last.")
    command.add_argument("dataset", choices=["v05", "v1", "pretrain"])
    command = verb("check-data", check_data, "Check data sets before anything trains on them. Reads annotations, counts, image files; lists all that is "
                   "wrong at once. Writes results/SCALE/data/DATASET.check.json.")
    command.add_argument("datasets", nargs="*", help="v05, v1 (default: both)")
    command = verb("contact-sheet", contact_sheet, "Draw images of a data set with their masks, names and r/c/f. Reads its annotations, writes one PNG.")
    command.add_argument("dataset")
    command.add_argument("--split", default="train", choices=["train", "val", "dev"])
    command.add_argument("--out", default="contact-sheet.png", metavar="PNG")
    command = verb("pretrain", pretrain, "Provide the weights that a backbone's trainings start from. Writes results/SCALE/pretrained/BACKBONE.pth.")
    command.add_argument("backbone", choices=["r50", "r101"])

    run_verb("trunk", train, "Train a shared trunk, up to the last epoch before PCB starts. Writes the run's trunk.json; continues what was cut off.")
    run_verb("train", train, "Train one experiment. Starts from its trunk if it has one, continues what was cut off, writes the run's run.json last.")
    command = run_verb("infer", infer, "Run a trained detector over the validation images. Reads run.json; writes shards of detections, the confusion matrix "
                       "and, last, detections.json.")
    command.add_argument("--split", default="val", choices=["val", "dev"])
    run_verb("score", score, "Score a run's detections by LVIS's rules. Reads the shards, writes metrics.json. Needs no GPU.")

    verb("index", index, "Write the index page of a results folder, from whatever exists in it: results/SCALE/index.html.")
    for name, do, text in (
        ("gather", gather, "Gather a table's rows, ours beside the paper's. Reads metrics.json of its runs, writes results/SCALE/gathered/TARGET.csv."),
        ("render", render, "Render a table or figure. Reads the gathered CSV, runs notebooks/TARGET.ipynb; writes notebook, HTML, CSV, Markdown, LaTeX."),
    ):
        verb(name, do, text).add_argument("target", help="table01 … table11, figure1")
    return top


if __name__ == "__main__":
    raise SystemExit(main())
