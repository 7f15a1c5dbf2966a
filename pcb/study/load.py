"""`load_study`: read configs/paper.yaml and one scale, check both, and lay them together."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import yaml

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study.claims import Claim
from pcb.study.experiment import Experiment
from pcb.study.schema import validate
from pcb.study.study import Study, Table, fingerprint


def load_study(
    scale: str | Path = "mini",
    paper: str | Path = ROOT / "configs/paper.yaml",
    overrides: dict | None = None,
) -> Study:
    """The study at `scale`: a name under configs/scale/, a path to such a YAML file, or a study.json that holds a whole one.

    `overrides` replaces values of the scale (`{"seeds": [0, 1], "results": "/tmp/r"}`; a mapping changes only the keys
    it names). `{results}` in a data set's path stands for the scale's results folder. Raises `UserError` naming file,
    key and reason.
    """
    path = Path(scale)
    if path.suffix == ".json":
        if overrides:
            raise UserError(
                f"{path} holds a whole study, which takes no overrides", "name the scale instead"
            )
        resolved = read_json(path)
        if not isinstance(resolved, dict) or not isinstance(resolved.get("scale"), dict):
            raise UserError(
                f"{path} holds no study", "delete it; the next snakemake run writes it anew"
            )
        if resolved.pop("checked", None) == fingerprint(
            resolved
        ):  # by the run that wrote it: 0.2 s less for each of its jobs
            return Study(resolved)
        sources = (path, path)
    else:
        if path.suffix not in (".yaml", ".yml"):
            path = ROOT / f"configs/scale/{scale}.yaml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in (ROOT / "configs/scale").glob("*.yaml")))
            raise UserError(
                f"no scale {str(scale)!r}: {path} does not exist",
                f"choose one of: {known}, or give a path to a YAML file",
            )
        resolved = {**read_yaml(Path(paper)), "scale": merge(read_yaml(path), overrides or {})}
        sources = (
            Path(paper),
            f"{path} with {', '.join(overrides)} overridden" if overrides else path,
        )
    validate({key: value for key, value in resolved.items() if key != "scale"}, "paper", sources[0])
    validate(resolved["scale"], "scale", sources[1])
    check_experiments(resolved, sources[0])
    check_tables(resolved, sources[0])
    check_claims(resolved, sources[0])
    check_pages(resolved, sources[0])
    check_batch(resolved["scale"], sources[1])
    resolve_paths(resolved["scale"], sources[1])
    return Study(resolved)


def checked(study: Study) -> dict:
    """What study.json holds: the resolved study, and its digest as a sign that it needs no checks while nobody edits it."""
    return {**study.resolved, "checked": fingerprint(study.resolved)}


def merge(base: dict, changes: dict) -> dict:
    """`base` with `changes` laid over it, mappings key by key."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        out[key] = (
            merge(out[key], value)
            if isinstance(value, dict) and isinstance(out.get(key), dict)
            else value
        )
    return out


def check_experiments(resolved: dict, source: str | Path) -> None:
    """Ids are spelled by their factors, and the members of a trunk are the same training until PCB starts."""
    experiments = {key: Experiment.read(key, spec) for key, spec in resolved["experiments"].items()}
    for key, experiment in experiments.items():
        if experiment.computed_id != key:
            raise UserError(
                f"{source}: experiment {key!r} is spelled {experiment.computed_id!r} by its own factors",
                "rename the key, or mend the factor",
            )
        trunk = experiments.get(experiment.trunk) if experiment.trunk else experiment
        if trunk is None:
            raise UserError(
                f"{source}: experiment {key!r} names the trunk {experiment.trunk!r}, which is no experiment",
                "name an experiment of the same file",
            )
        if experiment.trunk and (
            trunk.trunk != trunk.id or trunk.factors != experiment.early_factors
        ):
            raise UserError(
                f"{source}: experiment {key!r} cannot branch from {trunk.id!r}: their first epochs differ",
                "a trunk has the same data set, backbone, sampler, loss and paradigm, no PCB, and names itself as trunk",
            )


def check_tables(resolved: dict, source: str | Path) -> None:
    """Rows name experiments, have an id of their own, and one label per label column, one number (or none) per column."""
    for table, spec in resolved["tables"].items():
        seen = set()
        for row in spec["rows"]:
            where = f"{source}: {table}, row {row['id']!r}"
            if row["run"] not in resolved["experiments"]:
                raise UserError(
                    f"{where} names the run {row['run']!r}, which is no experiment",
                    "name an experiment of the same file",
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


def check_claims(resolved: dict, source: str | Path) -> None:
    """Claims have an id of their own and name cells (table/row, metric) that exist."""
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
        if claim.id in seen:
            raise UserError(
                f"{source}: claim {claim.id!r} appears twice", "give one of them another id"
            )
        seen.add(claim.id)
        for cell in (cell for check in claim.checks for cell in check.cells):
            if cell not in cells and not (cell[2].startswith("M[") and cell[:2] in rows):
                raise UserError(
                    f"{source}: claim {claim.id!r} names {cell[0]}/{cell[1]}, {cell[2]}, which is in no table",
                    "name a row by table and id, and a metric among that table's columns",
                )


def check_pages(resolved: dict, source: str | Path) -> None:
    """Pages compare experiments of one data set."""
    for page, spec in resolved.get("pages", {}).items():
        for entry in spec["compare"]:
            where = f"{source}: {page}, comparison {entry['label']!r}"
            if lost := [
                entry[end]
                for end in ("before", "after")
                if entry[end] not in resolved["experiments"]
            ]:
                raise UserError(
                    f"{where} names the run {lost[0]!r}, which is no experiment",
                    "name an experiment of the same file",
                )
            if (
                len({resolved["experiments"][entry[end]]["dataset"] for end in ("before", "after")})
                > 1
            ):
                raise UserError(
                    f"{where} compares runs on two data sets",
                    "name two experiments of one data set",
                )


def check_batch(scale: dict, source: str | Path) -> None:
    """A batch has the size that the scale says, however many GPUs share it: what does not come out even is refused."""
    hardware, batch = scale["hardware"], scale["train"]["batch_size"]
    gpus, parts = hardware["gpus_per_job"], hardware.get("accumulate", 1)
    if hardware["device"] == "cuda" and not gpus:
        raise UserError(
            f"{source}: hardware.gpus_per_job is 0 on the device cuda",
            "give the number of GPUs that a training takes",
        )
    if batch % (max(1, gpus) * parts):
        even = [n for n in range(1, batch + 1) if batch % n == 0]
        raise UserError(
            f"{source}: a batch of {batch} images cannot be shared by {gpus} GPUs that take {parts} parts each",
            f"let hardware.gpus_per_job times hardware.accumulate be one of {', '.join(map(str, even))}",
        )


def resolve_paths(scale: dict, source: str | Path) -> None:
    """Put the results folder in the place of `{results}`, and make sure that what lies in there can be generated."""
    root = f"{Path(scale['results']) / scale['name']}"
    paths = [value for entry in scale["datasets"].values() for value in entry.values()]
    if "synthetic" not in scale and any(
        "{results}" in value or value.startswith(f"{root}/") for value in paths
    ):
        raise UserError(
            f"{source}: datasets: a path lies in the results folder, but there is no `synthetic` recipe to generate it",
            "add `synthetic`, or give the path of files that exist",
        )
    if "pretrain" not in scale and any(
        entry["weights"] == "pretrain" for entry in scale["backbones"].values()
    ):
        raise UserError(
            f"{source}: backbones: weights are `pretrain`, but there is no `pretrain` recipe",
            "add `pretrain`, or give the path of a weights file",
        )
    for entry in scale["datasets"].values():
        entry.update({key: value.replace("{results}", root) for key, value in entry.items()})


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML whose mappings may not name a key twice: the parser alone would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    try:
        value = yaml.load(path.read_text(), StrictLoader)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "give the path of a readable YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML: {error}", "mend the line that is named"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {type(value).__name__}, not a mapping", "write `key: value` lines"
        )
    return value


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "run `snakemake --dry-run` once: it writes this file"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON: {error}", "delete it; the next snakemake run writes it anew"
        ) from error
