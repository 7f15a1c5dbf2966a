"""Pairwise bias in a measured confusion matrix: `load(figure)`, then `.choose`, `.pairs`, `.by_group`, `.both_ways`.

M[i, j] is the mean probability that a proposal on an object of class i is given to class j, over foreground classes (Eq. 1, 3). Rows are
divided by their sums, as for PwB: that changes nothing for a softmax, and makes a probability of a row of sigmoids (EQL v2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pcb.errors import UserError

if TYPE_CHECKING:
    from pcb.reporting.album import Album
    from pcb.reporting.tables import Gathered
    from pcb.study import Study

GROUPS = ["rare", "common", "frequent"]
SYMBOLS = "rcf"


@dataclass(frozen=True)
class Confusion:
    """`matrix` (C, C), row = true class; `seen` (C,) proposals of each class in val; per class its name, group and train images."""

    matrix: np.ndarray
    seen: np.ndarray
    names: list[str]
    frequency: list[str]
    train_images: list[int]

    def choose(self, count: int = 10, seed: int = 0) -> list[int]:
        """`count` classes drawn at random among those that val shows, ordered by train images, fewest first."""
        shown = np.flatnonzero(self.seen > 0)
        drawn = np.random.default_rng(seed).choice(shown, min(count, len(shown)), replace=False)
        return sorted(map(int, drawn), key=lambda i: (self.train_images[i], i))

    def most_one_sided(self, count: int = 10) -> list[tuple[int, int]]:
        """The pairs (i, j) of shown classes with the largest M_ij - M_ji, as far as it is above 0."""
        shown = self.seen > 0
        bias = np.where(shown[:, None] & shown[None, :], self.matrix - self.matrix.T, 0)
        order = np.argsort(-bias, axis=None, kind="stable")[:count]
        return [
            (int(i), int(j))
            for i, j in zip(*np.unravel_index(order, bias.shape), strict=True)
            if bias[i, j] > 0
        ]

    def pairs(self, count: int = 10) -> pd.DataFrame:
        """The most one-sided pairs, for a table."""
        return pd.DataFrame(
            [
                {
                    "class i": self.label(i),
                    "class j": self.label(j),
                    "i taken for j": self.matrix[i, j],
                    "j taken for i": self.matrix[j, i],
                    "difference": self.matrix[i, j] - self.matrix[j, i],
                }
                for i, j in self.most_one_sided(count)
            ]
        )

    def both_ways(self, least: float = 0.0) -> pd.DataFrame:
        """Every pair of shown classes of different groups: `groups` (rf: a rare and a frequent one), `up`, the probability that the rarer
        is given to the more frequent class, and `down`, the reverse; pairs with neither at `least` are left out."""
        shown, rank = (
            np.flatnonzero(self.seen > 0),
            np.array([SYMBOLS.index(f) for f in self.frequency]),
        )
        i, j = (k.ravel() for k in np.meshgrid(shown, shown, indexing="ij"))
        up, down = self.matrix[i, j], self.matrix[j, i]
        kept = (rank[i] < rank[j]) & (np.maximum(up, down) >= least)
        names = np.array([a + b for a in SYMBOLS for b in SYMBOLS])
        return pd.DataFrame(
            {"groups": names[3 * rank[i[kept]] + rank[j[kept]]], "up": up[kept], "down": down[kept]}
        )

    def label(self, i: int) -> str:
        return f"{self.names[i]} ({self.frequency[i]}, {self.train_images[i]} train image{'s' if self.train_images[i] != 1 else ''})"

    def by_group(self) -> np.ndarray:
        """(3, 3): the probability that an object of a class of one group is given to any class of another, mean over classes shown."""
        member = np.array([[f == s for f in self.frequency] for s in SYMBOLS], float)
        rows = member * (self.seen > 0)
        return (rows @ self.matrix @ member.T) / np.maximum(rows.sum(1, keepdims=True), 1)


def bias(matrix: Confusion) -> dict[str, float | None]:
    """The metrics Mrf, Mfr and Mup of `pcb.study.METRICS`, in percent; None where a group has no class, or no pair leans either way."""
    groups, both = 100 * matrix.by_group(), matrix.both_ways()
    leaning = both[both["up"] != both["down"]]
    there = {f for f, seen in zip(matrix.frequency, matrix.seen, strict=True) if seen > 0} >= {
        "r",
        "f",
    }
    return {
        "Mrf": float(groups[0, 2]) if there else None,
        "Mfr": float(groups[2, 0]) if there else None,
        "Mup": 100 * float((leaning["up"] > leaning["down"]).mean()) if len(leaning) else None,
    }


def load(page: Gathered | Album, run: str | None = None) -> Confusion | None:
    """The matrix of a run, or of the page's first measured one; None where it was not run. Raises `UserError`."""
    for entry in page.about["confusion"]:
        if run in (None, entry["run"]):
            return read(page.path.parent / entry["path"], entry["classes"])
    return None


def of_run(study: Study, run: str, seed: int, metrics: dict) -> Confusion | None:
    """The matrix behind a run's metrics."""
    path = study.paths.confusion(run, seed)
    return read(path, metrics["classes"]["plain"]) if path.exists() else None


def read(path: Path, classes: list[dict]) -> Confusion:
    """The matrix that inference left at `path`, and the classes in its order. Raises `UserError` when the two do not fit."""
    try:
        with np.load(path) as file:
            matrix, seen = file["matrix"].astype(float), file["seen"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "run the inference of this run again"
        ) from error
    if matrix.shape != (len(classes),) * 2:
        raise UserError(
            f"{path} is of shape {matrix.shape}, but the metrics list {len(classes)} classes",
            "run inference and scoring again",
        )
    matrix /= np.maximum(matrix.sum(1, keepdims=True), np.finfo(float).tiny)
    return Confusion(
        matrix, seen, *([c[key] for c in classes] for key in ("name", "frequency", "train_images"))
    )
