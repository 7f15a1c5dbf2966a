"""The paper's claims, judged on numbers. Each check is one inequality.

A check has one of these forms (`table05/g0.9` names a table's row; a metric may be a difference,
`APf-APr`):

    {metric: APr, higher: ROW, lower: ROW, by: X}   higher - lower is above 0, or with `by` >= X
    {metric: AP, close: [ROW, ...], within: X}      largest - smallest is at most X
    {metric: APr, increasing: [ROW, ...]}           each row is above the one before
    {metric: AP, highest: ROW, among: [ROW, ...]}   the row is above all others, or with `by` >= X
    {metric: APf, sometimes: [ROW, ...], over: [ROW, ...]}
                                                    some row is above its counterpart
    {opposed: [AP, PwB], among: [ROW, ...]}         over the rows the metrics' correlation is < 0
    {metric: Mrf-Mfr, above: X, row: ROW}           the metric is above X in that row
    {metric: APf-APr, near: V, within: X, row: ROW} it differs from V by at most X
    {taken: A, for: B, row: ROW}                    the model predicts class A as B more often than
                                                    the reverse

A check is of *size* where the paper prints the number of points (`by` above 0, `near` another value
than 0), else of *direction*; X of the latter is a tolerance of ours. All checks of a claim are of
one kind. Sizes are judged only on data that were found equal to an LVIS release.

A check consists of one or more differences that are positive where it holds; its margin is the
smallest of them, for `sometimes` the largest. X counts as printed, to one decimal. The verdict:

    holds         the 95 % interval of the margin is above 0
    fails         it is below 0
    within noise  it contains 0
    not run       a number is missing

`interval` has the statistics: sampling of images (paired bootstrap) and, with several seeds,
training. Published numbers have no interval; they are judged by what rounding allows: beyond half
of the last digit printed a check holds or fails. So are measured ones of a single seed for which
there is no bootstrap.

A claim holds if all of its checks that could be judged hold, and fails if one fails. Where none
fails and some are within noise, it partly holds if another check holds, else it is within noise.
Without a judged check it is not run. `counts` says how many checks do what.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from pcb.study.study import Table

HOLDS, FAILS, WITHIN_NOISE, NOT_RUN = "holds", "fails", "within noise", "not run"
PARTLY = "partly holds"  # of a claim alone: some checks hold, the others are within noise
# What a page shows instead of NOT_RUN where that is the reason.
NOT_PRINTED, NO_SUCH_CLASS = "not printed", "no such class here"
# Sizes on other data than the paper's, and claims for which no run exists.
NOT_COMPARABLE, NOT_JUDGED = "not comparable", "not judged"
DIRECTION, SIZE = "direction", "size"
GROUPS = {
    "core": "Core: PCB on base methods",
    "ablation": "Ablation: parts, hyper-parameters and steps of PCB",
    "calibration": "Calibration after training, and pairwise bias",
    "own": "Claims of an overlay",
}
ROUNDING = 0.05
TOLERANCE = 1e-9  # 28.6 - 20.6 is not 8.0 in binary
CONFIDENCE = 0.95

Cell = tuple[str, str, str]  # table, row, metric
Values = Mapping[Cell, "Sequence[float | None] | None"]  # one value per seed
Replicates = Mapping[Cell, "Sequence[np.ndarray | None] | None"]  # (B,) per seed


@dataclass(frozen=True)
class Check:
    """One inequality.

    Attributes:
        form: `higher`, `close`, `increasing`, `highest`, `sometimes`, `opposed`, `above`, `near` or
            `taken`.
        metrics: One metric, or two (`opposed`, `taken`). Those of `taken` are entries of a
            confusion matrix in percent, `M[A>B]` and `M[B>A]`.
        rows: (table, row) pairs. `sometimes` has first the rows, then their counterparts.
        threshold: X, where the form has one.
        value: V of `near`.
    """

    form: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    threshold: float | None = None
    value: float = 0.0

    @classmethod
    def read(cls, spec: dict) -> Check:
        """Make a check from its mapping in configs/paper.yaml."""
        metric = (spec.get("metric", ""),)
        if "higher" in spec:
            return cls("higher", metric, row_ids(spec["higher"], spec["lower"]), spec.get("by"))
        if "close" in spec:
            return cls("close", metric, row_ids(*spec["close"]), spec["within"])
        if "increasing" in spec:
            return cls("increasing", metric, row_ids(*spec["increasing"]))
        if "highest" in spec:
            rows = [spec["highest"], *(row for row in spec["among"] if row != spec["highest"])]
            return cls("highest", metric, row_ids(*rows), spec.get("by"))
        if "sometimes" in spec:
            return cls("sometimes", metric, row_ids(*spec["sometimes"], *spec["over"]))
        if "above" in spec:
            return cls("above", metric, row_ids(spec["row"]), spec["above"])
        if "near" in spec:
            return cls("near", metric, row_ids(spec["row"]), spec["within"], spec["near"])
        if "taken" in spec:
            a, b = spec["taken"], spec["for"]
            return cls("taken", (f"M[{a}>{b}]", f"M[{b}>{a}]"), row_ids(spec["row"]))
        return cls("opposed", tuple(spec["opposed"]), row_ids(*spec["among"]))

    @property
    def kind(self) -> str:
        """`size` where the paper prints how many points, else `direction`."""
        sized = self.form in ("higher", "highest") and (self.threshold or 0.0) > 0
        return SIZE if sized or (self.form == "near" and self.value) else DIRECTION

    @property
    def cells(self) -> list[Cell]:
        """Every (table, row, metric) that the check reads."""
        names = [name for metric in self.metrics for name in operands(metric)]
        return [(*row, name) for row in self.rows for name in names]

    def __str__(self) -> str:
        return self.text([f"{table}/{row}" for table, row in self.rows], self.metrics)

    def text(self, names: Sequence[str], metrics: Sequence[str]) -> str:
        """The check with names for its rows and metrics."""
        metric, half = metrics[0], len(names) // 2
        match self.form:
            case "higher":
                return f"{metric}: {names[0]} {self._above(names[1])}"
            case "close":
                return f"{metric}: {', '.join(names)} within {self.threshold:g}"
            case "increasing":
                return f"{metric}: {' < '.join(names)}"
            case "highest":
                return f"{metric}: {names[0]} {self._above(', '.join(names[1:]))}"
            case "sometimes":
                pairs = zip(names[:half], names[half:], strict=True)
                return f"{metric}: " + " or ".join(f"{a} > {b}" for a, b in pairs)
            case "above":
                return f"{metric}: {names[0]} > {self.threshold:g}"
            case "near":
                return f"{metric}: {names[0]} within {self.threshold:g} of {self.value:g}"
            case "taken":
                return f"{metric} > {metrics[1]} in {names[0]}"
        return f"{metric} against {metrics[1]}: correlation < 0 over {', '.join(names)}"

    def _above(self, name: str) -> str:
        """`> B`, or with a threshold `≥ B + 3.5`."""
        if self.threshold is None:
            return f"> {name}"
        sign = "+" if self.threshold > 0 else "−"
        return f"≥ {name}" + (f" {sign} {abs(self.threshold):g}" if self.threshold else "")

    def differences(self, cells: Mapping[Cell, Any]) -> list[Any]:
        """The differences that must be positive: all of them, for `sometimes` one.

        Args:
            cells: Numbers, or arrays of equal shape, of which the differences are then arrays.

        Returns:
            Points; for `opposed`, minus the correlation.
        """
        series = [[value_of(cells, row, metric) for row in self.rows] for metric in self.metrics]
        values, threshold = series[0], self.threshold or 0.0
        required = 0.0 if self.threshold is None else threshold - ROUNDING
        half = len(values) // 2
        match self.form:
            case "higher" | "highest":
                return [values[0] - other - required for other in values[1:]]
            case "close":
                return [threshold + ROUNDING - (a - b) for a, b in permutations(values, 2)]
            case "increasing":
                return [after - before for before, after in pairwise(values)]
            case "sometimes":
                return [a - b for a, b in zip(values[:half], values[half:], strict=True)]
            case "above":
                return [values[0] - threshold]
            case "near":
                off = values[0] - self.value
                return [threshold + ROUNDING - off, threshold + ROUNDING + off]
            case "taken":
                return [values[0] - series[1][0]]
        return [-correlation(*series)]

    def combine(self, differences: Sequence[float]) -> float:
        """The margin, or a limit of its interval, from those of the differences."""
        return max(differences) if self.form == "sometimes" else min(differences)

    def margin(self, cells: Mapping[Cell, float]) -> float:
        """The distance by which numbers satisfy (positive) or miss (negative) the check."""
        return self.combine(self.differences(cells))

    def printed(self, values: Values) -> Check:
        """The check without rows of which a number is missing, where it needs no single row.

        A correlation over the rows that the paper prints is still one; a difference is not.
        """
        if self.form != "opposed":
            return self
        rows = [row for row in self.rows if all(values.get((*row, m)) for m in self.metrics)]
        return replace(self, rows=tuple(rows)) if len(rows) > 2 else self


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        id: Its key.
        where: Section, figure or table of the paper.
        statement: What the paper claims, in our words.
        checks: The inequalities that decide it; none where `unjudged` gives a reason.
        group: A key of `GROUPS`.
        quote: The paper's sentence, shortened by `…`; empty in a study of one's own.
        unjudged: Why no number of this study can decide it; empty where checks do.
        cause: Why it fails, as experiments found it: `text`, the `scale` at which it was found, and
            `experiment`, the path of their results. A person wrote it; pages show it only where the
            claim fails at that scale.
    """

    id: str
    where: str
    statement: str
    checks: tuple[Check, ...]
    group: str = "own"
    quote: str = ""
    unjudged: str = ""
    cause: dict[str, str] | None = None

    @classmethod
    def read(cls, spec: dict) -> Claim:
        """Make a claim from its mapping in configs/paper.yaml."""
        checks = tuple(Check.read(check) for check in spec.get("checks", ()))
        return cls(
            spec["id"],
            spec["where"],
            spec["statement"],
            checks,
            spec.get("group", "own"),
            " ".join(spec.get("quote", "").split()),
            spec.get("unjudged", ""),
            spec.get("cause"),
        )

    def within(self, rows: Container[tuple[str, str]]) -> Claim:
        """The claim with the checks whose rows, as (table, row), are all in the scale."""
        checks = tuple(check for check in self.checks if all(row in rows for row in check.rows))
        if checks or not self.checks:
            return replace(self, checks=checks)
        return replace(self, checks=(), unjudged="No row that decides it is in this scale.")

    @property
    def kind(self) -> str:
        """The kind of its checks: `direction` or `size`."""
        return self.checks[0].kind if self.checks else DIRECTION

    @property
    def tables(self) -> list[str]:
        """The tables that its checks read."""
        return sorted({table for check in self.checks for table, _ in check.rows})


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check.

    Attributes:
        status: The verdict.
        margin: Mean margin over seeds; None where nothing was run.
        low: Lower limit of its 95 % interval; None where there is none.
        high: Upper limit.
        seeds: How many seeds are behind it.
        images: Whether the interval covers the sampling of validation images.
    """

    status: str
    margin: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    images: bool = False


def judge(check: Check, values: Values, replicates: Replicates | None = None) -> Verdict:
    """Judge a check on numbers; seeds in which one of its numbers is missing are ignored.

    Args:
        check: The check.
        values: A number for each seed, by cell.
        replicates: The same on B resamples of the validation images, by cell and seed.

    Raises:
        ValueError: Two rows list different numbers of seeds, so they cannot be paired.
    """
    lists = {cell: values.get(cell) or () for cell in check.cells}
    if not all(lists.values()):
        return Verdict(NOT_RUN)
    if len({len(numbers) for numbers in lists.values()}) > 1:
        raise ValueError(f"{check}: rows with different numbers of seeds")
    count = len(next(iter(lists.values())))
    seeds = [s for s in range(count) if all(lists[cell][s] is not None for cell in lists)]
    if not seeds:
        return Verdict(NOT_RUN)
    by_seed = [check.differences({cell: lists[cell][s] for cell in lists}) for s in seeds]
    differences = list(zip(*by_seed, strict=True))  # differences x seeds
    margin = check.combine([fmean(each) for each in differences])
    resampled = resampled_means(check, replicates or {}, seeds)
    if len(seeds) == 1 and resampled is None:
        low, high = margin - ROUNDING, margin + ROUNDING
        return Verdict(status_of(low + 2 * TOLERANCE, high - 2 * TOLERANCE), margin, seeds=1)
    limits = [
        interval(each, None if resampled is None else resampled[k])
        for k, each in enumerate(differences)
    ]
    low, high = (check.combine(limit) for limit in zip(*limits, strict=True))
    if check.form == "opposed":
        low, high = max(low, -1.0), min(high, 1.0)
    images = resampled is not None
    return Verdict(status_of(low, high), margin, low, high, len(seeds), images)


def resampled_means(
    check: Check, replicates: Replicates, seeds: Sequence[int]
) -> list[np.ndarray] | None:
    """Each difference on each resample of the images, mean over seeds.

    Returns:
        Arrays without the resamples that show no class of a group, and so have no AP of it; None
        without a bootstrap, or where fewer than two resamples are left.
    """
    by_cell = {cell: replicates.get(cell) or () for cell in check.cells}
    if any(len(arrays) <= s or arrays[s] is None for arrays in by_cell.values() for s in seeds):
        return None
    by_seed = [check.differences({cell: by_cell[cell][s] for cell in by_cell}) for s in seeds]
    means = [sum(each) / len(seeds) for each in zip(*by_seed, strict=True)]
    finite = [mean[mean == mean] for mean in means]  # nan differs from itself
    return finite if all(len(mean) > 1 for mean in finite) else None


def interval(differences: Sequence[float], resampled: np.ndarray | None) -> tuple[float, float]:
    """The 95 % interval of a mean difference between two kinds of runs.

    Its variance is the sum of two: that of the seed mean over resamples of the images, and, with
    several seeds, the variance between seeds divided by their number. The limits are those of a
    t-distribution whose degrees of freedom follow from the two by Welch and Satterthwaite. The
    part of the variance between seeds that depends on the images is in both terms, which makes the
    interval wider, never narrower.

    Args:
        differences: One for each seed.
        resampled: (B,) mean over seeds on each resample; None without a bootstrap.
    """
    from scipy.special import stdtrit  # imported here: takes 0.2 s, and a plan needs no interval

    terms = []
    if resampled is not None:
        terms.append((float(resampled.var(ddof=1)), len(resampled) - 1))
    if (n := len(differences)) > 1:
        terms.append((variance(differences) / n, n - 1))
    total = sum(v for v, _ in terms)
    scale = sum(v * v / freedom for v, freedom in terms)
    freedom = total * total / scale if scale else 1.0
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * total**0.5
    return fmean(differences) - reach, fmean(differences) + reach


def status_of(low: float, high: float) -> str:
    """The verdict on an interval; one that only touches 0 contains it."""
    return HOLDS if low > TOLERANCE else FAILS if high < -TOLERANCE else WITHIN_NOISE


def evaluate(
    claim: Claim,
    values: Values,
    replicates: Replicates | None = None,
    comparable: bool = True,
) -> tuple[str, list[Verdict]]:
    """Status of a claim, and the verdict on each of its checks.

    A size that is not `comparable` with the paper's keeps its margin and interval, unjudged.
    """
    if not claim.checks:
        return NOT_JUDGED, []
    verdicts = [judge(check, values, replicates) for check in claim.checks]
    if claim.kind == SIZE and not comparable:
        verdicts = [
            v if v.status == NOT_RUN else replace(v, status=NOT_COMPARABLE) for v in verdicts
        ]
    return overall({verdict.status for verdict in verdicts}), verdicts


def overall(statuses: Container[str]) -> str:
    """The verdict on a claim from those on its checks."""
    decisive = (s for s in (FAILS, WITHIN_NOISE, HOLDS, NOT_COMPARABLE) if s in statuses)
    found = next(decisive, NOT_RUN)
    return PARTLY if found == WITHIN_NOISE and HOLDS in statuses else found


def evaluate_published(claim: Claim, values: Values) -> tuple[str, list[Verdict]]:
    """The same on the paper's own numbers, where a correlation takes the rows that it prints."""
    checks = tuple(check.printed(values) for check in claim.checks)
    return evaluate(replace(claim, checks=checks), values)


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


def value_of(cells: Mapping[Cell, Any], row: tuple[str, str], metric: str) -> Any:
    """Value of a metric, or of a difference of two, in a row."""
    first, *rest = (cells[(*row, name)] for name in operands(metric))
    return first - sum(rest)


def correlation(a: Sequence[Any], b: Sequence[Any]) -> Any:
    """Pearson's r of two series of numbers, or of arrays; 0 where one of the two is constant."""
    da, db = ([x - sum(series) / len(series) for x in series] for series in (a, b))
    scale = (sum(x * x for x in da) * sum(x * x for x in db)) ** 0.5
    product = sum(x * y for x, y in zip(da, db, strict=True))
    return product / (scale + (scale == 0))
