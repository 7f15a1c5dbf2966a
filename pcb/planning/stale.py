"""What exists in a results folder, but not of the study: it has to be made again.

`Stale` compares the fingerprints in the records with those of the study, so it needs no memory of
earlier runs: a results folder may be copied or moved, and used from any checkout. The workflow asks
it for each job that it considers (workflow/rules/common.smk); it reads records only and writes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from pcb.errors import UserError
from pcb.formatting import counted
from pcb.study.current import (
    current_detections,
    current_metrics,
    current_oracle,
    current_training,
    current_trunk,
    is_evaluation,
    lacking,
)
from pcb.study.records import read_record
from pcb.study.study import Study, fingerprint

OTHER = "of another configuration, of other data, or of other weights"


def _reason(test: Callable[..., str | None]) -> Callable[..., str | None]:
    """A test whose record cannot be read is answered with that error."""

    @wraps(test)
    def tested(*arguments) -> str | None:
        try:
            return test(*arguments)
        except UserError as error:
            return f"unreadable: {error.what}"

    return tested


class Stale:
    """Each method returns why a result is not current, None where it is or does not exist."""

    def __init__(self, study: Study):
        self.study = study

    @_reason
    def data(self, dataset: str) -> str | None:
        """A generated data set (manifest.json)."""
        study, path = self.study, self.study.paths.data_manifest(dataset)
        if reason := self._recorded(path, fingerprint(study.data_job(dataset))):
            return reason
        if path.exists() and (damaged := study.contents.damaged_files(dataset)):
            differ = counted(len(damaged), "file differs", "files differ")
            return f"{differ} from what was drawn, {damaged[0]} first"
        return None

    @_reason
    def check(self, dataset: str) -> str | None:
        """The report on a data set (check.json)."""
        study, path = self.study, self.study.paths.data_check(dataset)
        if reason := self._recorded(path, fingerprint(study.check_job(dataset))):
            return reason
        if path.exists() and not study.contents.is_generated(dataset):
            splits = (study.contents.check(dataset) or {}).get("splits", {})
            for split, entry in splits.items():
                if study.contents.images(dataset, split) != entry.get("image_digest"):
                    return f"image files of {split} changed"
        return None

    @_reason
    def weights(self, backbone: str) -> str | None:
        """Starting weights (BACKBONE.pth, by the record beside it)."""
        study, path = self.study, self.study.paths.weights_record(backbone)
        if reason := self._recorded(path, fingerprint(study.pretrain_job(backbone))):
            return reason
        weights = study.paths.weights(backbone)
        if path.exists() and weights.exists():
            found = study.contents.of_file(weights)
            return None if found == (read_record(path) or {}).get("sha256") else "damaged"
        return None

    @_reason
    def trunk(self, run: str, seed: int) -> str | None:
        """The first epochs of several trainings (trunk.json)."""
        path = self.study.paths.trunk(run, seed)
        return OTHER if path.exists() and not current_trunk(self.study, run, seed) else None

    @_reason
    def training(self, run: str, seed: int) -> str | None:
        """A training (run.json)."""
        path = self.study.paths.train(run, seed)
        return OTHER if path.exists() and not current_training(self.study, run, seed) else None

    @_reason
    def train_confusion(self, run: str, seed: int) -> str | None:
        """The confusion matrix of the training images (confusion-train.json)."""
        path = self.study.paths.train_confusion_record(run, seed)
        if not path.exists():
            return None
        record = read_record(path)
        return None if is_evaluation(self.study, record, run, seed, "train") else OTHER

    @_reason
    def detections(self, run: str, seed: int, split: str = "val") -> str | None:
        """Detections on a split (detections.json)."""
        if not self.study.paths.detections(run, seed, split).exists():
            return None
        manifest = current_detections(self.study, run, seed, split)
        return self._evaluation(manifest, run, split)

    @_reason
    def metrics(self, run: str, seed: int) -> str | None:
        """Metrics on val (metrics.json)."""
        if not self.study.paths.metrics(run, seed).exists():
            return None
        return self._evaluation(current_metrics(self.study, run, seed), run, "val")

    @_reason
    def oracle(self, run: str, seed: int) -> str | None:
        """Metrics with statistics of the same and of other images (oracle.json)."""
        path = self.study.paths.oracle(run, seed)
        return OTHER if path.exists() and not current_oracle(self.study, run, seed) else None

    def _recorded(self, path: Path, expected: str) -> str | None:
        if not path.exists():
            return None
        record = read_record(path)
        return None if record and record.get("fingerprint") == expected else OTHER

    def _evaluation(self, record: dict | None, run: str, split: str) -> str | None:
        if record is None:
            return OTHER
        missing = lacking(self.study, record, run, split)
        return f"it lacks the variants {', '.join(missing)}" if missing else None
