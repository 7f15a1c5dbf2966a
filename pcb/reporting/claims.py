"""The paper's claims, judged on the published numbers and on ours: `verdicts(study, found, target)`, as JSON values for a page.

`found` maps (run, seed) to that run's metrics, None where it was not run. A table's page shows the claims that its own runs decide;
those that need several tables belong to the page of all claims.
"""

from __future__ import annotations

from pcb.reporting import pairs
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


def verdicts(study: Study, found: dict, target: str | None = None) -> list[dict]:
    """All claims, or those that the runs of one table or figure decide alone."""
    claims = [c for c in study.claims if target is None or decides(study, target, c)]
    paper, ours = published(study.tables), measured(study, found)
    return [entry(claim, paper, ours) for claim in claims]


def decides(study: Study, target: str, claim: Claim) -> bool:
    """Whether the claim speaks of this table and needs no run that is not a row of it."""
    here = {(row.run, row.variant) for row in study.tables[target].rows}
    rows = {(table, row.id): row for table in claim.tables for row in study.tables[table].rows}
    needed = {(rows[row].run, rows[row].variant) for check in claim.checks for row in check.rows}
    return target in claim.tables and needed <= here


def measured(study: Study, found: dict) -> dict[tuple[str, str, str], list[float | None]]:
    """Our numbers in the form that `pcb.study.claims.evaluate` takes: one value per seed, None where it is missing."""

    def value(row, seed: int, metric: str) -> float | None:
        return (
            ((found.get((row.run, seed)) or {}).get("variants") or {}).get(row.variant) or {}
        ).get(metric)

    rows = {(table.id, row.id): row for table in study.tables.values() for row in table.rows}
    out = {
        (*place, metric): [value(row, seed, metric) for seed in study.seeds]
        for place, row in rows.items()
        for metric in METRICS
    }
    entries = {
        cell
        for claim in study.claims
        for check in claim.checks
        for cell in check.cells
        if cell[2].startswith("M[")
    }
    return out | {
        cell: [taken(study, found, rows[cell[:2]].run, seed, cell[2]) for seed in study.seeds]
        for cell in entries
    }


def taken(study: Study, found: dict, run: str, seed: int, metric: str) -> float | None:
    """An entry `M[A>B]` of a run's confusion matrix, in percent; None where the data set has no such classes."""
    metrics = found.get((run, seed))
    matrix = pairs.of_run(study, run, seed, metrics) if metrics else None
    classes = metric[2:-1].split(">")
    if matrix is None or not set(classes) <= set(matrix.names):
        return None
    i, j = map(matrix.names.index, classes)
    return 100 * float(matrix.matrix[i, j]) if matrix.seen[i] else None


def entry(claim: Claim, paper: dict, ours: dict) -> dict:
    out = {
        "id": claim.id,
        "where": claim.where,
        "says": claim.says,
        "tables": claim.tables,
        "checks": [str(check) for check in claim.checks],
    }
    for name, values, without in (("paper", paper, NOT_PRINTED), ("ours", ours, NOT_RUN)):
        status, each = evaluate(claim, values)
        reasons = [
            NO_SUCH_CLASS if name == "ours" and lacks_classes(check, ours) else without
            for check in claim.checks
        ]
        out[name] = {
            "verdict": without if status == NOT_RUN else status,
            "checks": [
                numbers(verdict, reason) for verdict, reason in zip(each, reasons, strict=True)
            ],
        }
    return out


def lacks_classes(check: Check, ours: dict) -> bool:
    """Whether a check of two named classes has a run, on a data set that does not hold them."""
    return check.form == "taken" and any(
        value is not None for row in check.rows for value in ours[(*row, "PwB")]
    )


def numbers(verdict: Verdict, without: str) -> dict:
    """A check's verdict as JSON values; `without` is what is said where a number is missing."""
    return {
        "verdict": without if verdict.status == NOT_RUN else verdict.status,
        "margin": verdict.margin,
        "noise": verdict.noise,
        "seeds": verdict.seeds,
    }
