"""Verdicts on the paper's claims, by the published numbers and by ours, as JSON values for a page.

The page of a table shows the claims that its own runs decide. Those that need several tables are on
the index of the site.
"""

from __future__ import annotations

from collections.abc import Sequence

from pcb.reporting.results import Results
from pcb.study import METRICS, Study
from pcb.study.claims import (
    NO_SUCH_CLASS,
    NOT_PRINTED,
    NOT_RUN,
    Check,
    Claim,
    Verdict,
    evaluate,
    published,
)

# Values by (table, row, metric), one for each seed; None where it is missing.
Measured = dict[tuple[str, str, str], list[float | None]]


def verdicts(results: Results, target: str | None = None) -> list[dict]:
    """Judge all claims, or those that the runs of one table or figure decide alone."""
    study = results.study
    claims = [c for c in study.claims if target is None or decides(study, target, c)]
    paper, ours = published(study.tables), measured(results, claims)
    return [entry(claim, paper, ours) for claim in claims]


def decides(study: Study, target: str, claim: Claim) -> bool:
    """Whether a claim is about a table and needs no run that is not a row of it."""
    here = {(row.run, row.variant) for row in study.tables[target].rows}
    rows = {(table, row.id): row for table in claim.tables for row in study.tables[table].rows}
    needed = {(rows[row].run, rows[row].variant) for check in claim.checks for row in check.rows}
    return target in claim.tables and needed <= here


def measured(results: Results, claims: Sequence[Claim]) -> Measured:
    """Our numbers for some claims, in the form that `pcb.study.claims.evaluate` takes."""
    study = results.study
    rows = {(table.id, row.id): row for table in study.tables.values() for row in table.rows}
    out: Measured = {}
    for key, row in rows.items():
        of_seed = [results.values(row.run, seed, row.variant) or {} for seed in study.seeds]
        for metric in METRICS:
            out[*key, metric] = [values.get(metric) for values in of_seed]
    for claim in claims:
        for cell in (cell for check in claim.checks for cell in check.cells):
            table, row_id, metric = cell
            if metric.startswith("M["):
                run = rows[table, row_id].run
                out[cell] = [matrix_entry(results, run, seed, metric) for seed in study.seeds]
    return out


def matrix_entry(results: Results, run: str, seed: int, metric: str) -> float | None:
    """An entry `M[A>B]` of a run's confusion matrix, in percent; None without such classes."""
    confusion = results.confusion(run, seed)
    classes = metric[2:-1].split(">")
    if confusion is None or not set(classes) <= set(confusion.names):
        return None
    i, j = map(confusion.names.index, classes)
    return 100 * float(confusion.matrix[i, j]) if confusion.seen[i] else None


def entry(claim: Claim, paper: dict, ours: Measured) -> dict:
    """A claim with its checks and the verdicts on both sets of numbers."""
    out: dict = {
        "id": claim.id,
        "where": claim.where,
        "statement": claim.statement,
        "tables": claim.tables,
        "checks": [str(check) for check in claim.checks],
    }
    for source, values, missing in (("paper", paper, NOT_PRINTED), ("ours", ours, NOT_RUN)):
        status, judged = evaluate(claim, values)
        reasons = [
            NO_SUCH_CLASS if source == "ours" and lacks_classes(check, ours) else missing
            for check in claim.checks
        ]
        out[source] = {
            "verdict": missing if status == NOT_RUN else status,
            "checks": [
                verdict_json(verdict, reason)
                for verdict, reason in zip(judged, reasons, strict=True)
            ],
        }
    return out


def lacks_classes(check: Check, ours: Measured) -> bool:
    """Whether a check names two classes, was run, and the data set does not have them."""
    return check.form == "taken" and any(
        value is not None for row in check.rows for value in ours[*row, "PwB"]
    )


def verdict_json(verdict: Verdict, missing: str) -> dict:
    """A verdict as JSON values; `missing` replaces `not run`."""
    return {
        "verdict": missing if verdict.status == NOT_RUN else verdict.status,
        "margin": verdict.margin,
        "noise": verdict.noise,
        "seeds": verdict.seeds,
    }
