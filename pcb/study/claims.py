"""The paper's claims, judged on numbers. Each check is one inequality.

A check has one of seven forms (`table05/g0.9` names a table's row; a metric may be a difference,
`APf-APr`):

    {metric: APr, higher: ROW, lower: ROW, by: X}   higher - lower is above 0, or with `by` >= X
    {metric: AP, close: [ROW, ...], within: X}      largest - smallest is at most X
    {metric: APr, increasing: [ROW, ...]}           each row is above the one before
    {metric: AP, highest: ROW, among: [ROW, ...]}   the row is above all others
    {opposed: [AP, PwB], among: [ROW, ...]}         over the rows the metrics' correlation is < 0
    {metric: Mrf-Mfr, above: X, row: ROW}           the metric is above X in that row
    {taken: A, for: B, row: ROW}                    the model predicts class A as B more often than
                                                    the reverse

Each becomes a margin that is positive where the claim is true. X counts as printed, to one
decimal: a difference that rounds to X is one of X. With several seeds the margin is taken seed by
seed, so differences are paired. The verdict on a check:

    noise         the standard deviation (n-1) of the margin over seeds, at least 0.05, which is
                  half of the last digit printed
    holds         the mean margin is at least the noise
    fails         the mean margin is at most minus the noise
    within noise  otherwise
    not run       a number is missing

With one seed, and for the published numbers, the noise is 0.05: "within noise" then means a tie in
print and does not predict other seeds. A claim fails if one of its checks fails; it is within
noise if one is and none fails; it holds if all that could be judged do; else it is not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcb.study.study import Table

HOLDS, FAILS, WITHIN_NOISE, NOT_RUN = "holds", "fails", "within noise", "not run"
# What a page shows instead of NOT_RUN where that is the reason.
NOT_PRINTED, NO_SUCH_CLASS = "not printed", "no such class here"
ROUNDING = 0.05
TOLERANCE = 1e-9  # 28.6 - 20.6 is not 8.0 in binary

Cell = tuple[str, str, str]  # table, row, metric
Values = Mapping[Cell, "Sequence[float | None] | None"]  # one value per seed


@dataclass(frozen=True)
class Check:
    """One inequality.

    Attributes:
        form: `higher`, `close`, `increasing`, `highest`, `opposed`, `above` or `taken`.
        metrics: One metric, or two (`opposed`, `taken`). Those of `taken` are entries of a
            confusion matrix in percent, `M[A>B]` and `M[B>A]`.
        rows: (table, row) pairs.
        threshold: X, where the form has one.
    """

    form: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    threshold: float | None = None

    @classmethod
    def read(cls, spec: dict) -> Check:
        """Make a check from its mapping in configs/paper.yaml."""
        if "higher" in spec:
            rows = row_ids(spec["higher"], spec["lower"])
            return cls("higher", (spec["metric"],), rows, spec.get("by"))
        if "close" in spec:
            return cls("close", (spec["metric"],), row_ids(*spec["close"]), spec["within"])
        if "increasing" in spec:
            return cls("increasing", (spec["metric"],), row_ids(*spec["increasing"]))
        if "highest" in spec:
            rows = [spec["highest"], *(row for row in spec["among"] if row != spec["highest"])]
            return cls("highest", (spec["metric"],), row_ids(*rows))
        if "above" in spec:
            return cls("above", (spec["metric"],), row_ids(spec["row"]), spec["above"])
        if "taken" in spec:
            a, b = spec["taken"], spec["for"]
            return cls("taken", (f"M[{a}>{b}]", f"M[{b}>{a}]"), row_ids(spec["row"]))
        return cls("opposed", tuple(spec["opposed"]), row_ids(*spec["among"]))

    @property
    def cells(self) -> list[Cell]:
        """Every (table, row, metric) that the check reads."""
        names = [name for metric in self.metrics for name in operands(metric)]
        return [(*row, name) for row in self.rows for name in names]

    def __str__(self) -> str:
        names = [f"{table}/{row}" for table, row in self.rows]
        metric = self.metrics[0]
        match self.form:
            case "higher":
                by = f" by {self.threshold:g}" if self.threshold is not None else ""
                return f"{metric}: {names[0]} > {names[1]}{by}"
            case "close":
                return f"{metric}: {', '.join(names)} within {self.threshold:g}"
            case "increasing":
                return f"{metric}: {' < '.join(names)}"
            case "highest":
                return f"{metric}: {names[0]} > {', '.join(names[1:])}"
            case "above":
                return f"{metric}: {names[0]} > {self.threshold:g}"
            case "taken":
                return f"{metric} > {self.metrics[1]} in {names[0]}"
        return f"{metric} against {self.metrics[1]}: correlation < 0 over {', '.join(names)}"

    def margin(self, seed: Mapping[Cell, float]) -> float:
        """The distance by which one seed's numbers satisfy (positive) or miss (negative) the claim.

        In points; for `opposed`, minus the correlation.
        """
        series = [[value_of(seed, row, metric) for row in self.rows] for metric in self.metrics]
        values, threshold = series[0], self.threshold or 0.0
        match self.form:
            case "higher":
                required = 0.0 if self.threshold is None else threshold - ROUNDING
                return values[0] - values[1] - required
            case "close":
                return threshold + ROUNDING - (max(values) - min(values))
            case "increasing":
                return min(after - before for before, after in pairwise(values))
            case "highest":
                return values[0] - max(values[1:])
            case "above":
                return values[0] - threshold
            case "taken":
                return values[0] - series[1][0]
        return -correlation(*series)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        id: Its key.
        where: Section, figure or table of the paper.
        statement: What the paper claims, in our words.
        checks: The inequalities that decide it.
    """

    id: str
    where: str
    statement: str
    checks: tuple[Check, ...]

    @classmethod
    def read(cls, spec: dict) -> Claim:
        """Make a claim from its mapping in configs/paper.yaml."""
        checks = tuple(Check.read(check) for check in spec["checks"])
        return cls(spec["id"], spec["where"], spec["statement"], checks)

    @property
    def tables(self) -> list[str]:
        """The tables that its checks read."""
        return sorted({table for check in self.checks for table, _ in check.rows})


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check: its status, and mean margin, noise and number of seeds behind it."""

    status: str
    margin: float | None = None
    noise: float | None = None
    seeds: int = 0


def judge(check: Check, values: Values) -> Verdict:
    """Judge a check on numbers; seeds in which one of its numbers is missing are ignored.

    Raises:
        ValueError: Two rows list different numbers of seeds, so they cannot be paired.
    """
    lists = {cell: values.get(cell) or () for cell in check.cells}
    if not all(lists.values()):
        return Verdict(NOT_RUN)
    if len({len(numbers) for numbers in lists.values()}) > 1:
        raise ValueError(f"{check}: rows with different numbers of seeds")
    margins = []
    for column in zip(*lists.values(), strict=True):
        seed = {cell: v for cell, v in zip(lists, column, strict=True) if v is not None}
        if len(seed) == len(lists):
            margins.append(check.margin(seed))
    if not margins:
        return Verdict(NOT_RUN)
    margin, noise = fmean(margins), max(ROUNDING, stdev(margins) if len(margins) > 1 else 0.0)
    if margin >= noise - TOLERANCE:
        status = HOLDS
    elif margin <= TOLERANCE - noise:
        status = FAILS
    else:
        status = WITHIN_NOISE
    return Verdict(status, margin, noise, len(margins))


def evaluate(claim: Claim, values: Values) -> tuple[str, list[Verdict]]:
    """Status of a claim, and the verdict on each of its checks."""
    verdicts = [judge(check, values) for check in claim.checks]
    statuses = {verdict.status for verdict in verdicts}
    decisive = (status for status in (FAILS, WITHIN_NOISE, HOLDS) if status in statuses)
    return next(decisive, NOT_RUN), verdicts


def published(tables: Mapping[str, Table]) -> dict[Cell, list[float]]:
    """The paper's own numbers in the form that `evaluate` takes, as if of one seed."""
    return {
        (table.id, row.id, metric): [value]
        for table in tables.values()
        for row in table.rows
        for metric, value in row.paper.items()
    }


def row_ids(*names: str) -> tuple[tuple[str, str], ...]:
    """`table05/g0.9` as (table, row) pairs."""
    pairs = (name.partition("/") for name in names)
    return tuple((table, row) for table, _, row in pairs)


def operands(metric: str) -> list[str]:
    """`APf-APr` as [`APf`, `APr`]; an entry `M[A>B]`, whose names may hold a hyphen, is one."""
    return [metric] if metric.startswith("M[") else metric.split("-")


def value_of(seed: Mapping[Cell, float], row: tuple[str, str], metric: str) -> float:
    """Value of a metric, or of a difference of two, in a row."""
    first, *rest = (seed[(*row, name)] for name in operands(metric))
    return first - sum(rest)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two is constant."""
    da, db = [x - fmean(a) for x in a], [x - fmean(b) for x in b]
    scale = (sum(x * x for x in da) * sum(x * x for x in db)) ** 0.5
    return sum(x * y for x, y in zip(da, db, strict=True)) / scale if scale else 0.0
