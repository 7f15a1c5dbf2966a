"""Checks of a study across its entries, which a JSON schema cannot express."""

from __future__ import annotations

from pathlib import Path

from pcb.errors import UserError, choose
from pcb.registry import Registry
from pcb.study.claims import Claim
from pcb.study.experiment import Experiment
from pcb.study.own_data import PAPER_DATASETS, replaced
from pcb.study.study import METHODS, PAIRED_LABELS, Study, Table

DATASET_FILES = ("train", "val", "dev", "images")  # the paths of an entry of `datasets`
COCO_LIMIT = 100  # detections of an image and class that COCO's rule counts


def check_paper(resolved: dict, registry: Registry, source: str) -> None:
    """Check experiments, tables, claims and pages. Raises `UserError` at the first fault."""
    experiments = {key: Experiment.read(key, spec) for key, spec in resolved["experiments"].items()}
    for experiment in experiments.values():
        check_factors(experiment, registry, source)
        check_trunk(experiment, experiments, registry, source)
    check_schedule(resolved["schedule"], source)
    check_tables(resolved, registry, source)
    check_claims(resolved, source)
    check_verdict(resolved, source)
    check_pages(resolved, source)


def check_factors(experiment: Experiment, registry: Registry, source: str) -> None:
    """Check that the id follows from the factors, and that the loss allows all of them."""
    where = f"{source}: experiment {experiment.id!r}"
    loss = registry.losses[experiment.loss]
    if experiment.pcb and not loss.with_pcb:
        raise UserError(
            f"{where}: the loss {experiment.loss!r} cannot be combined with PCB", "leave out `pcb`"
        )
    if registry.paradigms[experiment.paradigm].steps > 1 and not loss.with_steps:
        raise UserError(
            f"{where}: the loss {experiment.loss!r} does not support several steps",
            "use `paradigm: plain`",
        )
    for name, value in experiment.options.items():
        if name not in loss.options:
            known = f"choose one of: {', '.join(loss.options)}" if loss.options else "leave it out"
            raise UserError(f"{where}: {experiment.loss!r} has no option {name!r}", known)
        default, *others = loss.options[name].values
        same_type = isinstance(value, bool) == isinstance(default, bool)  # Python: 1 == True
        if not same_type or value not in others:
            is_default = "is the default" if same_type and value == default else "is not allowed"
            raise UserError(
                f"{where}: option {name}: {value!r} {is_default}",
                f"leave it out for {default!r}, or choose one of: {', '.join(map(repr, others))}",
            )
    if experiment.computed_id != experiment.id:
        raise UserError(
            f"{where} is spelled {experiment.computed_id!r} by its own factors",
            "rename the key, or correct the factor",
        )


def check_trunk(
    experiment: Experiment, experiments: dict[str, Experiment], registry: Registry, source: str
) -> None:
    """Check that experiments with one trunk are the same training until PCB starts."""
    if experiment.trunk is None:
        return
    where = f"{source}: experiment {experiment.id!r}"
    trunk = experiments.get(experiment.trunk)
    if trunk is None:
        raise UserError(
            f"{where} names the trunk {experiment.trunk!r}, which is not an experiment",
            "name an experiment of this study",
        )
    if trunk.trunk != trunk.id or trunk.factors != experiment.early_factors(registry):
        raise UserError(
            f"{where} cannot branch from {trunk.id!r}: their first epochs differ",
            "a trunk has the same data set, backbone, sampler, loss, paradigm and early options, "
            "no PCB, and names itself as trunk",
        )


def check_tables(resolved: dict, registry: Registry, source: str) -> None:
    """Check that each row has an id, an experiment, all labels and a number or null per metric.

    A row that shows an earlier step needs an experiment with several steps.
    """
    for table, spec in resolved["tables"].items():
        seen = set()
        for row in spec["rows"]:
            where = f"{source}: {table}, row {row['id']!r}"
            if row["run"] not in resolved["experiments"]:
                raise UserError(
                    f"{where} names the run {row['run']!r}, which is not an experiment",
                    choose(row["run"], resolved["experiments"], "`pcb plan` lists"),
                )
            paradigm = resolved["experiments"][row["run"]].get("paradigm", "plain")
            earlier = row.get("variant", "").startswith("step")
            if earlier and registry.paradigms[paradigm].steps == 1:
                raise UserError(
                    f"{where} shows {row['variant']!r} of {row['run']!r}, which has one step",
                    "leave out `variant`, or name a run with steps, such as an iterative one",
                )
            if row["id"] in seen:
                raise UserError(f"{where} appears twice", "give one of them another id")
            seen.add(row["id"])
            if len(row["labels"]) != len(spec["labels"]):
                raise UserError(
                    f"{where} has {len(row['labels'])} labels for {spec['labels']}",
                    "write one label for each",
                )
            if len(row.get("paper", spec["columns"])) != len(spec["columns"]):
                raise UserError(
                    f"{where} has {len(row['paper'])} numbers for {spec['columns']}",
                    "write one for each, null where the paper prints none",
                )
        check_bases(table, spec, resolved["experiments"], source)
        check_plots(table, spec, source)


def check_bases(table: str, spec: dict, experiments: dict, source: str) -> None:
    """Check that a row is compared with another row of its table, on the same data set."""
    datasets = {row["id"]: experiments[row["run"]]["dataset"] for row in spec["rows"]}
    for row in spec["rows"]:
        if (base := row.get("base")) is None:
            continue
        others = [key for key in datasets if datasets[key] == datasets[row["id"]]]
        if base == row["id"] or base not in others:
            raise UserError(
                f"{source}: {table}, row {row['id']!r}: base {base!r} is not another row of this "
                "table on the same data set",
                "leave it out, or name one of: "
                + ", ".join(key for key in others if key != row["id"]),
            )


def check_plots(table: str, spec: dict, source: str) -> None:
    """Check that a plot names label columns of its table."""
    for plot in spec.get("plots", []):
        needed = [plot[key] for key in ("x", "by") if key in plot]
        if plot["kind"] in ("arrows", "by_class"):
            needed = list(PAIRED_LABELS)
        if missing := [label for label in needed if label not in spec["labels"]]:
            raise UserError(
                f"{source}: {table}: the plot {plot['kind']!r} needs the label column "
                f"{missing[0]!r}",
                f"choose another plot, or one of the labels {spec['labels']}",
            )


def check_claims(resolved: dict, source: str) -> None:
    """Check that claims have an id, checks of one kind, and cells that exist."""
    tables = {key: Table.read(key, spec) for key, spec in resolved["tables"].items()}
    cells = {
        (table.id, row.id, metric)
        for table in tables.values()
        for row in table.rows
        for metric in table.columns
    }
    rows = {cell[:2] for cell in cells}
    seen = set()
    for claim in map(Claim.read, resolved.get("claims", [])):
        where = f"{source}: claim {claim.id!r}"
        if claim.id in seen:
            raise UserError(f"{where} appears twice", "give one of them another id")
        seen.add(claim.id)
        if len({check.kind for check in claim.checks}) > 1:
            raise UserError(
                f"{where} has checks of direction and of size",
                "make it two claims: sizes are judged only where numbers are comparable",
            )
        if any(check.form == "sometimes" and len(check.rows) % 2 for check in claim.checks):
            raise UserError(
                f"{where}: `sometimes` and `over` differ in length",
                "give each row its counterpart",
            )
        for table, row, metric in (cell for check in claim.checks for cell in check.cells):
            of_matrix = metric.startswith("M[") and (table, row) in rows
            if (table, row, metric) not in cells and not of_matrix:
                raise UserError(
                    f"{where} names {table}/{row}, {metric}, which is in no table",
                    "name a row by table and id, and a metric among that table's columns",
                )


def check_verdict(resolved: dict, source: str) -> None:
    """Check that `verdict` names claims, and rows of tables that have its metric."""
    verdict = resolved.get("verdict")
    if verdict is None:
        return
    known = {claim["id"] for claim in resolved.get("claims", [])}
    if unknown := [name for name in verdict["main"] if name not in known]:
        raise UserError(
            f"{source}: verdict.main: no claim {unknown[0]!r}", "name a claim by its id"
        )
    metric = verdict["gain"]["metric"]
    rows = {
        f"{table}/{row['id']}"
        for table, spec in resolved["tables"].items()
        if metric in spec["columns"]
        for row in spec["rows"]
    }
    for key in ("base", "paradigm", "full"):
        if (row := verdict["gain"][key]) not in rows:
            raise UserError(
                f"{source}: verdict.gain.{key}: {row!r} is no row of a table with {metric}",
                "write it as table/row",
            )


def check_pages(resolved: dict, source: str) -> None:
    """Check that pages compare experiments of one data set."""
    experiments = resolved["experiments"]
    for page, spec in resolved.get("pages", {}).items():
        for entry in spec["compare"]:
            where = f"{source}: {page}, comparison {entry['label']!r}"
            runs = (entry["before"], entry["after"])
            if unknown := [run for run in runs if run not in experiments]:
                raise UserError(
                    f"{where} names the run {unknown[0]!r}, which is not an experiment",
                    choose(unknown[0], experiments, "`pcb plan` lists"),
                )
            if len({experiments[run]["dataset"] for run in runs}) > 1:
                raise UserError(
                    f"{where} compares runs on two data sets",
                    "name two experiments of one data set",
                )


def check_scale(scale: dict, source: str) -> None:
    """Check the batch and the paths of a scale. Raises `UserError`."""
    check_batch(scale, source)
    root = f"{Path(scale['results']) / scale['name']}/"
    entries = scale["datasets"].values()
    paths = [entry[key] for entry in entries for key in DATASET_FILES if key in entry]
    generated = any("{results}" in path or path.startswith(root) for path in paths)
    if generated and "synthetic" not in scale:
        raise UserError(
            f"{source}: datasets: a path lies in the results folder, but there is no `synthetic` "
            "recipe to generate it",
            "add `synthetic`, or give the path of files that exist",
        )
    if "schedule" in scale:
        check_schedule(scale["schedule"], source)
    pretrains = any(entry["weights"] == "pretrain" for entry in scale["backbones"].values())
    if pretrains and "pretrain" not in scale:
        raise UserError(
            f"{source}: backbones: weights are `pretrain`, but there is no `pretrain` recipe",
            "add `pretrain`, or give the path of a weights file",
        )


def check_schedule(schedule: dict, source: str) -> None:
    """Check that PCB starts, and that the learning rate drops, before a schedule ends."""
    epochs = schedule["epochs"]
    if schedule["pcb_start_epoch"] > epochs:
        raise UserError(
            f"{source}: schedule.pcb_start_epoch is after the last epoch, {epochs}",
            "start PCB within the epochs: the paper does so after two thirds of them",
        )
    if late := [epoch for epoch in schedule["milestones"] if epoch >= epochs]:
        shares = [max(1, min(round(epochs * share / 24), epochs - 1)) for share in (16, 22)]
        raise UserError(
            f"{source}: schedule.milestones: the learning rate would drop after epoch {late[0]}, "
            f"but training ends with epoch {epochs}",
            f"name epochs before the last; in the paper's proportions: "
            f"{sorted(set(shares)) if epochs > 1 else []}",
        )


def check_datasets(scale: dict, source: str) -> None:
    """Check what an entry of `datasets` says besides its files. Raises `UserError`."""
    for name, entry in scale["datasets"].items():
        where = f"{source}: datasets.{name}"
        if name in PAPER_DATASETS:
            if "version" not in entry:
                raise UserError(
                    f"{where} is one of the paper's data sets, but has no `version`",
                    "name the LVIS release as `version`, or give data of your own another name",
                )
            if own := [key for key in ("title", "in_place_of") if key in entry]:
                raise UserError(
                    f"{where}.{own[0]}: {name} is one of the paper's data sets, which has a title",
                    f"leave out `{own[0]}`, or give data of your own another name",
                )
        elif "title" not in entry:
            raise UserError(
                f"{where} has no title", "add `title`: its name in tables, captions and figures"
            )
        taken = entry.get("in_place_of")
        if taken in scale["datasets"] or (taken and replaced(scale)[taken] != name):
            raise UserError(
                f"{where}.in_place_of: {taken} is already taken by another data set",
                "let one data set take its place; others can be used by an overlay (`paper=`)",
            )
        rare, common = entry.get("thresholds", (1, 2))
        if rare >= common:
            raise UserError(
                f"{where}.thresholds: no class would be common: {rare} is not below {common}",
                "write the most train images of a rare class, then those of a common one",
            )
        if entry.get("format") == "coco" and scale["test"]["max_per_image"] > COCO_LIMIT:
            raise UserError(
                f"{source}: test.max_per_image is {scale['test']['max_per_image']}, but COCO's "
                f"rule counts at most {COCO_LIMIT} detections of a class in an image",
                f"set test.max_per_image to at most {COCO_LIMIT}",
            )


def check_is_used(resolved: dict, source: str) -> None:
    """Check that the study has an experiment on each own data set. Raises `UserError`."""
    used = {spec["dataset"] for spec in resolved["experiments"].values()}
    for name in resolved["scale"]["datasets"]:
        if name not in used:
            raise UserError(
                f"{source}: datasets.{name}: no experiment is on this data set",
                "add `in_place_of: v05`, which lays the paper's experiments out for it, or name "
                "it in the experiments of an overlay (`paper=`)",
            )
    check_backbones(resolved, source)
    known = {*PAPER_DATASETS, *resolved["scale"]["datasets"]}
    for key, spec in resolved["experiments"].items():
        if spec["dataset"] not in known:
            raise UserError(
                f"experiment {key!r} is on the data set {spec['dataset']!r}, which {source} lacks",
                f"add it to `datasets`, or choose one of: {', '.join(sorted(known))}",
            )


def check_backbones(resolved: dict, source: str) -> None:
    """Check that every own data set has an experiment whose backbone the scale has.

    Of the paper's data sets one must have an experiment; others may be left unused.
    """
    backbones = resolved["scale"]["backbones"]
    needed: dict[str, list[str]] = {name: [] for name in resolved["scale"]["datasets"]}
    for spec in resolved["experiments"].values():
        if spec["dataset"] in needed:
            needed[spec["dataset"]].append(spec["backbone"])
    lacking = {name: known for name, known in needed.items() if not backbones.keys() & set(known)}
    own = [name for name in lacking if name not in PAPER_DATASETS]
    for name in own or (list(lacking) if lacking.keys() == needed.keys() else []):
        raise UserError(
            f"{source}: backbones has {', '.join(backbones)}, but the experiments on "
            f"datasets.{name} are with {' or '.join(dict.fromkeys(lacking[name]))}",
            f"add {lacking[name][0]} to `backbones`, with its `config` and `weights`",
        )


def check_shows(study: Study, source: str) -> None:
    """Check that a table, figure or page has something to show. Raises `UserError`."""
    if study.targets or not study.resolved["tables"]:
        return
    methods = [study.base_method(e) for e in study.experiments.values()]
    known = [method for method in METHODS if method in methods]
    raise UserError(
        f"{source}: no table or figure shows anything: none has a row of the base methods "
        f"{', '.join(study.scale.get('methods', METHODS))} on this scale's data sets and backbones",
        f"choose `methods` among: {', '.join(known)}; or leave `methods` out",
    )


def check_batch(scale: dict, source: str) -> None:
    """Check that GPUs and micro-batches divide the batch evenly.

    The size of a batch is then the scale's on any hardware.
    """
    hardware, batch = scale["hardware"], scale["train"]["batch_size"]
    gpus, accumulate = hardware["gpus_per_job"], hardware.get("accumulate", 1)
    if hardware["device"] == "cuda" and not gpus:
        raise UserError(
            f"{source}: hardware.gpus_per_job is 0 on the device cuda",
            "give the number of GPUs that a training takes",
        )
    if batch % (max(1, gpus) * accumulate):
        divisors = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise UserError(
            f"{source}: a batch of {batch} images cannot be shared by {gpus} GPUs in {accumulate} "
            "micro-batches each",
            f"let hardware.gpus_per_job times hardware.accumulate be one of {divisors}",
        )
