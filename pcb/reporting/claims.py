"""Verdicts on the paper's claims, by the published numbers and by ours, as JSON values for a page.

The page of a table shows the claims that its own runs decide. The site and the page of findings
show all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from pcb.formatting import number
from pcb.reporting import style
from pcb.reporting.results import Results
from pcb.study import Study
from pcb.study.claims import (
    DIRECTION,
    FAILS,
    GROUPS,
    HOLDS,
    NO_SUCH_CLASS,
    NOT_COMPARABLE,
    NOT_JUDGED,
    NOT_PRINTED,
    NOT_RUN,
    PARTLY,
    SIZE,
    WITHIN_NOISE,
    Check,
    Claim,
    Verdict,
    evaluate,
    evaluate_published,
    judge,
    operands,
    published,
)
from pcb.study.study import BIAS_METRICS

if TYPE_CHECKING:
    import numpy as np

    from pcb.study import Row

# Label column and label -> words, where the label needs its column's name.
AS_WORDS = {
    ("PCB", "✓"): "with PCB",
    ("PCB", "✗"): "without",
    ("Regu.", "N/A"): "no regulariser",
    ("Paradigm", "N/A"): "no paradigm",
}
# All verdicts, in the order of pages.
VERDICTS = (
    HOLDS,
    PARTLY,
    WITHIN_NOISE,
    FAILS,
    NOT_COMPARABLE,
    NO_SUCH_CLASS,
    NOT_PRINTED,
    NOT_RUN,
    NOT_JUDGED,
)
# Values by (table, row, metric), one for each seed; None where it is missing.
Measured = dict[tuple[str, str, str], list[float | None]]
Resampled = dict[tuple[str, str, str], "list[np.ndarray | None]"]


def verdicts(results: Results, target: str | None = None, protocol: str = "lvis") -> list[dict]:
    """Judge all claims, or those that the runs of one table or figure decide alone.

    Args:
        results: The results.
        target: Table or figure; None means all claims.
        protocol: The rule by which detections were scored.

    Returns:
        For each claim its id, `group`, `kind`, `where`, `quote`, `statement`, `tables`, `unjudged`;
        `cause` where it fails at the scale of the cause; `comparable`; `ours` and `paper`, each
        with its `verdict` and the `counts` of its checks by verdict; and `checks`, each with
        `text`, `differences` (their number), `operands` (`operands_json`) and what `ours` and
        `paper` are: verdict, margin and, of ours, `low` and `high`, `seeds`, and whether the
        interval covers the sampling of `images`.
    """
    study = results.study
    claims = [c for c in study.claims if target is None or decides(study, target, c)]
    paper = published(study.tables)
    ours, resampled = measured(results, claims, protocol)
    return [entry(results, claim, paper, ours, resampled) for claim in claims]


def decides(study: Study, target: str, claim: Claim) -> bool:
    """Whether a claim is about a table and needs no run that is not a row of it."""
    here = {(row.run, row.variant) for row in study.tables[target].rows}
    rows = rows_of(study)
    needed = {(rows[row].run, rows[row].variant) for check in claim.checks for row in check.rows}
    return target in claim.tables and needed <= here


def rows_of(study: Study) -> dict[tuple[str, str], Row]:
    """The rows of all tables by (table, row)."""
    return {(table.id, row.id): row for table in study.tables.values() for row in table.rows}


def measured(
    results: Results, claims: Sequence[Claim], protocol: str = "lvis"
) -> tuple[Measured, Resampled]:
    """Our numbers for some claims, in the form that `pcb.study.claims.evaluate` takes.

    Returns:
        The values of all cells that the claims read, and the same on resamples of the images.
    """
    rows, seeds = rows_of(results.study), results.study.seeds
    ours: Measured = {}
    resampled: Resampled = {}
    for cell in dict.fromkeys(c for claim in claims for check in claim.checks for c in check.cells):
        row, metric = rows[cell[:2]], cell[2]
        if metric.startswith("M["):
            ours[cell] = [matrix_entry(results, row.run, seed, metric) for seed in seeds]
            continue
        ours[cell], resampled[cell] = of_row(results, row, metric, protocol)
    return ours, resampled


def of_row(results: Results, row: Row, metric: str, protocol: str) -> tuple[list, list]:
    """A metric of a row at every seed, and the same on resamples of the images."""
    rule = "lvis" if metric in BIAS_METRICS else protocol  # the matrix has no protocol
    seeds = results.study.seeds
    values = [results.values(row.run, seed, row.variant, rule) or {} for seed in seeds]
    arrays = [results.resampled(row.run, seed, row.variant, rule) or {} for seed in seeds]
    return [found.get(metric) for found in values], [found.get(metric) for found in arrays]


def difference(
    results: Results, row: Row, base: Row, metric: str, protocol: str = "lvis"
) -> Verdict:
    """By how much a row has more of a metric than another, paired over seeds and images.

    Returns:
        The mean over seeds as `margin`, with its 95 % interval; `holds` where that is above 0.
    """
    check = Check("higher", (metric,), (("", row.id), ("", base.id)))
    values: Measured = {}
    resampled: Resampled = {}
    for cell, operand in zip(check.cells, (row, base), strict=True):
        values[cell], resampled[cell] = of_row(results, operand, metric, protocol)
    return judge(check, values, resampled)


def matrix_entry(results: Results, run: str, seed: int, metric: str) -> float | None:
    """An entry `M[A>B]` of a run's confusion matrix, in percent; None without such classes."""
    confusion = results.confusion(run, seed)
    classes = metric[2:-1].split(">")
    if confusion is None or not set(classes) <= set(confusion.names):
        return None
    i, j = map(confusion.names.index, classes)
    return 100 * float(confusion.matrix[i, j]) if confusion.seen[i] else None


def entry(
    results: Results, claim: Claim, paper: dict, ours: Measured, resampled: Resampled
) -> dict:
    """A claim with its checks and the verdicts on both sets of numbers."""
    study, rows = results.study, rows_of(results.study)
    runs = {rows[row].run for check in claim.checks for row in check.rows}
    comparable = all(results.release(study.experiments[run].dataset) for run in runs)
    status, judged = evaluate(claim, ours, resampled, comparable)
    printed, judged_printed = evaluate_published(claim, paper)
    checks: list[dict] = [
        {
            "text": str(check),
            "label": label(check, study),
            "differences": 1 if check.form == "opposed" else count_differences(check),
            "operands": operands_json(check, paper, ours),
            "ours": verdict_json(
                ours_, NO_SUCH_CLASS if lacks_classes(results, check) else NOT_RUN
            ),
            "paper": verdict_json(paper_, NOT_PRINTED),
        }
        for check, ours_, paper_ in zip(claim.checks, judged, judged_printed, strict=True)
    ]
    reasons = {check["ours"]["verdict"] for check in checks}
    cause = claim.cause
    return {
        "id": claim.id,
        "group": claim.group,
        "kind": claim.kind,
        "where": claim.where,
        "quote": claim.quote,
        "statement": claim.statement,
        "unjudged": claim.unjudged,
        "tables": claim.tables,
        "comparable": comparable,
        "cause": cause if cause and status == FAILS and is_of(study, cause) else None,
        "checks": checks,
        "ours": {
            "verdict": NO_SUCH_CLASS if reasons == {NO_SUCH_CLASS} else status,
            "counts": counts(check["ours"]["verdict"] for check in checks),
            "provisional": any(check["ours"]["seeds"] == 1 for check in checks),
        },
        "paper": {
            "verdict": NOT_PRINTED if printed == NOT_RUN else printed,
            "counts": counts(check["paper"]["verdict"] for check in checks),
        },
    }


def operands_json(check: Check, paper: dict, ours: Measured) -> list[dict]:
    """The numbers that a check compares, in its order; none of a correlation.

    Returns:
        Of each row and metric the `cell` that its first number is in (`table02/v05-rfs-pcb/AP`;
        None of an entry of a matrix, which no table shows), and its value on `ours` (mean over
        seeds) and on the `paper`'s numbers, None where one is missing.
    """
    if check.form == "opposed":
        return []
    out = []
    for row in check.rows:
        for metric in check.metrics:
            names = operands(metric)
            cells = [(*row, name) for name in names]
            of_matrix = metric.startswith("M[")
            out.append(
                {
                    "cell": None if of_matrix else "/".join(cells[0]),
                    "ours": combined([mean(ours.get(cell)) for cell in cells]),
                    "paper": combined([mean(paper.get(cell)) for cell in cells]),
                }
            )
    return out


def mean(values: Sequence[float | None] | None) -> float | None:
    """The mean over the seeds that have a value; None without one."""
    found = [value for value in values or () if value is not None]
    return fmean(found) if found else None


def combined(values: Sequence[float | None]) -> float | None:
    """A value, or the difference of two; None where one is missing."""
    found = [value for value in values if value is not None]
    return None if len(found) < len(values) else found[0] - sum(found[1:])


def label(check: Check, study: Study) -> str:
    """A check in the words of its tables: `Table 2, LVIS v0.5, RFS, AP: with PCB > without`.

    Labels that all rows share stand before, where the rows are of one table.
    """
    rows = rows_of(study)
    labels = [
        [AS_WORDS.get((column, text), text) for column, text in rows[row].labels.items()]
        for row in check.rows
    ]
    metrics = [" − ".join(map(metric_name, operands(metric))) for metric in check.metrics]
    targets = list(dict.fromkeys(table for table, _ in check.rows))
    if len(targets) > 1:
        names = [
            f"{number(table)} {' · '.join(texts)}"
            for (table, _), texts in zip(check.rows, labels, strict=True)
        ]
        return check.text(names, metrics)
    shared = [len(set(column)) == 1 for column in zip(*labels, strict=True)]
    if len(labels) == 1:
        shared = [True] * (len(shared) - 1) + [False]
    common = [text for text, same in zip(labels[0], shared, strict=True) if same]
    own = [[t for t, same in zip(texts, shared, strict=True) if not same] for texts in labels]
    text = check.text([" · ".join(texts) for texts in own], metrics)
    before, _, after = text.partition(": ")
    where = ", ".join([number(targets[0]), *common])
    return f"{where}, {before}: {after}" if after else f"{where}, {text}"


def metric_name(metric: str) -> str:
    """A metric as text, without the arrow that marks less as better."""
    return style.name(metric).removesuffix(" ↓")


def is_of(study: Study, cause: dict[str, str]) -> bool:
    """Whether a cause was found at this scale."""
    return cause["scale"] == study.scale["name"]


def count_differences(check: Check) -> int:
    """How many inequalities a check consists of."""
    return len(check.differences(dict.fromkeys(check.cells, 0.0)))


def counts(found: Iterable[str]) -> dict[str, int]:
    """How often each verdict occurs, in the order of `VERDICTS`."""
    number = Counter(found)
    return {verdict: number[verdict] for verdict in VERDICTS if number[verdict]}


def lacks_classes(results: Results, check: Check) -> bool:
    """Whether a check names two classes, was run, and the data set does not have them."""
    if check.form != "taken":
        return False
    names = check.metrics[0][2:-1].split(">")
    runs = {rows_of(results.study)[row].run for row in check.rows}
    found = [results.confusion(run, seed) for run in runs for seed in results.study.seeds]
    return any(c is not None and not set(names) <= set(c.names) for c in found)


def verdict_json(verdict: Verdict, missing: str) -> dict:
    """A verdict as JSON values; `missing` replaces `not run`."""
    return {
        "verdict": missing if verdict.status == NOT_RUN else verdict.status,
        "margin": verdict.margin,
        "low": verdict.low,
        "high": verdict.high,
        "seeds": verdict.seeds,
        "images": verdict.images,
    }


def count_verdicts(claims: Sequence[dict]) -> dict:
    """How many claims and checks of each kind have each verdict, on our numbers and the paper's.

    Returns:
        For each of `direction` and `size`: `claims` and `checks` (their numbers), and of `ours` and
        `paper` the same two by verdict, for instance `["direction"]["ours"]["checks"]["holds"]`.
    """
    out: dict = {}
    for kind in (DIRECTION, SIZE):
        of_kind = [claim for claim in claims if claim["kind"] == kind]
        checks = [check for claim in of_kind for check in claim["checks"]]
        out[kind] = {
            "claims": len(of_kind),
            "checks": len(checks),
            **{
                source: {
                    "claims": counts(claim[source]["verdict"] for claim in of_kind),
                    "checks": counts(check[source]["verdict"] for check in checks),
                }
                for source in ("ours", "paper")
            },
        }
    return out


def grouped(claims: Sequence[dict]) -> list[dict]:
    """The claims by group, in the order of `GROUPS`.

    Returns:
        Of each group with claims its `id`, `title` and `claims`; how many of them have which
        verdict on our numbers (`counts`) and on the paper's (`paper`); and how many of their
        `checks` have which verdict on ours.
    """
    by_group = {key: [claim for claim in claims if claim["group"] == key] for key in GROUPS}
    return [
        {
            "id": key,
            "title": GROUPS[key],
            "claims": members,
            "counts": counts(claim["ours"]["verdict"] for claim in members),
            "paper": counts(claim["paper"]["verdict"] for claim in members),
            "checks": counts(c["ours"]["verdict"] for claim in members for c in claim["checks"]),
        }
        for key, members in by_group.items()
        if members
    ]
