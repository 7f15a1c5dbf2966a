"""Two folders of results side by side, by table cell and by claim: `pcb compare A B`.

A folder is a results folder, which has study.json, or a site: published, or that of a results
folder. Values are compared on the seeds that both have. Where both are results folders with
bootstraps over the same validation images, a difference has its 95 % interval, paired over seeds
and images; else, with several seeds, the interval is of the seeds alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pcb.errors import UserError
from pcb.formatting import counted, signed
from pcb.reporting import style
from pcb.reporting.claims import verdicts
from pcb.reporting.results import Results, published_claims
from pcb.reporting.tables import OURS
from pcb.study import Paths, load_study
from pcb.study.claims import interval

if TYPE_CHECKING:
    import numpy as np

STUDY, SITE = "study.json", "data/metrics.csv"  # in a results folder, in a site
TOLERANCE = 0.05  # points: half of the last digit that tables print
SHOWN = 20  # differences that the text lists
Evaluation = tuple[str, str]  # run, variant


@dataclass(frozen=True)
class Row:
    """A row of a table: its id and labels, and the run and variant behind it."""

    id: str
    label: str
    of: Evaluation


@dataclass(frozen=True)
class Side:
    """One of the two folders.

    Attributes:
        name: As it was given.
        seeds: Seeds that any run has.
        tables: Rows and metrics by table.
        values: Values by (run, variant), metric and seed.
        claims: Verdict on our numbers by claim.
        statements: What each claim states.
        resampled: Returns the metrics of a (run, variant) and seed on resamples of the images.
        images: Returns what the validation images of a run are; pairs need equal ones.
    """

    name: str
    seeds: list[int]
    tables: dict[str, tuple[list[Row], list[str]]]
    values: dict[Evaluation, dict[str, dict[int, float]]]
    claims: dict[str, str]
    statements: dict[str, str]
    resampled: Callable[[Evaluation, int], dict[str, np.ndarray] | None] = lambda *_: None
    images: Callable[[str], object] = lambda run: None


@dataclass(frozen=True)
class Cell:
    """A cell of a table on both sides.

    Attributes:
        table: Table, such as `table02`.
        row: Id of the row.
        label: Its labels.
        metric: The metric.
        a: Mean of A over the common seeds; None where A has none.
        b: The same of B.
        difference: b − a.
        low: Lower limit of its 95 % interval; None without one.
        high: Upper limit.
        seeds: The common seeds.
        images: Whether the interval covers the sampling of validation images.
        state: `equal`, `differs`, `only in A`, `only in B` or `no common seed`.
    """

    table: str
    row: str
    label: str
    metric: str
    a: float | None = None
    b: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()
    images: bool = False
    state: str = "equal"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        a, b: Names of the folders.
        tolerance: Points up to which two values count as equal.
        common: Whether only what both have counts.
        cells: All cells that any side has.
        claims: Of each claim whose verdicts differ its `id`, `statement`, `a` and `b`.
        judged: Number of claims that both judge.
    """

    a: str
    b: str
    tolerance: float
    common: bool
    cells: list[Cell] = field(default_factory=list)
    claims: list[dict] = field(default_factory=list)
    judged: int = 0

    @property
    def different(self) -> list[Cell]:
        """The cells that count as different, largest difference first."""
        kept = [c for c in self.cells if c.state == "differs" or not (self.common or c.seeds)]
        return sorted(kept, key=lambda cell: -abs(cell.difference or 0.0))

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.different and not self.claims


def compare(
    a: str | Path, b: str | Path, tolerance: float = TOLERANCE, common: bool = False
) -> Comparison:
    """Compare two folders of results.

    Args:
        a: The first.
        b: The second; differences are b − a.
        tolerance: Points up to which two values count as equal.
        common: Leave out what only one of them has, claims with other seeds included.

    Raises:
        UserError: A folder holds no results, or they have nothing in common.
    """
    first, second = read(a), read(b)
    out = Comparison(first.name, second.name, tolerance, common)
    for table in dict.fromkeys([*first.tables, *second.tables]):
        out.cells.extend(table_cells(table, first, second, tolerance))
    if not any(cell.seeds for cell in out.cells):
        raise UserError(
            f"{first.name} and {second.name} have no measured cell in common",
            "compare results of one study with a common seed; of a results folder whose data are "
            "not on this machine, compare the site in it",
        )
    shared = [key for key in first.claims if key in second.claims]
    comparable = not common or first.seeds == second.seeds
    out.claims.extend(
        {
            "id": key,
            "statement": first.statements[key],
            "a": first.claims[key],
            "b": second.claims[key],
        }
        for key in shared
        if comparable and first.claims[key] != second.claims[key]
    )
    return replace(out, judged=len(shared) if comparable else 0)


# Reading ---------------------------------------------------------------------------------------


def read(folder: str | Path) -> Side:
    """Read a folder. Raises `UserError` where it holds no results."""
    path = Path(folder).expanduser()
    fix = "name a results folder such as results/mini, a copy by `pcb publish`, or a site"
    if (path / STUDY).is_file():
        return of_results(str(folder), path)
    if (path / SITE).is_file():
        return of_site(str(folder), path)
    what = f"{folder} has neither {STUDY} nor {SITE}"
    if not path.is_dir():
        what = f"{folder} {'is not a folder' if path.exists() else 'does not exist'}"
    if found := near(path):
        fix = f"name {'one of these folders' if len(found) > 1 else 'the folder'} instead: "
        fix += ", ".join(map(str, found))
    raise UserError(what, fix)


def near(path: Path) -> list[Path]:
    """The folders with results below a path, else those above it."""
    below = [p if holds_results(p) else p / "site" for p in sorted(path.glob("*"))]
    found = [p for p in below if holds_results(p)]
    return found or [p for p in (path.parent, path.parent.parent) if holds_results(p)]


def holds_results(path: Path) -> bool:
    """Whether a path is a results folder, a site, or a published copy of one."""
    return (path / STUDY).is_file() or (path / SITE).is_file()


def of_results(name: str, path: Path) -> Side:
    """A results folder, also one that was moved or copied since it was written."""
    study = load_study(path / "study.json")
    study.paths = Paths(path)  # its data are looked up where they were
    results = Results(study)
    values: dict[Evaluation, dict[str, dict[int, float]]] = {}
    for run in study.runs():
        for seed in study.seeds:
            metrics = results.metrics(run, seed)
            for variant, found in metrics["variants"].items() if metrics else ():
                for metric, value in found.items():
                    if value is not None:
                        of = values.setdefault((run, variant), {})
                        of.setdefault(metric, {})[seed] = value
    claims = verdicts(results)
    return Side(
        name,
        measured_seeds(values),
        {
            table.id: (
                [
                    Row(row.id, " · ".join(row.labels.values()), (row.run, row.variant))
                    for row in table.rows
                ],
                list(table.columns),
            )
            for table in study.tables.values()
        },
        values,
        {claim["id"]: claim["ours"]["verdict"] for claim in claims},
        {claim["id"]: claim["statement"] for claim in claims},
        lambda of, seed: results.resampled(of[0], seed, of[1]),
        lambda run: study.split_job(study.experiments[run].dataset, "val"),
    )


def of_site(name: str, path: Path) -> Side:
    """A site, from its data files: it has no bootstraps."""
    values: dict[Evaluation, dict[str, dict[int, float]]] = {}
    try:
        for line in read_csv(path / "data/metrics.csv"):
            of_metric = values.setdefault((line["run"], line["variant"]), {})
            of_metric.setdefault(line["metric"], {})[int(line["seed"])] = float(line["value"])
        claims = published_claims(path / "data/claims.json")
        tables = {
            file.stem: table_of(list(read_csv(file)))
            for file in sorted(path.glob("tables/*.csv"))
            if file.stem.startswith(("table", "figure"))
        }
        return Side(
            name,
            measured_seeds(values),
            tables,
            values,
            {claim["id"]: claim["ours"]["verdict"] for claim in claims},
            {claim["id"]: claim["statement"] for claim in claims},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{name} cannot be read as a site: {type(error).__name__}: {error}",
            "restore it, or run `pcb publish` again",
        ) from error


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def table_of(lines: Sequence[dict[str, str]]) -> tuple[list[Row], list[str]]:
    """Rows and metrics of a table's CSV file, in which labels stand before the column `id`."""
    columns = list(lines[0]) if lines else []
    labels = columns[: columns.index("id")] if columns else []
    rows = [
        Row(line["id"], " · ".join(line[k] for k in labels), (line["run"], line["variant"]))
        for line in lines
    ]
    prefix = f"{OURS} "
    return rows, [c.removeprefix(prefix) for c in columns if c.startswith(prefix)]


def measured_seeds(values: dict[Evaluation, dict[str, dict[int, float]]]) -> list[int]:
    """The seeds that any value has."""
    return sorted({seed for of in values.values() for seeds in of.values() for seed in seeds})


# Cells -----------------------------------------------------------------------------------------


def table_cells(table: str, a: Side, b: Side, tolerance: float) -> Iterator[Cell]:
    """The cells of a table that any side has."""
    rows_a, metrics_a = a.tables.get(table, ([], []))
    rows_b, metrics_b = b.tables.get(table, ([], []))
    of_a, of_b = ({row.id: row for row in rows} for rows in (rows_a, rows_b))
    for row in {**of_b, **of_a}.values():
        for metric in dict.fromkeys([*metrics_a, *metrics_b]):
            found = [
                side.values.get(of[row.id].of, {}).get(metric, {}) if row.id in of else {}
                for side, of in ((a, of_a), (b, of_b))
            ]
            if any(found):
                named = Cell(table, row.id, row.label, metric)
                yield cell(named, found[0], found[1], tolerance, a, b, of_a.get(row.id, row).of)


def cell(
    named: Cell,
    of_a: dict[int, float],
    of_b: dict[int, float],
    tolerance: float,
    a: Side,
    b: Side,
    evaluation: Evaluation,
) -> Cell:
    """Compare the values of a cell by seed."""
    about = {key: getattr(named, key) for key in ("table", "row", "label", "metric")}
    seeds = tuple(seed for seed in of_a if seed in of_b)
    if not seeds:
        state = "no common seed" if of_a and of_b else "only in A" if of_a else "only in B"
        means = {name: fmean(of.values()) for name, of in (("a", of_a), ("b", of_b)) if of}
        return Cell(**about, **means, state=state)
    differences = [of_b[seed] - of_a[seed] for seed in seeds]
    resampled = resampled_difference(a, b, evaluation, named.metric, seeds)
    low = high = None
    if len(seeds) > 1 or resampled is not None:
        low, high = interval(differences, resampled)
    mean = fmean(differences)
    return Cell(
        **about,
        a=fmean(of_a[seed] for seed in seeds),
        b=fmean(of_b[seed] for seed in seeds),
        difference=mean,
        low=low,
        high=high,
        seeds=seeds,
        images=resampled is not None,
        state="equal" if max(map(abs, differences)) <= tolerance else "differs",
    )


def resampled_difference(
    a: Side, b: Side, of: Evaluation, metric: str, seeds: Sequence[int]
) -> np.ndarray | None:
    """(B,) mean difference over seeds on resamples of the images; None where they do not pair."""
    if a.images(of[0]) is None or a.images(of[0]) != b.images(of[0]):
        return None
    total = None
    for seed in seeds:
        arrays = [(side.resampled(of, seed) or {}).get(metric) for side in (a, b)]
        if arrays[0] is None or arrays[1] is None or len(arrays[0]) != len(arrays[1]):
            return None
        change = arrays[1] - arrays[0]
        total = change if total is None else total + change
    if total is None:
        return None
    mean = total / len(seeds)
    finite = mean[mean == mean]  # without resamples that show no class of a group
    return finite if len(finite) > 1 else None


# Text ------------------------------------------------------------------------------------------


def report(found: Comparison, everything: bool = False) -> str:
    """The comparison as text: a line for each table, then differences and claims."""
    seeds = sorted({seed for c in found.cells for seed in c.seeds})
    paragraphs = [
        f"A  {found.a}\nB  {found.b}\n"
        f"compared on the seeds that both have: {', '.join(map(str, seeds))}",
        tables_text(found),
    ]
    measured = [c for c in found.different if c.seeds]
    if measured:
        shown = measured if everything else measured[:SHOWN]
        lines = [cell_line(c) for c in shown]
        if rest := len(measured) - len(shown):
            lines.append(f"  and {rest} more: --all lists them")
        paragraphs.append("\n".join(["B − A where they differ, largest first:", *lines]))
    if found.claims:
        lines = [f"  {c['id']}: {c['a']} → {c['b']}. {c['statement']}" for c in found.claims]
        paragraphs.append("\n".join(["claims with another verdict:", *lines]))
    paragraphs.append(conclusion(found))
    return "\n\n".join(paragraphs)


def tables_text(found: Comparison) -> str:
    """How many cells of each table are equal, differ or stand on one side alone."""
    lines = [f"{'':<10}{'equal':>7}{'differ':>8}{'only A':>8}{'only B':>8}   largest difference"]
    for table in dict.fromkeys(c.table for c in found.cells):
        cells = [c for c in found.cells if c.table == table]
        count = [sum(c.state == s for c in cells) for s in ("equal", "differs")]
        count += [sum(not c.seeds and getattr(c, side) is not None for c in cells) for side in "ab"]
        measured = [c for c in cells if c.difference]
        largest = max(measured, key=lambda c: abs(c.difference or 0.0), default=None)
        text = "" if largest is None else f"{signed(largest.difference or 0.0, 2)} {largest.metric}"
        where = f", {largest.row}" if largest else ""
        lines.append(
            f"{table:<10}{count[0]:>7}{count[1]:>8}{count[2]:>8}{count[3]:>8}   {text}{where}"
        )
    return "\n".join(lines)


def cell_line(found: Cell) -> str:
    """A cell on a line: `table02  RFS · ✓  AP  26.6 → 26.9  +0.28 (−0.51 to +1.02)`."""
    limits = ""
    if found.low is not None and found.high is not None:
        limits = f" ({signed(found.low, 2)} to {signed(found.high, 2)})"
        if found.low * found.high > 0:
            limits += " outside noise"
    return (
        f"  {found.table}  {found.label}  {style.name(found.metric)}  {found.a:.2f} → {found.b:.2f}"
        f"  {signed(found.difference or 0.0, 2)}{limits}"
    )


def conclusion(found: Comparison) -> str:
    """What follows, in a sentence."""
    cells = sum(bool(c.seeds) for c in found.cells)
    within = f"within {found.tolerance:g}"
    if found.equal:
        judged = counted(found.judged, "claim has", "claims have")
        claims = f", {judged} the same verdict" if found.judged else ""
        return f"equal: {cells} cells {within}{claims}"
    parts = []
    if measured := sum(bool(c.seeds) for c in found.different):
        parts.append(f"{measured} of {cells} cells are not {within}")
    if missing := sum(not c.seeds for c in found.different):
        alone = counted(missing, "cell is", "cells are")
        parts.append(f"{alone} on one side alone (--common leaves those out)")
    if found.claims:
        parts.append(f"{len(found.claims)} of {found.judged} claims have another verdict")
    return f"different: {'; '.join(parts)}"


def as_data(found: Comparison) -> dict:
    """The comparison as JSON values."""
    return {"equal": found.equal, **asdict(found)}
