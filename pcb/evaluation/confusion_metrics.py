"""Bias in a measured confusion matrix: the metrics Mrf, Mfr, Mup, Mcor and its one-sided pairs.

M[i, j] is the mean probability that a proposal on an object of class i is predicted as class j,
over the foreground classes (Eq. 1, 3). Rows are divided by their sums, as for PwB: that changes
nothing for a softmax, and turns a row of sigmoids (EQL v2) into probabilities. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pcb.errors import UserError
from pcb.files import load_npz
from pcb.frequency import GROUPS


class BothWays(NamedTuple):
    """Pairs of a rarer and a more frequent class; n of them.

    Attributes:
        groups: (n,) `rc`, `rf` or `cf`: the group of the rarer class, then of the other.
        up: (n,) probability that the rarer class is predicted as the more frequent one.
        down: (n,) the reverse.
    """

    groups: np.ndarray
    up: np.ndarray
    down: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """A measured confusion matrix and its C classes.

    Attributes:
        matrix: (C, C) float64, row = true class, rows sum to 1 or are zero.
        seen: (C,) matched proposals of each class in the split.
        names: (C,) class names.
        frequency: (C,) group of each class, `r`, `c` or `f`.
        train_images: (C,) training images of each class.
    """

    matrix: np.ndarray
    seen: np.ndarray
    names: Sequence[str]
    frequency: Sequence[str]
    train_images: Sequence[int]

    def choose(self, count: int = 10, seed: int = 0) -> list[int]:
        """Draw `count` classes that the split shows, ordered by train images, fewest first."""
        shown = np.flatnonzero(self.seen > 0)
        drawn = np.random.default_rng(seed).choice(shown, min(count, len(shown)), replace=False)
        return sorted(map(int, drawn), key=lambda i: (self.train_images[i], i))

    def most_one_sided(self, count: int = 10) -> list[tuple[int, int]]:
        """The pairs (i, j) of shown classes with the largest M_ij - M_ji > 0, at most `count`."""
        return most_one_sided(self.matrix, self.seen > 0, count)

    def both_ways(self, least: float = 0.0) -> BothWays:
        """Pairs of shown classes of different groups, where either way is at least `least`."""
        shown = np.flatnonzero(self.seen > 0)
        rank = np.array([GROUPS.index(f) for f in self.frequency])
        i, j = (k.ravel() for k in np.meshgrid(shown, shown, indexing="ij"))
        up, down = self.matrix[i, j], self.matrix[j, i]
        listed = (rank[i] < rank[j]) & (np.maximum(up, down) >= least)
        names = np.array([a + b for a in GROUPS for b in GROUPS])
        groups = names[len(GROUPS) * rank[i[listed]] + rank[j[listed]]]
        return BothWays(groups, up[listed], down[listed])

    def by_group(self) -> np.ndarray:
        """(3, 3) `group_means` over the shown classes."""
        return group_means(self.matrix, self.seen > 0, self.frequency)


def most_one_sided(
    matrix: np.ndarray, shown: np.ndarray, count: int | None = None
) -> list[tuple[int, int]]:
    """The pairs of classes with the largest M_ij - M_ji > 0.

    Args:
        matrix: (C, C) M.
        shown: (C,) bool, classes that count.
        count: Largest number of pairs; None means all.

    Returns:
        (i, j), the largest difference first; i is the class that loses.
    """
    difference = np.where(shown[:, None] & shown[None, :], matrix - matrix.T, 0)
    i, j = np.nonzero(difference > 0)
    order = np.argsort(-difference[i, j], kind="stable")[:count]
    return list(zip(i[order].tolist(), j[order].tolist(), strict=True))


def group_means(matrix: np.ndarray, shown: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The share of the mass of each group's rows in the columns of each group.

    The paper's M_rf (§3.1) is the entry of rare rows and frequent columns; the paper does not state
    how it is aggregated.

    Args:
        matrix: (C, C) M.
        shown: (C,) bool, classes whose rows count.
        groups: (C,) `r`, `c` or `f` of each class.

    Returns:
        (3, 3) mean over the rows that count; zeros for a group without any.
    """
    member = np.array([[f == group for f in groups] for group in GROUPS], float)
    rows = member * shown
    return (rows @ matrix @ member.T) / np.maximum(rows.sum(1, keepdims=True), 1)


def bias_metrics(confusion: Confusion) -> dict[str, float | None]:
    """The metrics Mrf, Mfr, Mup and Mcor of `pcb.study.METRICS`.

    Returns:
        Percent, for Mcor a rank correlation. None where the split shows no class of a group, where
        no pair leans either way, or where all mean scores or numbers of images are equal.
    """
    groups, pairs = 100 * confusion.by_group(), confusion.both_ways()
    leaning = pairs.up != pairs.down
    shown = {f for f, n in zip(confusion.frequency, confusion.seen, strict=True) if n > 0}
    both = {"r", "f"} <= shown
    return {
        "Mrf": float(groups[0, 2]) if both else None,
        "Mfr": float(groups[2, 0]) if both else None,
        "Mup": 100 * float((pairs.up > pairs.down)[leaning].mean()) if leaning.any() else None,
        "Mcor": score_count_correlation(confusion),
    }


def score_count_correlation(confusion: Confusion) -> float | None:
    """Spearman's rank correlation of the mean scores M_ii of shown classes with their train images.

    Source: §3.2, "positive correlation exists between the mean classification score and the number
    of instances"; the paper states neither the coefficient nor a value.
    """
    shown = np.asarray(confusion.seen) > 0
    scores, images = np.diag(confusion.matrix)[shown], np.asarray(confusion.train_images)[shown]
    a, b = (ranks(values) - (len(values) - 1) / 2 for values in (scores, images))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else None


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 of (n,) values; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def read_pairwise_bias(path: Path, fix: str, digest: str | None = None) -> dict[str, float]:
    """Read PwB as inference stored it beside its matrix; arguments as for `read_confusion`.

    Returns:
        PwB of the matrix with normalised rows, PwB_seen of its classes with a matched proposal,
        PwB_raw of the matrix as it is.
    """
    arrays = load_npz(path, fix, digest)
    return {
        "PwB": float(arrays["pwb"]),
        "PwB_seen": float(arrays["pwb_seen"]),
        "PwB_raw": float(arrays["pwb_raw"]),
    }


def read_confusion(
    path: Path, classes: Sequence[dict], fix: str, digest: str | None = None
) -> Confusion:
    """Read a confusion matrix.

    Args:
        path: confusion.npz, as inference wrote it.
        classes: C mappings with `name`, `frequency` and `train_images`, in the matrix's order, as
            metrics.json lists them.
        fix: What the user can do about a missing or damaged file.
        digest: SHA-256 of the file, as the record beside it holds it.

    Raises:
        UserError: The file cannot be read, or its matrix is not one of these classes.
    """
    arrays = load_npz(path, fix, digest)
    if not {"matrix", "seen"} <= arrays.keys():
        raise UserError(f"{path} holds no confusion matrix", fix)
    matrix, seen = arrays["matrix"].astype(float), arrays["seen"]
    if matrix.shape != (len(classes),) * 2:
        raise UserError(
            f"{path} is of shape {matrix.shape}, but the metrics list {len(classes)} classes",
            "run inference and scoring again",
        )
    matrix /= np.maximum(matrix.sum(1, keepdims=True), np.finfo(float).tiny)
    names, frequency, train_images = (
        [c[key] for c in classes] for key in ("name", "frequency", "train_images")
    )
    return Confusion(matrix, seen, names, frequency, train_images)
