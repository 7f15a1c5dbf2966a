"""The study: the whole paper at one scale, with every name resolved.

`load_study` makes one from YAML files; all other modules read it. A study holds no results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pcb.study.claims import Claim
from pcb.study.contents import Contents
from pcb.study.experiment import Experiment
from pcb.study.overlay import registry_of
from pcb.study.paths import Paths
from pcb.study.recipe import GENERATOR, recipe_of
from pcb.study.variants import annotation_split

# Incremented when results of an earlier version must not be read as results of this one. It is part
# of every fingerprint, so earlier records count as not run.
FORMAT = 3

# AP in points, 0-100, as the paper prints it. Of the confusion matrix: PwB; in percent M_rf and
# M_fr, the probability that an object of a rare class is predicted as any frequent one and the
# reverse, and Mup, the share of pairs of classes of different groups in which the rarer is
# predicted as the more frequent one more often than the reverse; Mcor, the rank correlation of the
# classes' mean scores M_ii with their training images.
AP_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APb")
BIAS_METRICS = ("PwB", "Mrf", "Mfr", "Mup", "Mcor")
# The precision-recall curve of a class that metrics.json keeps: IoU, and recall in percent.
CURVE_IOU, CURVE_RECALLS = 0.5, range(0, 101, 5)
METRICS = (*AP_METRICS, *BIAS_METRICS)

# The paper's base methods, which `methods` of a scale can choose from.
METHODS = ("softmax", "rfs", "eqlv2", "seesaw", "bags", "loce")

# Label columns of a table that compares each method with the same method with PCB (✗ and ✓).
PAIRED_LABELS = ("Dataset", "Method", "PCB")


@dataclass(frozen=True)
class Row:
    """A table row.

    Attributes:
        id: Key within its table.
        labels: Label column -> text that the paper prints there.
        run: Experiment behind the row.
        variant: Evaluation variant of the run.
        paper: Metric -> published number; a metric that the paper does not print is absent.
        copied_from: Source of the published numbers where the paper did not train the row itself.
        base: Id of the row of its table that it is compared with; pages show the difference.
    """

    id: str
    labels: dict[str, str]
    run: str
    variant: str = "plain"
    paper: dict[str, float] = field(default_factory=dict)
    copied_from: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        id: `table05`, `figure1`: the name of its rule, page and files.
        title: Its title.
        claim: What the paper shows with it, in our words.
        labels: Label columns, in the paper's order.
        columns: Metrics, in the paper's order.
        rows: Its rows that are in the scale.
        plots: The plots of its page, see `pcb.reporting.plots`.
        absent: Rows whose data set, backbone or base method is not in the scale.
        order: Ids of all rows, in the paper's order.
    """

    id: str
    title: str
    claim: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    plots: tuple[dict, ...] = ()
    absent: tuple[Row, ...] = ()
    order: tuple[str, ...] = ()

    @classmethod
    def read(cls, key: str, spec: dict, runs: Container[str] | None = None) -> Table:
        """Make a table from YAML, where a row lists labels and numbers in the table's order.

        Args:
            key: Its id.
            spec: Its entry in configs/paper.yaml.
            runs: The experiments of the scale; None: all are.
        """
        rows = []
        present = {row["id"] for row in spec["rows"] if runs is None or row["run"] in runs}
        for row in spec["rows"]:
            paper = dict(zip(spec["columns"], row.get("paper", []), strict=False))
            labels = dict(zip(spec["labels"], row["labels"], strict=True))
            printed = {metric: value for metric, value in paper.items() if value is not None}
            rows.append(
                Row(
                    row["id"],
                    labels,
                    row["run"],
                    row.get("variant", "plain"),
                    printed,
                    row.get("copied_from"),
                    row.get("base") if row.get("base") in present else None,
                )
            )
        return cls(
            key,
            spec["title"],
            spec["claim"],
            tuple(spec["labels"]),
            tuple(spec["columns"]),
            tuple(row for row in rows if row.id in present),
            tuple(spec.get("plots", ())),
            tuple(row for row in rows if row.id not in present),
            tuple(row.id for row in rows),
        )

    @property
    def runs(self) -> list[str]:
        """Experiments of its rows, each once."""
        return list(dict.fromkeys(row.run for row in self.rows))


@dataclass(frozen=True)
class Comparison:
    """Two trainings to compare: the same base method without (`before`) and with PCB (`after`)."""

    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Page:
    """A page of images beside the tables.

    Attributes:
        id: `gallery` or `pairs`: the name of its rule, notebook and files.
        title: Its title.
        shows: One sentence on its content.
        compare: The pairs of trainings that it compares.
        settings: Counts, thresholds and the seed with which its images are drawn.
    """

    id: str
    title: str
    shows: str
    compare: tuple[Comparison, ...]
    settings: dict

    @classmethod
    def read(cls, key: str, spec: dict, runs: Container[str]) -> Page:
        """Make a page from its entry in configs/paper.yaml; `runs` are those of the scale."""
        pairs = (Comparison(**entry) for entry in spec["compare"])
        compare = tuple(pair for pair in pairs if pair.before in runs and pair.after in runs)
        return cls(key, spec["title"], spec["shows"], compare, spec["settings"])

    @property
    def runs(self) -> list[str]:
        """Experiments that it compares, each once."""
        return list(dict.fromkeys(run for c in self.compare for run in (c.before, c.after)))


@dataclass(frozen=True)
class Summary:
    """A page over all tables, such as the findings.

    Attributes:
        id: The name of its rule, notebook and files.
        title: Its title.
        shows: One sentence on its content.
        runs: Experiments of all tables, each once.
        rows: Evaluations that it shows besides the tables, in its own order.
    """

    id: str
    title: str
    shows: str
    runs: tuple[str, ...]
    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, key: str, spec: dict, runs: Iterable[str]) -> Summary:
        """Make a page from its entry in configs/paper.yaml; `runs` are those of all tables."""
        runs = tuple(runs)
        rows = [
            Row(
                row["id"],
                dict(zip(spec["labels"], row["labels"], strict=True)),
                row["run"],
                row.get("variant", "plain"),
            )
            for row in spec.get("rows", ())
            if row["run"] in runs
        ]
        return cls(key, spec["title"], spec["shows"], runs, tuple(rows))


class Study:
    """Everything that the pipeline does, as data.

    Attributes:
        resolved: The whole study as JSON values, the content of study.json.
        scale, schedule, seeds: Sections of the YAML files.
        registry: Losses, paradigms and calibrations that its experiments can name.
        experiments, tables, pages, summaries: Entries as objects, by id, of those that have
            something to show at this scale: its data sets, backbones and base methods.
        claims: The claims, with the checks whose rows are in the scale.
        verdict: What the first lines of the site rest on (`main`, `gain`); empty where nothing is
            named.
        paths: Paths of its results.
        contents: Digests of the files that it reads.
    """

    def __init__(self, resolved: dict):
        self.resolved = resolved
        self.scale: dict = resolved["scale"]
        self.schedule: dict = self.scale.get("schedule") or resolved["schedule"]
        self.seeds: tuple[int, ...] = tuple(self.scale["seeds"])
        self.registry = registry_of(resolved.get("losses", {}))
        every = {key: Experiment.read(key, spec) for key, spec in resolved["experiments"].items()}
        possible = {key: e for key, e in every.items() if self._is_possible(e)}
        shown = {key for key, e in possible.items() if self._is_chosen(e)}
        # Orders follow from names and rows, not from the mappings: JSON files hold those sorted.
        order = sorted(resolved["tables"], key=lambda key: (key.startswith("figure"), key))
        tables = (Table.read(key, resolved["tables"][key], shown) for key in order)
        self.tables = {table.id: table for table in tables if table.rows}
        pages = sorted(resolved.get("pages", {}).items())
        read_pages = (Page.read(key, spec, shown) for key, spec in pages)
        self.pages = {page.id: page for page in read_pages if page.compare}
        of_tables = dict.fromkeys(run for table in self.tables.values() for run in table.runs)
        summaries = sorted(resolved.get("summaries", {}).items())
        self.summaries = {k: Summary.read(k, spec, of_tables) for k, spec in summaries if of_tables}
        rows = {(table.id, row.id) for table in self.tables.values() for row in table.rows}
        claims = map(Claim.read, resolved.get("claims", []))
        self.claims = tuple(claim.within(rows) for claim in claims)
        self.verdict: dict = resolved.get("verdict", {})
        parts = ("base", "paradigm", "full")
        if self.verdict and any(
            tuple(self.verdict["gain"][part].split("/")) not in rows for part in parts
        ):
            self.verdict = {}
        used = dict.fromkeys(run for target in self.targets.values() for run in target.runs)
        self.experiments = {key: possible[key] for key in [*used, *sorted(possible.keys() - used)]}
        self.paths = Paths(Path(self.scale["results"]) / self.scale["name"])
        self.contents = Contents(self.scale, self.paths)

    def _is_possible(self, experiment: Experiment) -> bool:
        """Whether the scale has an experiment's data set and backbone."""
        has_data = experiment.dataset in self.scale["datasets"]
        return has_data and experiment.backbone in self.scale["backbones"]

    def _is_chosen(self, experiment: Experiment) -> bool:
        """Whether `methods` of the scale, which names the paper's base methods, has this one."""
        method = self.base_method(experiment)
        return method not in METHODS or method in self.scale.get("methods", METHODS)

    def base_method(self, experiment: Experiment) -> str:
        """The base method as tables call it: `softmax` and `rfs` for the sampler, else the loss."""
        late = self.registry.losses[experiment.loss].late  # label smoothing: softmax at first
        loss = "softmax" if late else experiment.loss
        return "rfs" if loss == "softmax" and experiment.sampler == "rfs" else loss

    @property
    def targets(self) -> dict[str, Table | Page | Summary]:
        """Everything that has a page: tables and figures in the paper's order, then pages."""
        return {**self.tables, **self.pages, **self.summaries}

    @property
    def trunks(self) -> dict[str, list[str]]:
        """Trunk -> the experiments that share it, the one that trains it first."""
        out: dict[str, list[str]] = {}
        for experiment in self.experiments.values():
            if experiment.trunk:
                out.setdefault(experiment.trunk, []).append(experiment.id)
        return {trunk: sorted(ids, key=lambda i: (i != trunk, i)) for trunk, ids in out.items()}

    @property
    def trunk_epochs(self) -> int:
        """Epochs that the members of a trunk share: all before PCB starts."""
        return self.schedule["pcb_start_epoch"] - 1

    def absent(self, target: str) -> str | None:
        """Why a table, figure or page of the paper has nothing to show at this scale, else None."""
        sections = ("tables", "pages", "summaries")
        if target in self.targets or not any(
            target in self.resolved.get(section, {}) for section in sections
        ):
            return None
        methods = ", ".join(self.scale.get("methods", ["all"]))
        return (
            f"{target} shows nothing of this scale: its data sets are "
            f"{', '.join(self.scale['datasets'])}, its backbones "
            f"{', '.join(self.scale['backbones'])}, its base methods {methods}"
        )

    def runs(self, *targets: str) -> list[str]:
        """Experiments behind the given targets (all without arguments), in the paper's order.

        A run that shares a trunk also needs the trunk, whose own run may be in no row.
        """
        wanted = {run for t in (targets or self.targets) for run in self.targets[t].runs}
        return [key for key in self.experiments if key in wanted]

    def variants(self, run: str) -> list[str]:
        """Evaluation variants that some page shows of this run, `plain` first."""
        rows = (
            row for page in (*self.tables.values(), *self.summaries.values()) for row in page.rows
        )
        return ["plain", *sorted({row.variant for row in rows if row.run == run} - {"plain"})]

    def momenta(self, run: str) -> list[float]:
        """Scaled γ of every confusion matrix that a training keeps.

        For a trunk these are the momenta of all experiments that share it.
        """
        members = (self.experiments[m] for m in self.trunks.get(run, [run]))
        gammas = sorted({member.pcb.gamma for member in members if member.pcb})
        return [self.scaled_gamma(gamma) for gamma in gammas]

    def keeps_soft_labels(self, run: str) -> bool:
        """Whether a trunk keeps the soft labels of online label smoothing for a branch."""
        return any(self.experiments[member].loss == "ols" for member in self.trunks.get(run, ()))

    def scaled_gamma(self, gamma: float) -> float:
        """Momentum at this scale: a small data set shows a class less often than LVIS does.

        Returns:
            The momentum whose memory 1/(1-γ) is the scale's factor times that of `gamma`, 0 where
            that is below 1.
        """
        return round(max(0.0, 1 - (1 - gamma) / self.scale["pcb"]["ema_memory_scale"]), 9)

    # What determines a job's result. If it changes, the job runs again. ------------------------

    def data_job(self, dataset: str, split: str | None = None) -> dict:
        """Return what determines the files of a generated data set.

        Args:
            dataset: `v05`, `v1` or `pretrain`.
            split: Only what determines the files of this split; None: of all splits.
        """
        section = self.scale.get("synthetic") or {}
        if dataset == "pretrain":
            split = "pretrain"
        return {
            "dataset": dataset,
            "split": split,
            "recipe": recipe_of(section, split) if split else section,
            "generator": GENERATOR,
            "assets": self.contents.assets(section.get("classes", 60)),
        }

    def check_job(self, dataset: str) -> dict:
        """Return what determines the report of a check, besides the image files."""
        entry = self.scale["datasets"][dataset]
        generated = self.contents.is_generated(dataset)
        return {
            "format": FORMAT,
            "version": entry.get("version"),
            **self.scoring(dataset),
            "rfs_threshold": self.scale["train"]["rfs_threshold"],
            "allow_absent_classes": self.scale.get("allow_absent_classes"),
            "splits": {
                split: self.data_job(dataset, split)
                if generated
                else self.contents.annotations(dataset, split)
                for split in ("train", "val", "dev")
                if split in entry
            },
        }

    def pretrain_job(self, backbone: str) -> dict:
        """Return what determines starting weights: a file, or a pretraining of our own."""
        weights = self.scale["backbones"][backbone]["weights"]
        if weights == "random":
            return {"weights": "random"}
        if weights != "pretrain":
            return {"weights": self.contents.weights(backbone)}
        return {
            "weights": "pretrain",
            "recipe": self.scale["pretrain"],
            "data": self.data_job("pretrain"),
            "detector": self.contents.detector(backbone, training=True),
        }

    def train_job(self, run: str, seed: int) -> dict:
        """Return what determines a training's weights; its hash names the work folder.

        It excludes hardware, titles, labels, published numbers, test settings and all paths.
        """
        experiment = self.experiments[run]
        job = {
            "format": FORMAT,
            "factors": experiment.factors,
            "seed": seed,
            "schedule": self.schedule,
            "train": self.scale["train"],
            "pcb": self.scale["pcb"],
            "data": self.split_job(experiment.dataset, "train"),
            "start": self.pretrain_job(experiment.backbone),
            "detector": self.contents.detector(experiment.backbone, training=True),
        }
        if added := self.resolved.get("losses", {}).get(experiment.loss):
            job["loss"] = own_loss(added)
        if experiment.trunk == run:
            job["momenta"] = self.momenta(run)
            if self.keeps_soft_labels(run):
                job["soft_labels"] = True
        elif experiment.trunk:
            job["trunk"] = self.fingerprint(experiment.trunk, seed)
        return job

    def eval_job(self, run: str, seed: int, split: str = "val") -> dict:
        """Return what determines a run's detections and metrics on a split, by weights and data.

        The variants are no part of it: detections and metrics with more of them are current too.

        Args:
            run: Experiment.
            seed: Seed of the training.
            split: `val`, `dev` or `train-subset`.
        """
        experiment = self.experiments[run]
        return {
            "train": self.fingerprint(run, seed),
            "split": split,
            "data": self.split_job(experiment.dataset, annotation_split(split)),
            **self.scoring(experiment.dataset),
            "test": self.scale["test"],
            "detector": self.contents.detector(experiment.backbone, training=False),
        }

    def scoring(self, dataset: str) -> dict:
        """How a data set is scored where not as LVIS: COCO's rule, thresholds of its groups."""
        entry = self.scale["datasets"][dataset]
        rule = {"format": "coco"} if entry.get("format") == "coco" else {}
        return rule | {key: entry[key] for key in ("thresholds",) if key in entry}

    def fingerprint(self, run: str, seed: int) -> str:
        """Hash of `train_job`, 12 hexadecimal digits."""
        return fingerprint(self.train_job(run, seed))

    def evaluation(self, run: str, seed: int, split: str = "val") -> str:
        """Hash of `eval_job`, 12 hexadecimal digits."""
        return fingerprint(self.eval_job(run, seed, split))

    def split_job(self, dataset: str, split: str) -> dict:
        """Return what determines annotations and images of a split: its recipe, or digests."""
        if self.contents.is_generated(dataset):
            return self.data_job(dataset, split)
        return {
            "annotations": self.contents.annotations(dataset, split),
            "images": self.contents.images(dataset, split),
        }


def own_loss(spec: dict) -> dict:
    """The settings of an added loss that determine a training: class, code and arguments.

    Its title, the values that its options may have and the path of its file have no effect.
    """
    file, _, name = spec["class"].rpartition(":")
    code = {"code": spec["sha256"]} if "sha256" in spec else {"module": file}
    return {"class": name, **code, "takes": spec.get("takes", [])}


def canonical(job: dict) -> str:
    """One spelling of a job: Snakemake compares params as text."""
    return json.dumps(job, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(job: dict) -> str:
    """Hash of a job, 12 hexadecimal digits."""
    return hashlib.sha256(canonical(job).encode()).hexdigest()[:12]
