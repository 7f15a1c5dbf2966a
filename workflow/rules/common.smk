# Shared by all rules: the study, how a job calls `pcb`, and functions for inputs, params and
# messages. Paths of results come from pcb.study.paths.
import atexit
import os
import re
import shlex
import signal
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from pcb.errors import UserError
from pcb.files import locked, sweep, working
from pcb.formatting import number
from pcb.planning.jobs import discard, epochs_to_train, targets_in_order
from pcb.planning.stale import Stale
from pcb.planning.status import overview
from pcb.reporting.current import (
    DOCUMENTS,
    SITE,
    gathered_is_stale,
    oracle_results,
    page_is_stale,
    results_of,
    site_is_stale,
    table_results,
)
from pcb.study import load_study
from pcb.study.current import site_line
from pcb.study.departures import departures
from pcb.study.load import notice_of_old_results, save_study_json
from pcb.study.variants import (
    GAMMA_SPLITS,
    confusion_splits,
    gamma_split,
    oracle_runs,
    with_gamma,
)

sys.path.insert(
    0, workflow.basedir
)  # for the modules in workflow/, which is no package
from workflow import progress
from workflow.signals import in_thread

SETTINGS = {"scale", "paper", "seeds", "results"}


# The study --------------------------------------------------------------------------------------


def load(config):
    """Load the study that `--config` selects.

    An error in it, or in a YAML file, ends the run with two lines.
    """
    try:
        unknown = ", ".join(sorted(set(config) - SETTINGS))
        if unknown:
            known = ", ".join(sorted(SETTINGS))
            raise UserError(f"--config does not know: {unknown}", f"use {known}")
        overrides = {}
        if "results" in config:
            overrides["results"] = folder(config["results"])
        if "seeds" in config:
            overrides["seeds"] = integers(config["seeds"])
        scale = config.get("scale", "mini")
        study = load_study(scale, config.get("paper"), overrides)
        departures(
            study.scale
        )  # reads the detector configs: an error there ends the run here
        return study
    except UserError as error:
        exit_with(error)


def folder(value):
    """The folder in `results=`, which Snakemake reads as YAML: empty is null, 007 a number.

    Raises `UserError` where it is not a text.
    """
    if isinstance(value, str):
        return value
    raise UserError(
        f"--config results= is read as {value!r}, not as a folder",
        "write a path, such as results=./007",
    )


def integers(value):
    """`0,1,2`, `[0,1,2]` or `0` as a list; the schema rejects items that are not integers.

    Raises `UserError` for digits that YAML reads as an octal number.
    """
    given = next((word for word in sys.argv if word.startswith("seeds=")), "")
    if re.search(r"(?<![0-9])0[0-9]", given):
        raise UserError(
            f"--config {given}: a seed starts with 0, which YAML reads as octal",
            "write it without the leading 0",
        )
    items = value if isinstance(value, list) else str(value).split(",")
    is_integer = re.compile(r"\s*[0-9]+\s*").fullmatch
    return [int(item) if is_integer(str(item)) else item for item in items]


def exit_with(error):
    """End the run with the two lines of a `UserError`."""
    logger.error(f"error: {error.what}\nfix: {error.fix}")
    sys.exit(2)


study = load(config)
paths = study.paths
for asked in sys.argv[1:]:
    if reason := study.absent(asked):
        options = ", ".join(study.targets)
        exit_with(
            UserError(reason, f"choose one of: {options}, or edit the scale's YAML")
        )
study.contents.looks_at_images = True
stale = Stale(study)
not_current = {}  # path of a result that exists -> why it is made again
if notice := notice_of_old_results(study):  # of a dry run too
    logger.warning(notice)
HARDWARE = study.scale["hardware"]
SYNTHETIC = bool(study.scale.get("synthetic"))

# environment.yml documents the software; the jobs run in the interpreter that runs Snakemake.
ENVIRONMENT = str(Path(workflow.basedir) / "environment.yml")


def in_shell(path):
    """A path as one word of a shell command in which Snakemake fills in what is in braces."""
    return shlex.quote(str(path)).replace("{", "{{").replace("}", "}}")


# Every job is `pcb VERB …` of this checkout, on the study.json that this run wrote at its start.
shell.prefix(
    "set -euo pipefail; "
    f"export PYTHONPATH={in_shell(workflow.basedir)}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    f'pcb() {{{{ {in_shell(sys.executable)} -m pcb "$1" '
    f'--study {in_shell(paths.study)} "${{{{@:2}}}}"; }}}}; '
)


wildcard_constraints:
    run="|".join(map(re.escape, study.experiments)),
    seed=r"\d+",
    dataset="|".join([*study.scale["datasets"], "pretrain"]),
    backbone="|".join(study.scale["backbones"]),
    target="|".join(study.tables),
    page="|".join(study.pages),
    summary="|".join(study.summaries) or "none",


# Start and end of a run -------------------------------------------------------------------------

running = ExitStack()  # holds the lock on the results folder until this process ends


def made_before():
    """Where the site is, below a run that has nothing to do; "" in a dry run."""
    return (
        site_line(study, absolute=True)
        if paths.index.exists() and not workflow.dryrun
        else ""
    )


progress_lines = progress.ProgressHandler(
    overview=lambda: overview(study), result=made_before
)
logger.addHandler(progress_lines)


def begin():
    """Prepare a run before its first job; a dry run never does.

    It takes the lock on the results folder, makes sure that no job of an earlier run, whose
    Snakemake was killed, still works there, deletes what killed jobs left unfinished, and writes
    study.json, which every job reads, if its content changed. From here on it prints single lines,
    and stops like after SIGTERM when the terminal is closed.
    """
    try:
        running.enter_context(locked(paths.lock, "these results"))
        if jobs := working(paths.jobs):
            raise UserError(
                f"{paths.root}: jobs of an earlier run still work here: {'; '.join(jobs)}",
                "wait until they have ended, or end them by `kill` and their process numbers; "
                "then run the same command again",
            )
        sweep(paths.root)
        save_study_json(study)
        study.contents.save()
        if not workflow.touch:
            begin_anew()
    except UserError as error:
        exit_with(error)
    if not_current:
        path, reason = next(iter(not_current.items()))
        others = (
            f" and {len(not_current) - 1} other results" if len(not_current) > 1 else ""
        )
        logger.info(f"made again: {path}{others}, because it is {reason}")
    progress_lines.begin(logger)
    if callable(
        stop := signal.getsignal(signal.SIGTERM)
    ):  # Snakemake's, which takes a lock
        signal.signal(signal.SIGTERM, in_thread(stop))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def finish():
    """Build the site of what exists after a run, even a failed one, unless a job has done so.

    Its path is the last line of the run, below what Snakemake writes after this. Without a training
    there is nothing to show, as after a download.
    """
    try:
        study.contents.save()
        runs = [(run, seed) for run in study.runs() for seed in study.seeds]
        if not any(
            path(*of).exists() for of in runs for path in (paths.train, paths.metrics)
        ):
            return
        files = paths.index, paths.page_record(SITE)
        if not all(file.exists() for file in files) or site_is_stale(study):
            # Imported here: a dry run needs no templates.
            from pcb.reporting.site.build import build

            build(study)
            study.contents.save()
        last_line = site_line(study, absolute=True)
        atexit.register(print, last_line, file=sys.stderr, flush=True)
    except UserError as error:
        logger.error(f"error: {error.what}\nfix: {error.fix}")


# Order ------------------------------------------------------------------------------------------

ORDER = targets_in_order(study)
# Within a target: of a training, its epochs. A trained run is evaluated before another training
# starts. Data come before everything else, and a page is made as soon as its results exist.
TRUNK, EVALUATE, AT_ONCE = 80, 60, 100 * (len(ORDER) + 1)


def priority(within, *targets):
    """The priority of a job that some targets need: the earlier the first of them, the higher."""
    first = min((ORDER.index(target) for target in targets), default=len(ORDER))
    return 100 * (len(ORDER) - first) + within


def priority_of_run(run, within):
    """The priority of a job of a run."""
    return priority(within, *(t for t in ORDER if run in study.targets[t].runs))


def priority_of_evaluation(wildcards):
    """The priority of a detection or of what is computed from it."""
    return priority_of_run(wildcards.run, EVALUATE)


def priority_of_training(wildcards):
    """The priority of a training: of those for one target, the longest comes first."""
    return priority_of_run(
        wildcards.run, min(epochs_to_train(study, wildcards.run), 50)
    )


def priority_of_trunk(wildcards):
    """The priority of a trunk: that of the first target with one of its branches."""
    branches = study.trunks[wildcards.run]
    return max(priority_of_run(run, TRUNK) for run in branches)


def priority_of_page(wildcards):
    """The priority of a table, figure or page."""
    return AT_ONCE + priority(0, name_of(wildcards))


# What runs again --------------------------------------------------------------------------------


def gather_rule(target):
    """The rule that gathers a target."""
    kinds = {**dict.fromkeys(study.pages, "gather_page")}
    kinds |= dict.fromkeys(study.summaries, "gather_summary")
    return kinds.get(target, "gather")


def render_rule(target):
    """The rule that renders a target."""
    kinds = {
        **dict.fromkeys(study.pages, "page"),
        **dict.fromkeys(study.summaries, "summary"),
    }
    return kinds.get(target, "notebook")


def made_of(target):
    """The jobs before the gathering of a target."""
    seeds = study.seeds[:1] if target in study.pages else study.seeds
    runs = study.runs(target)
    datasets = sorted({study.experiments[run].dataset for run in runs})
    out = [("check_data", dataset) for dataset in datasets]
    out += [("score", run, seed) for run in runs for seed in seeds]
    if target == "protocols":
        out += oracle_jobs()
    return out


def oracle_jobs():
    """The jobs behind the oracle's numbers, which a study without the page of protocols has too."""
    return [("oracle", run, seed) for run in oracle_runs(study) for seed in study.seeds]


RENDERS = ("notebook", "page", "summary", "site")

# Snakemake compares with what .snakemake remembers of earlier runs from this working directory, and
# times. This compares with what is in the results folder: rule -> path of its result, why that is
# not current (a method of `pcb.planning.stale.Stale`), and the results from which it is made, all
# as functions of the rule's wildcards.
RESULTS = {
    "data": (paths.data_manifest, stale.data, lambda *_: []),
    "check_data": (paths.data_check, stale.check, lambda *_: []),
    "pretrain": (paths.weights_record, stale.weights, lambda *_: []),
    "trunk": (paths.trunk, stale.trunk, lambda *_: []),
    "train": (
        paths.train,
        stale.training,
        lambda run, seed: (
            [("trunk", trunk, seed)] if (trunk := study.experiments[run].trunk) else []
        ),
    ),
    "train_confusion": (
        paths.train_confusion_record,
        stale.train_confusion,
        lambda *of: [("train", *of)],
    ),
    "infer": (
        paths.detections,
        stale.detections,
        lambda *of: [("train", *of), *[("train_confusion", *of)][: needs_train(of[0])]],
    ),
    "infer_split": (
        paths.detections,
        stale.detections,
        lambda *of: [("train", *of[:2])],
    ),
    "oracle": (paths.oracle, stale.oracle, lambda *of: [("train", *of)]),
    "score": (
        paths.metrics,
        stale.metrics,
        lambda run, seed: [
            ("infer", run, seed),
            *(
                ("infer_split", run, seed, gamma_split(study, run))
                for _ in with_gamma(study.variants(run))[:1]
            ),
        ],
    ),
    **{
        gathers: (
            paths.gathered,
            lambda target: gathered_is_stale(study, target),
            made_of,
        )
        for gathers in ("gather", "gather_page", "gather_summary")
    },
    **{
        renders: (
            paths.page_record,
            lambda target: page_is_stale(study, target),
            lambda target: [(gather_rule(target), target)],
        )
        for renders in RENDERS[:-1]
    },
    "site": (
        lambda: paths.page_record(SITE),
        lambda: site_is_stale(study),
        lambda: [
            *((render_rule(target), target) for target in study.targets),
            *(job for target in study.tables for job in made_of(target)),
            *oracle_jobs(),
        ],
    ),
}


def unless_current(rule, inputs=lambda wildcards: []):
    """An input function: a result that is not of this study is made again.

    Snakemake calls it for the jobs that the targets need, before it decides which of them run.

    Args:
        rule: A rule of `RESULTS`.
        inputs: The rule's input function, a list of paths. A result has none of these inputs where it is current and
            where all from which it is made are, so that their times do not matter.
    """

    def mark(wildcards):
        values = [int(v) if k == "seed" else v for k, v in wildcards.items()]
        path, find, _ = RESULTS[rule]
        reason = find(*values)
        if reason:
            not_current[str(path(*values))] = reason
        # A page without its record, which no target asks for, counts as not made.
        unrecorded = rule in RENDERS and not path(*values).exists()
        if reason or unrecorded:
            workflow.dag.forcefiles.add(str(path(*values)))
        return (
            []
            if is_current(rule, *values)
            else [path for path in inputs(wildcards) if path]
        )

    return mark


@cache
def is_current(rule, *values):
    """Whether a result exists, is of this study, and no job before it runs again."""
    path, find, made_from = RESULTS[rule]
    kept = path(*values).exists() and not find(*values)
    kept = kept and not is_forced(rule, [path(*values)])
    return kept and all(is_current(*result) for result in made_from(*values))


def is_forced(rule, outputs):
    """Whether the command line forces a job, by its rule or by a file."""
    settings = workflow.dag_settings
    asked = set(settings.forcerun)
    if settings.forcetargets:
        asked |= set(settings.targets)
    return settings.forceall or not asked.isdisjoint([rule, *map(str, outputs)])


def begin_anew():
    """Discard what a training or detection would resume from, where the user forced its job.

    `snakemake --forcerun train` would otherwise find finished trainings and keep them.
    """
    for planned in workflow.dag.needrun_jobs():
        if "run" in planned.wildcards.keys() and is_forced(
            planned.rule.name, planned.output
        ):
            discard(study, planned.rule.name, **dict(planned.wildcards.items()))


# Inputs -----------------------------------------------------------------------------------------


def of_training(wildcards):
    """What is made from a training and a data set: the training's record, the data's check."""
    experiment = study.experiments[wildcards.run]
    return [
        paths.train(wildcards.run, wildcards.seed),
        paths.data_check(experiment.dataset),
    ]


def of_detection(wildcards):
    """What a detection on val is made from."""
    confusion = train_confusion_of(wildcards.run, wildcards.seed)
    return [*of_training(wildcards), confusion]


def of_score(wildcards):
    """What the metrics on val are made from."""
    of = wildcards.run, wildcards.seed
    return [
        *(
            get(*of)
            for get in (paths.detections, paths.confusion, paths.confusion_images)
        ),
        gamma_detections_of(*of),
    ]


def start_and_trunk(wildcards):
    """What a training is made from."""
    return [*data_and_weights(wildcards), trunk_of(wildcards.run, wildcards.seed)]


def data_and_weights(wildcards):
    """What a training starts from: the check of its data set, and its starting weights."""
    experiment = study.experiments[wildcards.run]
    return [paths.data_check(experiment.dataset), paths.weights(experiment.backbone)]


def trunk_of(run, seed):
    """The record of the trunk from which a run branches, if it does."""
    trunk = study.experiments[run].trunk
    return paths.trunk(trunk, seed) if trunk else []


def needs_train(run):
    """Whether a run has a variant that needs the confusion matrix of the training images."""
    return "train" in confusion_splits(study.variants(run))


def train_confusion_of(run, seed):
    """The confusion matrix of the training images, for a run that needs it."""
    return paths.confusion(run, seed, "train") if needs_train(run) else []


def gamma_detections_of(run, seed):
    """The detections on which the γ of NorCal is chosen beside val, for a run with NorCal."""
    needed = with_gamma(study.variants(run))
    return paths.detections(run, seed, gamma_split(study, run)) if needed else []


def data_files(dataset):
    """The inputs of the check of a data set: its manifest, or its annotation files.

    Missing files are omitted: the check lists all of them. Whether annotation files changed is
    decided by their content, not by their time.
    """
    if study.contents.is_generated(dataset):
        return paths.data_manifest(dataset)
    spec = study.scale["datasets"][dataset]
    return [
        ancient(spec[split]) for split in ("train", "val") if Path(spec[split]).exists()
    ]


def behind_site():
    """What the index of the site is made from: all pages and the results behind the tables."""
    return [
        *rendered(*study.targets),
        *table_results(study, *study.tables),
        *oracle_results(study),
    ]


def rendered(*targets):
    """The notebooks of some tables, figures and pages."""
    return [paths.notebook(target) for target in targets]


# Params -----------------------------------------------------------------------------------------


def pretrains(backbone):
    """Whether a backbone's weights are trained here, not read from a file."""
    return study.scale["backbones"][backbone]["weights"] == "pretrain"


def pretrain_gpus(backbone):
    """GPUs of a backbone's pretraining."""
    return min(1, HARDWARE["gpus_per_job"]) if pretrains(backbone) else 0


def detect_ahead(wildcards, input):
    """The option by which a training also detects, where this run needs the detections.

    It takes `input` for the reason that `described` does. Snakemake evaluates it again just before
    the job starts; a dry run with `-p` does not know yet which jobs run, and prints no option.
    """
    planned = (
        job for job in workflow.dag.needrun_jobs() if job.rule.name.startswith("infer")
    )
    needed = any(
        all(job.wildcards[key] == wildcards[key] for key in ("run", "seed"))
        for job in planned
    )
    return ["--detect"] if needed else []


# Messages and labels ----------------------------------------------------------------------------


def described(verb):
    """A params function for the message of a run's job.

    It takes `input`, because Snakemake does not run a job again for a parameter that depends on
    its input: a renamed table must not retrain.
    """
    return lambda wildcards, input: progress.describe(
        study, verb, wildcards.run, wildcards.seed
    )


def name_of(wildcards):
    """The table, figure or page of a rendering job."""
    return next(
        wildcards[key]
        for key in ("target", "page", "summary")
        if key in wildcards.keys()
    )


def labels(form):
    """Labels of a result in `snakemake --report`: the table, figure or page, and its format.

    The report sorts them as text. A second space, which a browser does not show, puts Table 2
    before Table 10.
    """
    return lambda wildcards: {
        "of": re.sub(r" (\d)$", r"  \1", number(name_of(wildcards))),
        "format": form,
    }
