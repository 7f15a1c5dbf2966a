"""The study: configs/paper.yaml laid under one scale's overlay, with every name resolved."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pcb.errors import UserError
from pcb.study.experiment import PCB, Experiment
from pcb.study.paths import Paths
from pcb.study.schema import validate

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APb", "PwB")  # AP in points, 0-100, as the paper prints it


@dataclass(frozen=True)
class Row:
    """A table row: its labels, the run and evaluation variant behind it, and the published numbers.

    `copied` names the source when the paper did not run the row itself but copied its numbers.
    """

    id: str
    labels: dict[str, str]
    run: str
    variant: str = "plain"
    paper: dict[str, float] = field(default_factory=dict)
    copied: str | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper. `id` is its notebook, rule, CSV, caption and key: `table05`, `figure1`."""

    id: str
    title: str
    claim: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Study:
    """Everything the pipeline does, as data. `resolved` is the JSON-able whole; it is what study.json holds."""

    def __init__(self, resolved: dict):
        self.resolved = resolved
        self.scale: dict = resolved["scale"]
        self.schedule: dict = resolved["schedule"]
        self.seeds: tuple[int, ...] = tuple(self.scale["seeds"])
        self.claims: dict = resolved.get("claims", {})
        self.experiments = {
            key: Experiment(key, **{**spec, "pcb": PCB(**spec["pcb"]) if spec.get("pcb") else None})
            for key, spec in resolved["experiments"].items()
        }
        self.tables = {
            key: Table(key, spec["title"], spec["claim"], tuple(spec["columns"]), tuple(Row(**row) for row in spec["rows"]))
            for key, spec in resolved["tables"].items()
        }
        self.paths = Paths(Path(self.scale["results"]) / self.scale["name"])

    @property
    def trunks(self) -> dict[str, list[str]]:
        """Trunk experiment -> the experiments that branch from it, itself first."""
        out: dict[str, list[str]] = {}
        for experiment in self.experiments.values():
            if experiment.trunk:
                out.setdefault(experiment.trunk, []).append(experiment.id)
        return {trunk: sorted(ids, key=lambda i: (i != trunk, i)) for trunk, ids in out.items()}

    def runs(self, *targets: str) -> list[str]:
        """Experiments that the given tables and figures need (all of them without arguments), in the paper's order."""
        wanted = {row.run for t in (targets or self.tables) for row in self.tables[t].rows}
        return [key for key in self.experiments if key in wanted]

    def variants(self, run: str) -> list[str]:
        """Evaluation variants that some table asks of this run, `plain` first."""
        wanted = {row.variant for table in self.tables.values() for row in table.rows if row.run == run}
        return ["plain", *sorted(wanted - {"plain"})]

    def momenta(self, run: str) -> list[float]:
        """γ of every confusion matrix that a training keeps: its own, and for a trunk those of all its branches.

        At a small scale a class appears less often, so the scale divides the matrix's memory 1/(1-γ) by a factor.
        """
        members = self.trunks.get(run, [run])
        gammas = sorted({self.experiments[m].pcb.gamma for m in members if self.experiments[m].pcb})
        return [self.scaled_gamma(g) for g in gammas]

    def scaled_gamma(self, gamma: float) -> float:
        return round(max(0.0, 1 - (1 - gamma) / self.scale["pcb"]["memory"]), 9)

    def train_job(self, run: str, seed: int) -> dict:
        """What determines a training's weights; its hash names the work folder, a change retrains."""
        scale = self.scale
        experiment = self.experiments[run]
        job = {"factors": experiment.factors, "seed": seed, "schedule": self.schedule, "train": scale["train"], "pcb": scale["pcb"],
               "dataset": scale["datasets"][experiment.dataset], "backbone": scale["backbones"][experiment.backbone],
               "embedded": scale.get("embedded")}
        if experiment.trunk and experiment.trunk != run:
            job["trunk"] = self.fingerprint(experiment.trunk, seed)
        if experiment.trunk == run:
            job["momenta"] = self.momenta(run)
        return job

    def eval_job(self, run: str, seed: int) -> dict:
        """What determines a run's detections and metrics: the training, the variants and the test settings."""
        return {"train": self.fingerprint(run, seed), "variants": self.variants(run), "test": self.scale["test"]}

    def fingerprint(self, run: str, seed: int) -> str:
        return fingerprint(self.train_job(run, seed))


def canonical(job: dict) -> str:
    """One spelling of a job. Snakemake compares params as a set of values, so a rule passes this one string."""
    return json.dumps(job, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(job: dict) -> str:
    return hashlib.sha256(canonical(job).encode()).hexdigest()[:12]


def load_study(scale: str = "mini", paper: str | Path = ROOT / "configs/paper.yaml", overrides: dict | None = None) -> Study:
    """Read and check the paper and one scale. `scale` is a name under configs/scale/ or a path to a YAML file.

    `overrides` replaces top-level keys of the scale (`seeds`, `results`). A path to a study.json, which holds the
    whole resolved study already, is read as it is. Raises `UserError` naming file, key and reason.
    """
    if str(scale).endswith(".json"):
        return Study(read_json(Path(scale)))
    path = Path(scale) if str(scale).endswith((".yaml", ".yml")) else ROOT / "configs/scale" / f"{scale}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in (ROOT / "configs/scale").glob("*.yaml")))
        raise UserError(f"no scale {scale!r}: {path} does not exist", f"choose one of: {known}, or give a path to a YAML file")
    overlay = {**read_yaml(path), **(overrides or {})}
    resolved = copy.deepcopy(read_yaml(Path(paper)))
    validate(resolved, "paper", Path(paper))
    validate(overlay, "scale", path)
    resolved["scale"] = overlay
    check_references(resolved, Path(paper))
    return Study(resolved)


def check_references(resolved: dict, source: Path) -> None:
    """Names must resolve: rows to experiments, trunks to experiments, ids to their factors."""
    experiments = resolved["experiments"]
    for key, spec in experiments.items():
        experiment = Experiment(key, **{**spec, "pcb": PCB(**spec["pcb"]) if spec.get("pcb") else None})
        if experiment.computed_id != key:
            raise UserError(f"{source}: experiment {key!r} is spelled {experiment.computed_id!r} by its own factors",
                            "rename the key, or mend the factor")
        if experiment.trunk and experiment.trunk not in experiments:
            raise UserError(f"{source}: experiment {key!r} names the trunk {experiment.trunk!r}, which is no experiment",
                            "name an experiment of the same file")
    for table, spec in resolved["tables"].items():
        for row in spec["rows"]:
            if row["run"] not in experiments:
                raise UserError(f"{source}: {table}, row {row['id']!r} names the run {row['run']!r}, which is no experiment",
                                "name an experiment of the same file")


def read_yaml(path: Path) -> dict:
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give the path of a readable YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}", "mend the line that is named") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a mapping", "write `key: value` lines")
    return value


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "run `snakemake --dry-run` once: it writes this file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "delete it; the next snakemake run writes it anew") from error
