"""Which study a command is about, and whether it has what the command names.

`--scale`, `--paper` and `--results` select it, or `--study` alone.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pcb.errors import UserError, choose
from pcb.files import ROOT, registered

if TYPE_CHECKING:
    from pcb.study import Study

STUDY_OPTIONS = ("scale", "paper", "results", "study")
# Verbs that write nothing into the results folder (`verdict` without `--write`). A run of the
# workflow does not start beside the others.
READERS = (
    "reproduce",
    "plan",
    "status",
    "doctor",
    "download",
    "contact-sheet",
    "export",
    "verdict",
)


def load(arguments: Namespace) -> Study:
    """Load the study that `--scale`, `--paper` and `--results`, or `--study`, select."""
    require_checkout()
    from pcb.cluster.instructions import use_same_instructions
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
    if study.scale["hardware"]["device"] == "cpu":
        use_same_instructions()
    if arguments.verb not in READERS or vars(arguments).get("write"):
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
        if (folder / "Snakefile").is_file() and (folder / "pcb/__main__.py").is_file():
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
