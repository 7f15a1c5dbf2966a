"""A training's log as curves over epochs: its trunk's first, then its own.

    curves = read_curves(study, run, seed)  # None without a log
    curves["loss"], curves["pwb"]           # at curves.epochs, None where a record has none

Times of a record count from the start of its own job, so they are no curve.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pcb.study import Study

MOST = 150  # points of a curve on a page


@dataclass(frozen=True)
class Curves:
    """The records of a training.

    Attributes:
        records: As docs/scaling.md describes them, each with `at`, the epochs trained so far, of
            all stages together.
        second_stage: Epochs before the second stage of BAGS and LOCE; None for other methods.
        momentum: Momentum of the matrix behind `pwb`, as its key in the log; None without one.
    """

    records: list[dict]
    second_stage: float | None
    momentum: str | None

    @property
    def epochs(self) -> list[float]:
        """(n,) epochs trained so far at each record."""
        return [record["at"] for record in self.records]

    @property
    def parts(self) -> list[str]:
        """Names of the parts of the loss."""
        return sorted({name for record in self.records for name in record.get("losses", {})})

    def __getitem__(self, key: str) -> list[float | None]:
        """Values of `loss`, `lr`, `pwb` or a part of the loss, one for each record."""
        if key == "pwb":
            return [record.get("pwb", {}).get(self.momentum) for record in self.records]
        if key in ("loss", "lr", "seconds_per_iteration"):
            return [record.get(key) for record in self.records]
        return [record.get("losses", {}).get(key) for record in self.records]

    def points(self, key: str) -> list[tuple[float, float]]:
        """(epochs, value) of a curve, in at most `MOST` points: means of neighbours."""
        pairs = zip(self.epochs, self[key], strict=True)
        found = [(x, y) for x, y in pairs if y is not None]
        size = -(-len(found) // MOST)
        blocks = [found[i : i + size] for i in range(0, len(found), size)] if found else []
        return [(block[-1][0], fmean(y for _, y in block)) for block in blocks]

    def by_epoch(self) -> list[dict]:
        """The last record of each epoch of each stage."""
        return list({(r["stage"], r["epoch"]): r for r in self.records}.values())


def read_curves(study: Study, run: str, seed: int) -> Curves | None:
    """The curves of a finished training; None where it kept no log.

    A line that is no record is left out: a log is no result, and a killed job may have cut it.
    """
    trunk = study.experiments[run].trunk
    stages: dict[int, list[dict]] = {}
    if trunk:
        for record in records(study.paths.training_log(trunk, seed, trunk=True)):
            stages.setdefault(record["stage"], []).append(record)
    own = list(records(study.paths.training_log(run, seed)))
    for record in own:
        stages.setdefault(record["stage"], []).append(record)
    if not own:
        return None
    out: list[dict] = []
    before = 0.0
    for members in stages.values():
        last = members[-1]
        length = last["iteration"] / last["epoch"]  # a stage ends with an epoch
        out += [{**record, "at": before + record["iteration"] / length} for record in members]
        before = out[-1]["at"]
    second = next((r["at"] for r in reversed(out) if r["stage"] == 0), None)
    return Curves(out, second if len(stages) > 1 else None, momentum(study, run, own))


def records(path: Path) -> Iterator[dict]:
    """The records of a log, in order."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            if isinstance(record["stage"] + record["epoch"] + record["iteration"], int):
                yield record
        except (ValueError, KeyError, TypeError):
            continue


def momentum(study: Study, run: str, own: Sequence[dict]) -> str | None:
    """The momentum of a run's own matrix, or the largest of those that its log has."""
    kept = {key for record in own for key in record.get("pwb", {})}
    if pcb := study.experiments[run].pcb:
        key = f"{study.scaled_gamma(pcb.gamma):g}"
        if key in kept:
            return key
    return max(kept, key=float, default=None)
