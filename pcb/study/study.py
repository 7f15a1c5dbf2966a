"""The study: the whole paper at one scale, with every name resolved. `load_study` makes one, everything else asks it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from pcb.study.claims import Claim
from pcb.study.experiment import Experiment
from pcb.study.paths import Paths

# AP in points, 0-100, as the paper prints it. Of the confusion matrix: PwB, and in percent M_rf and M_fr, the probability that an object
# of a rare class is given to any frequent one, and the reverse, and Mup, the share of pairs of classes of different groups in which the
# rarer is taken for the more frequent one more readily than the reverse.
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APb", "PwB", "Mrf", "Mfr", "Mup")


@dataclass(frozen=True)
class Row:
    """A table row: its labels, the run and evaluation variant behind it, and the published numbers.

    `labels` maps the table's label columns to what the paper prints there, `paper` the metrics to its numbers (none
    where it prints "-"). `copied` names the source when the paper did not run the row itself but copied its numbers.
    """

    id: str
    labels: dict[str, str]
    run: str
    variant: str = "plain"
    paper: dict[str, float] = field(default_factory=dict)
    copied: str | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper. `id` is its notebook, rule, CSV, caption and key: `table05`, `figure1`.

    `labels` are its label columns, `columns` its metrics, both in the paper's order.
    """

    id: str
    title: str
    claim: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, key: str, spec: dict) -> Table:
        """From configs/paper.yaml, where a row lists labels and numbers in the order of the table's own lists."""
        rows = []
        for row in spec["rows"]:
            paper = dict(zip(spec["columns"], row.get("paper", []), strict=False))
            rows.append(
                Row(
                    **{
                        **row,
                        "labels": dict(zip(spec["labels"], row["labels"], strict=True)),
                        "paper": {
                            metric: value for metric, value in paper.items() if value is not None
                        },
                    }
                )
            )
        return cls(
            key,
            spec["title"],
            spec["claim"],
            tuple(spec["labels"]),
            tuple(spec["columns"]),
            tuple(rows),
        )

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(row.run for row in self.rows))


@dataclass(frozen=True)
class Comparison:
    """Two trainings to look at side by side, the same base method without (`before`) and with PCB (`after`)."""

    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Page:
    """A page of pictures beside the tables. `id` is its notebook, rule, gathered file and key: `gallery`, `pairs`.

    `shows` is what a reader sees there; `settings` are the counts, thresholds and the seed of its choice of pictures.
    """

    id: str
    title: str
    shows: str
    compare: tuple[Comparison, ...]
    settings: dict

    @classmethod
    def read(cls, key: str, spec: dict) -> Page:
        return cls(
            key,
            spec["title"],
            spec["shows"],
            tuple(Comparison(**c) for c in spec["compare"]),
            spec["settings"],
        )

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(run for c in self.compare for run in (c.before, c.after)))


class Study:
    """Everything the pipeline does, as data. `resolved` is the JSON-able whole; it is what study.json holds."""

    def __init__(self, resolved: dict):
        self.resolved = resolved
        self.scale: dict = resolved["scale"]
        self.schedule: dict = resolved["schedule"]
        self.seeds: tuple[int, ...] = tuple(self.scale["seeds"])
        self.claims = tuple(Claim.read(spec) for spec in resolved.get("claims", []))
        # Orders come from names and rows, not from the mappings: a JSON file may hold those sorted.
        order = sorted(resolved["tables"], key=lambda key: (key.startswith("figure"), key))
        self.tables = {key: Table.read(key, resolved["tables"][key]) for key in order}
        self.pages = {
            key: Page.read(key, spec) for key, spec in sorted(resolved.get("pages", {}).items())
        }
        used = dict.fromkeys(run for target in self.targets.values() for run in target.runs)
        specs = resolved["experiments"]
        self.experiments = {
            key: Experiment.read(key, specs[key]) for key in [*used, *sorted(specs.keys() - used)]
        }
        self.paths = Paths(Path(self.scale["results"]) / self.scale["name"])

    @property
    def targets(self) -> dict[str, Table | Page]:
        """Everything with a notebook of its own: tables and figures in the paper's order, then pages."""
        return {**self.tables, **self.pages}

    @property
    def trunks(self) -> dict[str, list[str]]:
        """Trunk experiment -> the experiments that branch from it, itself first."""
        out: dict[str, list[str]] = {}
        for experiment in self.experiments.values():
            if experiment.trunk:
                out.setdefault(experiment.trunk, []).append(experiment.id)
        return {trunk: sorted(ids, key=lambda i: (i != trunk, i)) for trunk, ids in out.items()}

    @property
    def trunk_epochs(self) -> int:
        """Epochs that the members of a trunk share: all before PCB starts."""
        return self.schedule["pcb_start_epoch"] - 1

    def runs(self, *targets: str) -> list[str]:
        """Experiments that the given tables, figures and pages need (all of them without arguments), in the paper's order.

        A run that branches needs its trunk's first epochs too (`experiments[run].trunk`), even where no row shows that run.
        """
        wanted = {run for t in (targets or self.targets) for run in self.targets[t].runs}
        return [key for key in self.experiments if key in wanted]

    def variants(self, run: str) -> list[str]:
        """Evaluation variants that some table asks of this run, `plain` first."""
        wanted = {
            row.variant for table in self.tables.values() for row in table.rows if row.run == run
        }
        return ["plain", *sorted(wanted - {"plain"})]

    def momenta(self, run: str) -> list[float]:
        """Scaled γ of every confusion matrix that a training keeps: its own, and for a trunk those of all its branches."""
        members = self.trunks.get(run, [run])
        gammas = sorted({self.experiments[m].pcb.gamma for m in members if self.experiments[m].pcb})
        return [self.scaled_gamma(g) for g in gammas]

    def keeps_soft_labels(self, run: str) -> bool:
        """Whether a trunk keeps the soft labels of online label smoothing, because a branch needs them."""
        return any(self.experiments[member].loss == "ols" for member in self.trunks.get(run, ()))

    def scaled_gamma(self, gamma: float) -> float:
        """Return the γ with `pcb.ema_memory_scale` times the memory 1/(1-γ) of `gamma`; at least 0.

        A small data set shows a class less often than LVIS does, so its matrix has to forget faster.
        """
        return round(max(0.0, 1 - (1 - gamma) / self.scale["pcb"]["ema_memory_scale"]), 9)

    def data_job(self, dataset: str) -> dict:
        """What determines the files of a data set (`v05`, `v1`, `pretrain`): the recipe if it is generated, else only the files."""
        return {"dataset": dataset, "synthetic": self.scale.get("synthetic")}

    def pretrain_job(self, backbone: str) -> dict:
        """What determines the weights that runs with this backbone start from: a file, or a pretraining of our own."""
        start = self.scale["backbones"][backbone]
        if start["weights"] != "pretrain":
            return {"backbone": start}
        return {
            "backbone": start,
            "pretrain": self.scale["pretrain"],
            "data": self.data_job("pretrain"),
        }

    def train_job(self, run: str, seed: int) -> dict:
        """What determines a training's weights; its hash names the work folder, a change retrains.

        Not in it: hardware, titles, labels, published numbers, test settings, and where the results folder lies.
        """
        scale = self.scale
        experiment = self.experiments[run]
        job = {
            "factors": experiment.factors,
            "seed": seed,
            "schedule": self.schedule,
            "train": scale["train"],
            "pcb": scale["pcb"],
            "data": self._files(experiment.dataset, "version", "train", "images"),
            "start": self.pretrain_job(experiment.backbone),
        }
        if experiment.trunk == run:
            job["momenta"] = self.momenta(run)
            if self.keeps_soft_labels(run):
                job["soft_labels"] = True
        elif experiment.trunk:
            job["trunk"] = self.fingerprint(experiment.trunk, seed)
        return job

    def eval_job(self, run: str, seed: int) -> dict:
        """What determines a run's detections and metrics: the training, the val set, the variants, the test settings."""
        return {
            "train": self.fingerprint(run, seed),
            "data": self._files(self.experiments[run].dataset, "version", "val", "images"),
            "variants": self.variants(run),
            "test": self.scale["test"],
        }

    def fingerprint(self, run: str, seed: int) -> str:
        return fingerprint(self.train_job(run, seed))

    def _files(self, dataset: str, *keys: str) -> dict:
        """Entries of a data set, its paths relative to the results folder where they lie in it, and how it was generated."""
        files = {
            key: self.scale["datasets"][dataset][key].replace(
                f"{self.paths.root}/", "{results}/", 1
            )
            for key in keys
        }
        generated = any(value.startswith("{results}") for value in files.values())
        return {**files, **(self.data_job(dataset) if generated else {})}


def canonical(job: dict) -> str:
    """One spelling of a job. Snakemake compares params as a set of values, so a rule passes this one string."""
    return json.dumps(job, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(job: dict) -> str:
    return hashlib.sha256(canonical(job).encode()).hexdigest()[:12]
