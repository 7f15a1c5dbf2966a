"""The paper's claims, judged on numbers: each check is one inequality, put to the published figures or to measured ones.

A check has one of seven forms (`table05/g0.9` names a table's row; a metric may be a difference, `APf-APr`):

    {metric: APr, higher: ROW, lower: ROW, by: X}   higher - lower is above 0, or with `by` at least X
    {metric: AP, close: [ROW, ...], within: X}      largest - smallest is at most X
    {metric: APr, increasing: [ROW, ...]}           each row is above the one before
    {metric: AP, highest: ROW, among: [ROW, ...]}   the row is above all others
    {opposed: [AP, PwB], among: [ROW, ...]}         over the rows, the two metrics' correlation is negative
    {metric: Mrf-Mfr, above: X, row: ROW}           the metric is above X in that row
    {taken: A, for: B, row: ROW}                    that row's model takes class A for class B more readily than the reverse

Each is turned into a margin, positive where the claim is true. X counts as printed, to one decimal: a difference that
rounds to X is one of X. Over several seeds the margin is taken seed by seed, so differences are paired. The verdict:

    noise  = the standard deviation (n-1) of the margin over seeds, but at least 0.05, half of the last digit printed
    holds  if the mean margin is at least the noise, fails if it is at most minus the noise, else it is within noise;
    a check with a number missing is not run.

With one seed (and for the published numbers) the noise is 0.05, so that "within noise" means a tie in print; such a
verdict says nothing of what another seed would show. A claim fails if one of its checks fails; it is within noise if
one is and none fails; it holds if all that could be judged do; and it is not run if none could be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

HOLDS, FAILS, WITHIN_NOISE, NOT_RUN = "holds", "fails", "within noise", "not run"
NOT_PRINTED, NO_SUCH_CLASS = (
    "not printed",
    "no such class here",
)  # what a page says in the place of NOT_RUN, if that is why
ROUNDING = 0.05
SLACK = 1e-9  # 28.6 - 20.6 is not 8.0 in binary

Values = Mapping[
    tuple[str, str, str], "Sequence[float | None] | None"
]  # (table, row, metric) -> one value per seed


@dataclass(frozen=True)
class Check:
    """One inequality: its form (`higher`, `close`, `increasing`, `highest`, `opposed`, `above`, `taken`), metrics, rows, threshold X.

    The metrics of `taken` are two entries of a confusion matrix by class names, in percent: `M[A>B]` and `M[B>A]`.
    """

    form: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    threshold: float | None = None

    @classmethod
    def read(cls, spec: dict) -> Check:
        if "higher" in spec:
            return cls(
                "higher", (spec["metric"],), cells(spec["higher"], spec["lower"]), spec.get("by")
            )
        if "close" in spec:
            return cls("close", (spec["metric"],), cells(*spec["close"]), spec["within"])
        if "increasing" in spec:
            return cls("increasing", (spec["metric"],), cells(*spec["increasing"]))
        if "highest" in spec:
            rows = [spec["highest"], *(row for row in spec["among"] if row != spec["highest"])]
            return cls("highest", (spec["metric"],), cells(*rows))
        if "above" in spec:
            return cls("above", (spec["metric"],), cells(spec["row"]), spec["above"])
        if "taken" in spec:
            return cls(
                "taken",
                (f"M[{spec['taken']}>{spec['for']}]", f"M[{spec['for']}>{spec['taken']}]"),
                cells(spec["row"]),
            )
        return cls("opposed", tuple(spec["opposed"]), cells(*spec["among"]))

    @property
    def cells(self) -> list[tuple[str, str, str]]:
        """Every (table, row, metric) that the check reads."""
        return [
            (*row, name) for row in self.rows for metric in self.metrics for name in parts(metric)
        ]

    def __str__(self) -> str:
        names = [f"{table}/{row}" for table, row in self.rows]
        metric = self.metrics[0]
        match self.form:
            case "higher":
                return f"{metric}: {names[0]} > {names[1]}" + (
                    f" by {self.threshold:g}" if self.threshold is not None else ""
                )
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

    def margin(self, seed: Mapping[tuple[str, str, str], float]) -> float:
        """How far inside (positive) or outside (negative) the claim one seed's numbers are, in points; a -correlation if opposed."""
        series = [[read(seed, row, metric) for row in self.rows] for metric in self.metrics]
        values = series[0]
        match self.form:
            case "higher":
                return (
                    values[0]
                    - values[1]
                    - (self.threshold - ROUNDING if self.threshold is not None else 0)
                )
            case "close":
                return self.threshold + ROUNDING - (max(values) - min(values))
            case "increasing":
                return min(after - before for before, after in pairwise(values))
            case "highest":
                return values[0] - max(values[1:])
            case "above":
                return values[0] - self.threshold
            case "taken":
                return values[0] - series[1][0]
        return -correlation(*series)


@dataclass(frozen=True)
class Claim:
    """What the paper says (`says`, in our words), where, and the checks that decide it."""

    id: str
    where: str
    says: str
    checks: tuple[Check, ...]

    @classmethod
    def read(cls, spec: dict) -> Claim:
        return cls(**{**spec, "checks": tuple(Check.read(check) for check in spec["checks"])})

    @property
    def tables(self) -> list[str]:
        """The tables that the checks read."""
        return sorted({table for check in self.checks for table, _ in check.rows})


@dataclass(frozen=True)
class Verdict:
    """A check's outcome: its status, and the mean margin, the noise and the number of seeds that it rests on."""

    status: str
    margin: float | None = None
    noise: float | None = None
    seeds: int = 0


def judge(check: Check, values: Values) -> Verdict:
    """Put a check to numbers. Seeds in which one of its numbers is missing are left out.

    Raises `ValueError` where two rows list different numbers of seeds: their values could not be paired.
    """
    lists = {cell: values.get(cell) for cell in check.cells}
    if any(not found for found in lists.values()):
        return Verdict(NOT_RUN)
    if len({len(found) for found in lists.values()}) > 1:
        raise ValueError(f"{check}: rows with different numbers of seeds")
    seeds = [dict(zip(lists, column, strict=True)) for column in zip(*lists.values(), strict=True)]
    margins = [check.margin(seed) for seed in seeds if None not in seed.values()]
    if not margins:
        return Verdict(NOT_RUN)
    margin, noise = fmean(margins), max(ROUNDING, stdev(margins) if len(margins) > 1 else 0.0)
    status = (
        HOLDS if margin >= noise - SLACK else FAILS if margin <= SLACK - noise else WITHIN_NOISE
    )
    return Verdict(status, margin, noise, len(margins))


def evaluate(claim: Claim, values: Values) -> tuple[str, list[Verdict]]:
    """A claim's status and the verdict on each of its checks."""
    verdicts = [judge(check, values) for check in claim.checks]
    found = {verdict.status for verdict in verdicts}
    return next(
        (status for status in (FAILS, WITHIN_NOISE, HOLDS) if status in found), NOT_RUN
    ), verdicts


def published(tables: Mapping) -> dict[tuple[str, str, str], list[float]]:
    """The paper's own numbers of a study's `tables`, in the form that `evaluate` takes: as if of one seed."""
    return {
        (table.id, row.id, metric): [value]
        for table in tables.values()
        for row in table.rows
        for metric, value in row.paper.items()
    }


def cells(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(name.split("/", 1)) for name in names)


def parts(metric: str) -> list[str]:
    """`APf-APr` -> [`APf`, `APr`]; an entry `M[A>B]`, whose names may hold a hyphen, is one."""
    return [metric] if metric.startswith("M[") else metric.split("-")


def read(seed: Mapping[tuple[str, str, str], float], row: tuple[str, str], metric: str) -> float:
    first, *rest = (seed[(*row, name)] for name in parts(metric))
    return first - sum(rest)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two is constant."""
    da, db = [x - fmean(a) for x in a], [x - fmean(b) for x in b]
    scale = (sum(x * x for x in da) * sum(x * x for x in db)) ** 0.5
    return sum(x * y for x, y in zip(da, db, strict=True)) / scale if scale else 0.0
