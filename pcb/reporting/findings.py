"""The findings: each claim with what decides it, under every protocol, and why it fails.

A finding is a claim (`pcb.reporting.claims`) with `deciding`, the position of the check that
decides it, and `protocols`, the verdicts under every other rule of scoring that the metrics have.
"""

from __future__ import annotations

from collections.abc import Iterator

from pcb.reporting.claims import count_verdicts, verdicts
from pcb.reporting.results import Results
from pcb.study.claims import FAILS, HOLDS, PARTLY, WITHIN_NOISE, Claim
from pcb.study.study import AP_METRICS

COLUMNS = (
    *("claim", "group", "kind", "where", "quote", "statement", "ours", "checks", "hold"),
    *("within_noise", "fail", "provisional", "paper", "deciding_check", "margin", "low", "high"),
    *("paper_margin", "changes_under", "cause", "experiment"),
)


def collect(results: Results) -> dict:
    """The findings as JSON values: `claims`, and their `counts` by kind and verdict."""
    claims = verdicts(results)
    for claim in claims:
        claim |= {"deciding": deciding(claim), "protocols": {}}
    of_ap = {claim.id for claim in results.study.claims if concerns_ap(claim)}
    for protocol in protocols(results):
        for claim, other in zip(claims, verdicts(results, protocol=protocol), strict=True):
            if claim["id"] in of_ap:
                claim["protocols"][protocol] = other["ours"]
    return {"claims": claims, "counts": count_verdicts(claims)}


def concerns_ap(claim: Claim) -> bool:
    """Whether a claim reads an AP; a confusion matrix has no protocol of scoring."""
    return any(metric in AP_METRICS for check in claim.checks for _, _, metric in check.cells)


def protocols(results: Results) -> list[str]:
    """The rules of scoring beside LVIS's that the metrics of some run have."""
    study = results.study
    found = (results.metrics(run, seed) for run in study.runs() for seed in study.seeds)
    names = (name for metrics in found if metrics for name in metrics.get("protocols", {}))
    return [name for name in dict.fromkeys(names) if name != "lvis"]


def deciding(claim: dict) -> int | None:
    """The position of the check that decides a claim; None without a measured one.

    Of the checks with the claim's verdict it is the one with the smallest margin. Where the claim
    partly holds, those within noise keep it from holding.
    """
    verdict = claim["ours"]["verdict"]
    measured = [
        (check["ours"]["margin"], k)
        for k, check in enumerate(claim["checks"])
        if check["ours"]["margin"] is not None
        and check["ours"]["verdict"] == (WITHIN_NOISE if verdict == PARTLY else verdict)
    ]
    return min(measured)[1] if measured else None


def changes(claim: dict) -> dict[str, dict]:
    """What became of a claim under the protocols under which its verdict is another."""
    return {
        protocol: found
        for protocol, found in claim["protocols"].items()
        if found["verdict"] != claim["ours"]["verdict"]
    }


def lines(page: dict) -> Iterator[tuple]:
    """The lines of findings.csv, one for each claim."""
    for claim in page["claims"]:
        counts, cause = claim["ours"]["counts"], claim["cause"] or {}
        check = None if claim["deciding"] is None else claim["checks"][claim["deciding"]]
        ours = check["ours"] if check else {}
        yield (
            *(claim[key] for key in ("id", "group", "kind", "where", "quote", "statement")),
            claim["ours"]["verdict"],
            len(claim["checks"]),
            *(counts.get(verdict, 0) for verdict in (HOLDS, WITHIN_NOISE, FAILS)),
            claim["ours"]["provisional"],
            claim["paper"]["verdict"],
            check["label"] if check else None,
            *(ours.get(key) for key in ("margin", "low", "high")),
            check["paper"]["margin"] if check else None,
            "; ".join(f"{name}: {found['verdict']}" for name, found in changes(claim).items()),
            cause.get("text"),
            cause.get("experiment"),
        )
