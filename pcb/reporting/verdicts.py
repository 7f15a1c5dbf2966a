"""The paper's claims, judged on the published numbers and on ours: `verdicts(study, found, target)`, as JSON values for a page.

`found` maps (run, seed) to that run's metrics, None where it was not run. A table's page shows the claims that its own runs decide;
those that need several tables belong to the page of all claims.
"""

from __future__ import annotations

from pcb.study import METRICS, Study
from pcb.study.claims import Claim, Verdict, evaluate, published


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
        return (((found.get((row.run, seed)) or {}).get("variants") or {}).get(row.variant) or {}).get(metric)

    return {(table.id, row.id, metric): [value(row, seed, metric) for seed in study.seeds]
            for table in study.tables.values() for row in table.rows for metric in METRICS}


def entry(claim: Claim, paper: dict, ours: dict) -> dict:
    out = {"id": claim.id, "where": claim.where, "says": claim.says, "tables": claim.tables, "measure": claim.measure,
           "checks": [str(check) for check in claim.checks]}
    for name, values in (("paper", paper), ("ours", ours)):
        status, each = evaluate(claim, values)
        out[name] = {"verdict": status, "checks": [numbers(verdict) for verdict in each]}
    return out


def numbers(verdict: Verdict) -> dict:
    return {"verdict": verdict.status, "margin": verdict.margin, "noise": verdict.noise, "seeds": verdict.seeds}
