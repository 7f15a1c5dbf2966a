"""The results of a study: `Results` is the only reader of records and metrics in reporting.

A record counts only where it is of the configuration that the study describes now. Everything else
is None, and the pages show `not run`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pcb.errors import UserError
from pcb.evaluation.bootstrap import Bootstrap, read_bootstrap
from pcb.evaluation.confusion_metrics import Confusion, read_confusion
from pcb.reporting.captions import scale_facts
from pcb.reporting.curves import Curves, read_curves
from pcb.study import Study, fingerprint
from pcb.study.claims import WITHIN_NOISE, overall
from pcb.study.current import (
    current_detections,
    current_metrics,
    current_oracle,
    current_training,
    current_trunk,
)
from pcb.study.records import read_record

if TYPE_CHECKING:
    import numpy as np

    from pcb.evaluation.shards import Shards


class Results:
    """The results of a study, read from its results folder as they are asked for.

    Every method raises `UserError` where a file is broken. Metrics, records and logs are kept in
    memory, so one `Results` shows one state of the folder.

    Attributes:
        study: The study.
    """

    def __init__(self, study: Study):
        self.study = study
        self._metrics: dict[tuple[str, int], dict | None] = {}
        self._records: dict[tuple[str, int], dict | None] = {}
        self._bootstraps: dict[tuple[str, int], Bootstrap] = {}
        self._curves: dict[tuple[str, int], Curves | None] = {}
        self._facts: dict[tuple, dict] = {}

    def scale_facts(self, backbones: Iterable[str], datasets: Iterable[str]) -> dict:
        """`captions.scale_facts` of the study's scale; callers do not change it."""
        key = tuple(dict.fromkeys(backbones)), frozenset(datasets)
        if key not in self._facts:
            self._facts[key] = scale_facts(self.study.scale, *key)
        return self._facts[key]

    def metrics(self, run: str, seed: int) -> dict | None:
        """The content of metrics.json; None where the run was not scored."""
        if (run, seed) not in self._metrics:
            self._metrics[run, seed] = current_metrics(self.study, run, seed)
        return self._metrics[run, seed]

    def values(
        self, run: str, seed: int, variant: str, protocol: str = "lvis"
    ) -> dict[str, float | None] | None:
        """Metrics of one evaluation variant by name; None where it was not evaluated.

        A metric is None where the data set has nothing to compute it from, such as AP_r without
        rare classes.
        """
        metrics = self.metrics(run, seed)
        if metrics is None:
            return None
        if protocol == "lvis":
            return metrics["variants"].get(variant)
        return metrics.get("protocols", {}).get(protocol, {}).get(variant)

    def resampled(
        self, run: str, seed: int, variant: str, protocol: str = "lvis"
    ) -> dict[str, np.ndarray] | None:
        """Metrics of a variant on B resamples of the validation images, as (B,) arrays.

        The resamples are the same for all runs of a data set. None where there are none.
        """
        metrics = self.metrics(run, seed)
        if metrics is None or "bootstrap" not in metrics:
            return None
        if (run, seed) not in self._bootstraps:
            path = self.study.paths.bootstrap(run, seed)
            self._bootstraps[run, seed] = read_bootstrap(path, metrics["bootstrap"]["sha256"])
        return self._bootstraps[run, seed].get((protocol, variant))

    def oracle(self, run: str, seed: int) -> dict | None:
        """The content of oracle.json; None where `pcb oracle` has not run."""
        return current_oracle(self.study, run, seed)

    def record(self, run: str, seed: int) -> dict | None:
        """The record of a finished training (run.json); None where it was not trained."""
        if (run, seed) not in self._records:
            self._records[run, seed] = current_training(self.study, run, seed)
        return self._records[run, seed]

    def trunk(self, run: str, seed: int) -> dict | None:
        """The record of a trunk (trunk.json); None where it was not trained."""
        return current_trunk(self.study, run, seed)

    def curves(self, run: str, seed: int) -> Curves | None:
        """The log of a finished training and of its trunk; None where there is none."""
        if (run, seed) not in self._curves:
            known = self.record(run, seed)
            self._curves[run, seed] = read_curves(self.study, run, seed) if known else None
        return self._curves[run, seed]

    def manifest(self, run: str, seed: int) -> dict | None:
        """The manifest of the detections of a run on val (detections.json); None without."""
        return current_detections(self.study, run, seed)

    def confusion(self, run: str, seed: int) -> Confusion | None:
        """The confusion matrix of a run over val proposals; None where the run was not scored."""
        metrics = self.metrics(run, seed)
        if metrics is None:
            return None
        path = self.study.paths.confusion(run, seed)
        fix = f"run `pcb infer {run} --seed {seed}` again"
        return read_confusion(path, metrics["classes"]["plain"], fix, metrics.get("confusion"))

    def detections(self, run: str, seed: int) -> Shards | None:
        """The detections of a run on val; None where inference has not run."""
        from pcb.evaluation.shards import Shards  # imported here: tables start without pyarrow

        path = self.study.paths.detections(run, seed)
        manifest = self.manifest(run, seed)
        if manifest is None:
            return None
        fix = f"run `pcb infer {run} --seed {seed}` again: it detects anew where a shard is broken"
        return Shards(path.parent / manifest["folder"], manifest["shards"], fix, manifest["limits"])

    def release(self, dataset: str) -> str | None:
        """The LVIS release that a data set was found equal to, `v0.5` or `v1.0`.

        None for any other data, and before `pcb check-data` has read the present files.
        """
        check = read_record(self.study.paths.data_check(dataset)) or {}
        version = self.study.scale["datasets"][dataset].get("version")
        if version is None or check.get("matches_release") != version:
            return None
        is_current = check.get("fingerprint") == fingerprint(self.study.check_job(dataset))
        return version if is_current else None


class PublishedResults(Results):
    """The numbers of a published copy, without resamples, detections and confusion matrices.

    Attributes:
        folder: The copy, see `pcb.reporting.publish`. `study` has the seeds that were published.
    """

    def __init__(self, study: Study, folder: Path):
        self.folder = folder
        variants: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
        with self._file("metrics.csv").open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                of_run = variants.setdefault((line["run"], int(line["seed"])), {})
                of_run.setdefault(line["variant"], {})[line["metric"]] = float(line["value"])
        self._published = {key: {"variants": found} for key, found in variants.items()}
        seeds = sorted({seed for _, seed in variants}) or list(study.seeds)
        scale = {**study.scale, "seeds": seeds}
        super().__init__(Study({**study.resolved, "scale": scale}))

    def _file(self, name: str) -> Path:
        path = self.folder / "data" / name
        if not path.is_file():
            raise UserError(
                f"{path} does not exist", "name a folder that `pcb publish` wrote, with all files"
            )
        return path

    def metrics(self, run: str, seed: int) -> dict | None:
        """The published metrics of a run, `variants` alone; None where none were published."""
        return self._published.get((run, seed))

    def claims(self) -> list[dict]:
        """The published verdicts on claims (`pcb.reporting.claims.verdicts`)."""
        return published_claims(self._file("claims.json"))


def published_claims(path: Path) -> list[dict]:
    """The claims of a claims.json. Those of an earlier version have no `partly holds` yet."""
    claims = json.loads(path.read_text(encoding="utf-8"))
    for claim in claims:
        for found in (claim["ours"], claim["paper"], *(claim.get("protocols") or {}).values()):
            if found["verdict"] == WITHIN_NOISE:
                found["verdict"] = overall(found["counts"])
    return claims
