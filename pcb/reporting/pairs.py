"""Pairwise bias in a measured confusion matrix: `load(figure)`, then `.choose`, `.pairs`, `.by_group`.

M[i, j] is the mean probability that a proposal on an object of class i is given to class j, over foreground classes (Eq. 1, 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pcb.errors import UserError
from pcb.reporting.tables import Gathered

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

    def pairs(self, count: int = 10) -> pd.DataFrame:
        """The pairs of shown classes with the largest M_ij - M_ji."""
        shown = self.seen > 0
        bias = np.where(shown[:, None] & shown[None, :], self.matrix - self.matrix.T, 0)
        order = np.argsort(-bias, axis=None, kind="stable")[:count]
        rows = [(i, j) for i, j in zip(*np.unravel_index(order, bias.shape), strict=True) if bias[i, j] > 0]
        return pd.DataFrame([{
            "class i": self.label(i), "class j": self.label(j), "i taken for j": self.matrix[i, j], "j taken for i": self.matrix[j, i],
            "difference": bias[i, j]} for i, j in rows])

    def label(self, i: int) -> str:
        return f"{self.names[i]} ({self.frequency[i]}, {self.train_images[i]} train images)"

    def by_group(self) -> np.ndarray:
        """(3, 3): the probability that an object of a class of one group is given to any class of another, mean over classes shown."""
        member = np.array([[f == s for f in self.frequency] for s in SYMBOLS], float)
        rows = member * (self.seen > 0)
        return (rows @ self.matrix @ member.T) / np.maximum(rows.sum(1, keepdims=True), 1)


def load(figure: Gathered) -> Confusion | None:
    """The matrix of the figure's first measured run, or None where none was run. Raises `UserError` when the file does not fit."""
    for entry in figure.about["confusion"]:
        path = figure.path.parent / entry["path"]
        try:
            with np.load(path) as file:
                matrix, seen = file["matrix"].astype(float), file["seen"]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}", "run the inference of this run again") from error
        classes = entry["classes"]
        if matrix.shape != (len(classes),) * 2:
            raise UserError(f"{path} is of shape {matrix.shape}, but the metrics list {len(classes)} classes",
                            "run inference and scoring again")
        return Confusion(matrix, seen, *([c[key] for c in classes] for key in ("name", "frequency", "train_images")))
    return None
