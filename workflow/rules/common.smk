# What all rules share: the study, how a job is called, and the few words that messages need. No path is spelled here:
# results lie where pcb.study.Paths says.
import json
import os
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from pcb.errors import UserError
from pcb.files import locked, write_json
from pcb.planning.jobs import epochs_to_train
from pcb.planning.status import overview
from pcb.formatting import number
from pcb.reporting.notebook import template
from pcb.study import canonical, load_study
from pcb.study.departures import departures
from pcb.study.load import format_of_results, study_json
from pcb.study.study import FORMAT

sys.path.insert(0, workflow.basedir)  # for workflow/progress.py, which is in no package
from workflow import progress

SETTINGS = {"scale", "paper", "seeds", "results"}


def study_of(config):
    """The study that `--config` asks for, and its departures from LVIS. A mistake in it, or in any YAML file, ends the run with one message."""
    try:
        unknown = ", ".join(sorted(set(config) - SETTINGS))
        if unknown:
            known = ", ".join(sorted(SETTINGS))
            raise UserError(f"--config does not know: {unknown}", f"use {known}")
        overrides = {}
        if "results" in config:
            overrides["results"] = str(config["results"])
        if "seeds" in config:
            overrides["seeds"] = numbers(config["seeds"])
        study = load_study(
            config.get("scale", "mini"), config.get("paper"), overrides
        )
        return study, departures(study.scale)
    except UserError as error:
        logger.error(f"error: {error.what}\nfix: {error.fix}")
        sys.exit(2)


def numbers(value):
    """`0,1,2`, `[0,1,2]` or `0` as a list of integers; what is no integer stays as it is, for the schema to refuse."""
    items = value if isinstance(value, list) else str(value).split(",")
    return [int(item) if str(item).strip().isdigit() else item for item in items]


study, DEPARTURES = study_of(config)
paths = study.paths
HARDWARE = study.scale["hardware"]
SYNTHETIC = bool(study.scale.get("synthetic"))
ROOT = Path(os.path.relpath(workflow.basedir))

# environment.yml documents the software; the jobs run in the interpreter that runs Snakemake.
ENVIRONMENT = str(Path(workflow.basedir) / "environment.yml")


# Every job is `pcb VERB …` of this checkout, on the study as it was when this run started.
shell.prefix(
    "set -euo pipefail; "
    f"export PYTHONPATH={shlex.quote(workflow.basedir)}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    f'pcb() {{{{ {shlex.quote(sys.executable)} -m pcb "$1" --study {shlex.quote(str(paths.study))} "${{{{@:2}}}}"; }}}}; '
)


wildcard_constraints:
    run="|".join(map(re.escape, study.experiments)),
    seed=r"\d+",
    dataset="|".join([*study.scale["datasets"], "pretrain"]),
    backbone="|".join(study.scale["backbones"]),
    target="|".join(study.tables),
    page="|".join(study.pages),


def begin():
    """What a real run does before its first job, and a dry run never: take the results folder for itself, write study.json, which
    every job reads, when its content changed, and speak in single lines from here on.
    """
    try:
        running.enter_context(locked(paths.lock, "these results"))
    except UserError as error:
        logger.error(f"error: {error.what}\nfix: {error.fix}")
        sys.exit(2)
    if format_of_results(paths.study) not in (None, FORMAT):
        logger.info(
            f"{paths.root} holds results of an earlier version of the pipeline: they count as not run"
        )
    content = study_json(study)
    if not paths.study.exists() or json.loads(paths.study.read_text()) != content:
        write_json(paths.study, content)
    progress_lines.begin(logger)


def of_run(get):
    """An input function from the run's experiment to a path."""
    return lambda wildcards: get(study.experiments[wildcards.run])


def job(describe):
    """A params function: one canonical string of what determines a job's result, so that a change of it runs the job again."""
    return lambda wildcards: canonical(describe(wildcards))


def words(verb):
    """A params function for messages: which training of how many, and for which tables. It names `input` because Snakemake
    leaves such a parameter out of what makes a job run again: a renamed table must not retrain.
    """
    return lambda wildcards, input: progress.describe(
        study, verb, wildcards.run, wildcards.seed
    )


def trunk_of(run, seed):
    trunk = study.experiments[run].trunk
    return paths.trunk(trunk, seed) if trunk else []


def data_files(dataset):
    """What a check of a data set depends on: its manifest if it is drawn here, else its annotation files as far as they exist
    (that one is missing is for the check to say, which lists all that is missing)."""
    if SYNTHETIC:
        return paths.data_manifest(dataset)
    spec = study.scale["datasets"][dataset]
    return [spec[split] for split in ("train", "val") if Path(spec[split]).exists()]


def check_job(dataset):
    scale = study.scale
    about = study.data_job(dataset) if SYNTHETIC else scale["datasets"][dataset]
    settings = (scale["train"]["rfs_threshold"], scale.get("allow_absent_classes"))
    return {"data": about, "settings": settings, "format": 2}  # 2: with `matches_release`


def pretrains(backbone):
    """Whether a backbone's weights are trained here, not read from a file."""
    return study.scale["backbones"][backbone]["weights"] == "pretrain"


def pretrain_gpus(backbone):
    return min(1, HARDWARE["gpus_per_job"]) if pretrains(backbone) else 0


def scale_job():
    """What pages show of the scale."""
    keys = ("title", "notes", "datasets", "backbones", "seeds")
    return {key: study.scale.get(key) for key in keys} | {"departures": DEPARTURES}


def gather_job(target):
    """What a table's page shows apart from the measured numbers."""
    claims = [
        claim
        for claim in study.resolved.get("claims", [])
        if target in canonical(claim)
    ]
    table = study.resolved["tables"][target]
    return {"table": table, "scale": scale_job(), "claims": claims}


def gather_page_job(page):
    """What a page of images shows, and of which data."""
    return {"page": study.resolved["pages"][page], "scale": scale_job()}


def site_job():
    """What the index of the site shows apart from what was measured and rendered."""
    shown = ("tables", "claims", "pages")
    return {key: study.resolved.get(key) for key in shown} | {"scale": scale_job()}


def measured(*targets):
    """What the numbers of tables come from: metrics, the checks of their data sets and, of a figure, confusion matrices."""
    figures = [target for target in targets if target.startswith("figure")]
    matrices = study.runs(*figures) if figures else []
    return [
        *data_checks(*targets),
        *(paths.metrics(run, seed) for run in study.runs(*targets) for seed in study.seeds),
        *(paths.confusion(run, seed) for run in matrices for seed in study.seeds),
    ]


def looked_at(page):
    """What a page of images shows: detections and confusion matrices of the first seed."""
    seed = study.seeds[0]
    return data_checks(page) + [
        get(run, seed)
        for run in study.pages[page].runs
        for get in (paths.metrics, paths.detections, paths.confusion)
    ]


def data_checks(*targets):
    """The checks of the data sets behind some tables, figures and pages."""
    datasets = {study.experiments[run].dataset for run in study.runs(*targets)}
    return [paths.data_check(dataset) for dataset in sorted(datasets)]


def rendered(*targets):
    return [paths.notebook(target) for target in targets]


def labels(form):
    """What `snakemake --report` writes beside a result: which table, figure or page, and its format. It sorts labels as text:
    a second space, which a browser does not show, puts Table 2 before Table 10."""
    return lambda wildcards: {
        "of": re.sub(
            r" (\d)$", r"  \1", number(wildcards.get("target") or wildcards.page)
        ),
        "format": form,
    }


def finish():
    """After a run, also a failed or partial one: build the index of all that exists by now, and log where it is."""
    # Imported here: a dry run needs no templates.
    from pcb.reporting.site.build import build

    try:
        logger.info(f"Look at {build(study)}")
    except UserError as error:
        logger.error(f"error: {error.what}\nfix: {error.fix}")


running = ExitStack()
progress_lines = progress.ProgressHandler(overview=lambda: overview(study))
logger.addHandler(progress_lines)
