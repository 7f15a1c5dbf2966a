"""The page of protocols: methods and claims, scored under several rules on the same detections.

`collect` gathers AP of the page's rows under each protocol, AP over the density of verified
negatives, and the verdict on each claim under each protocol. `grid` and `claim_grid` are its
tables, `density_plot` its picture, and `conclusions` are sentences that follow from the numbers by
a rule: an effect goes up or down where its 95 % interval excludes 0, otherwise it is within noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pcb.formatting import signed
from pcb.reporting import findings, oracle, style
from pcb.reporting.claims import difference
from pcb.reporting.results import Results
from pcb.study import Row
from pcb.study.claims import DIRECTION, FAILS, HOLDS, NOT_RUN, WITHIN_NOISE

if TYPE_CHECKING:
    from pcb.reporting.plots import Plot

METRICS = ("AP", "APr", "APc", "APf")
COLUMNS = ("sampler", "method", "run", "variant", "seed", "protocol", *METRICS)
PLOTTED = ("APr", "APf")
EFFECTS = ("AP", "APr", "APf")
WORDS = {HOLDS: "rises", FAILS: "falls", WITHIN_NOISE: "is within noise", NOT_RUN: "not run"}


def collect(results: Results) -> dict:
    """What the page shows, as JSON values.

    Returns:
        `protocols`: ids in the order of the page; `rows`: `sampler`, `method`, `run`, `variant`,
        `gamma` (NorCal's, by seed), `ap` {protocol: {metric: values of the seeds}}, `effects`
        {protocol: {metric: verdict on row > plain}} and `density` (a curve for each metric, mean
        over seeds); `shares` and `own` of the densities; `limits` of the protocols; `claims`: id,
        statement, group, kind and the verdict under each protocol; `oracle`: calibration with
        statistics of other images (`pcb.reporting.oracle`).
    """
    summary = results.study.summaries["protocols"]
    names = ["lvis", *(p for p in style.PROTOCOLS if p in findings.protocols(results))]
    base: dict[str, Row] = {}  # the first row of a sampler
    for row in summary.rows:
        base.setdefault(row.labels["Sampler"], row)
    densities = [d for row in summary.rows if (d := density(results, row)) is not None]
    return {
        "protocols": names,
        "rows": [of_row(results, r, base[r.labels["Sampler"]], names) for r in summary.rows],
        "shares": densities[0]["shares"] if densities else [],
        "own": densities[0]["own"] if densities else None,
        "limits": limits(results, summary.rows),
        "claims": [
            {
                **{key: claim[key] for key in ("id", "statement", "group", "kind")},
                "verdicts": {"lvis": claim["ours"], **claim["protocols"]},
            }
            for claim in findings.collect(results)["claims"]
        ],
        "oracle": oracle.collect(results),
    }


def of_row(results: Results, row: Row, base: Row, names: Sequence[str]) -> dict:
    """A row of the page: AP under each protocol, and its difference from the base method."""
    study = results.study
    ap = {
        protocol: {
            metric: [
                (results.values(row.run, seed, row.variant, protocol) or {}).get(metric)
                for seed in study.seeds
            ]
            for metric in METRICS
        }
        for protocol in names
    }
    found = [results.metrics(row.run, seed) or {} for seed in study.seeds]
    curves = density(results, row)
    return {
        "sampler": row.labels["Sampler"],
        "method": row.labels["Method"],
        "run": row.run,
        "variant": row.variant,
        "gamma": [
            metrics[row.variant]["val"]["gamma"] if row.variant in metrics else None
            for metrics in found
        ],
        "ap": ap,
        "effects": {
            protocol: {metric: effect(results, row, base, metric, protocol) for metric in EFFECTS}
            for protocol in names
            if row is not base
        },
        "density": curves["curves"] if curves else None,
    }


def effect(results: Results, row: Row, base: Row, metric: str, protocol: str) -> dict:
    """Whether a row has a higher metric than its base method under a protocol."""
    found = difference(results, row, base, metric, protocol)
    return {"verdict": found.status, "margin": found.margin, "low": found.low, "high": found.high}


def density(results: Results, row: Row) -> dict | None:
    """AP over the density of verified negatives, mean over seeds; None where it was not measured.

    Returns:
        `shares`, `own` and `curves`, a list for each metric.
    """
    found = []
    for seed in results.study.seeds:
        measured = (results.metrics(row.run, seed) or {}).get("density")
        if measured and row.variant in measured["variants"]:
            found.append(measured)
    if not found:
        return None
    curves = {
        metric: [
            None if None in values else fmean(values)
            for values in zip(*(d["variants"][row.variant][metric] for d in found), strict=True)
        ]
        for metric in METRICS
    }
    return {"shares": found[0]["shares"], "own": found[0]["own"], "curves": curves}


def limits(results: Results, rows: Sequence[Row]) -> dict:
    """The limits of the protocols, and the rows of which fewer detections are kept.

    Returns:
        `test` of the scale, `per_class`, and `short`: of each row that has one, the largest number
        of classes of which inference kept fewer detections than the limit of a class.
    """
    out: dict = {"test": results.study.scale["test"], "per_class": None, "short": []}
    for row in rows:
        found = [results.metrics(row.run, seed) or {} for seed in results.study.seeds]
        of_run = [metrics["limits"] for metrics in found if "limits" in metrics]
        if of_run:
            out["per_class"] = of_run[0]["per_class"]
            short = max(limit["short"].get(row.variant, 0) for limit in of_run)
            if short:
                out["short"].append([row.labels["Sampler"], row.labels["Method"], short])
    return out


# Tables -------------------------------------------------------------------------------------------


def grid(page: dict) -> list[dict]:
    """The lines of the table: a row with mean and spread of each metric under each protocol."""
    return [
        {
            "sampler": row["sampler"],
            "method": row["method"],
            "cells": [
                (*mean_and_spread(row["ap"][protocol][metric]), mark(row, protocol, metric))
                for protocol, metric in product(page["protocols"], METRICS)
            ],
        }
        for row in page["rows"]
    ]


def mean_and_spread(values: Sequence[float | None]) -> tuple[str, str]:
    """A mean over seeds and, with several, its standard deviation, as text."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–", ""
    return f"{fmean(numbers):.1f}", f"±{stdev(numbers):.1f}" if len(numbers) > 1 else ""


def mark(row: dict, protocol: str, metric: str) -> str:
    """A sign of what the method does to the metric: ↑, ↓, or none within noise."""
    found = row["effects"].get(protocol, {}).get(metric, {}).get("verdict")
    return {HOLDS: "↑", FAILS: "↓"}.get(found, "")


def claim_grid(page: dict) -> list[dict]:
    """The claims of direction with their verdict under each protocol.

    Returns:
        `id`, `statement`, `changes`, and `cells`: verdict and whether it differs from LVIS's rule.
    """
    out = []
    for claim in page["claims"]:
        if claim["kind"] != DIRECTION:
            continue
        scored = claim["verdicts"]["lvis"]  # a claim about proposals has no other
        of = [claim["verdicts"].get(p, scored)["verdict"] for p in page["protocols"]]
        cells = [(found, found not in (scored["verdict"], NOT_RUN)) for found in of]
        changes = any(changed for _, changed in cells)
        out.append({**claim, "cells": cells, "changes": changes})
    return out


def lines(page: dict) -> Iterator[tuple]:
    """The lines of protocols.csv, one for each row, protocol and seed."""
    for row, protocol in product(page["rows"], page["protocols"]):
        for k, seed in enumerate(page["seeds"]):
            values = [row["ap"][protocol][metric][k] for metric in METRICS]
            yield (*(row[key] for key in COLUMNS[:4]), seed, protocol, *values)


# Picture ------------------------------------------------------------------------------------------


def density_plot(page: dict) -> Plot:
    """AP_r and AP_f of every method over the share of absent pairs that are verified."""
    from pcb.reporting.plots import Plot, canvas, empty  # a second that `gather` does not need

    samplers = list(dict.fromkeys(row["sampler"] for row in page["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in page["rows"]))
    with canvas(9.2, 0.7 + 3.1 * len(PLOTTED)) as figure:
        grid = figure.subplots(
            len(PLOTTED), len(samplers), squeeze=False, sharex=True, sharey="row"
        )
        for (i, metric), (j, sampler) in product(enumerate(PLOTTED), enumerate(samplers)):
            ax, of_sampler = grid[i, j], [r for r in page["rows"] if r["sampler"] == sampler]
            for row in of_sampler:
                if row["density"]:
                    k = methods.index(row["method"])
                    ax.plot(
                        page["shares"],
                        row["density"][metric],
                        color=style.SERIES[k],
                        marker="ovs^D"[k % 5],
                        markersize=4,
                        label=row["method"],
                    )
            if page["own"] is None:
                empty(ax)
            else:
                ax.axvline(page["own"], color="#777777", linestyle="--", linewidth=1)
                ax.annotate(
                    "as many an image\nas in LVIS",
                    (page["own"], 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(4, -4),
                    textcoords="offset points",
                    va="top",
                    fontsize=8,
                    color="#555555",
                )
                ax.set_xscale("symlog", linthresh=0.02, linscale=0.4)
                ax.set_xticks([0, 0.02, 0.1, 0.2, 0.5, 1], ["0", ".02", ".1", ".2", ".5", "1"])
                ax.minorticks_off()
            if i == 0:
                ax.set_title(sampler)
            if j == 0:
                ax.set_ylabel(style.name(metric, "latex"))
            if i == len(PLOTTED) - 1:
                ax.set_xlabel("share of absent classes that are verified")
        handles, names = grid[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=len(handles))
    return Plot(figure, f"AP_r and AP_f of {', '.join(methods)} over the density of negatives")


# Sentences ----------------------------------------------------------------------------------------


def conclusions(page: dict) -> list[str]:
    """What hangs on the protocol and what does not, from the verdicts on effects and claims."""
    stable: dict[str, list[str]] = {}
    changing: dict[str, list[str]] = {}
    for row, metric in product(page["rows"], EFFECTS):
        of = {p: row["effects"][p][metric] for p in page["protocols"] if row["effects"]}
        of = {p: found for p, found in of.items() if found["verdict"] != NOT_RUN}
        if len(of) < 2 or "lvis" not in of:
            continue
        scored, name = of["lvis"], f"{row['method']} on {row['sampler']}"
        kind = f"{style.name(metric)} {WORDS[scored['verdict']]}"
        margins = [found["margin"] for found in of.values()]
        others = [
            f"{style.PROTOCOLS[protocol]}: {WORDS[found['verdict']].removeprefix('is ')} "
            f"{signed(found['margin'])}"
            for protocol, found in of.items()
            if found["verdict"] != scored["verdict"]
        ]
        if others:
            text = f"{name} ({signed(scored['margin'])}; {', '.join(others)})"
            changing.setdefault(kind, []).append(text)
        else:
            between = f"{signed(min(margins))} to {signed(max(margins))}"
            stable.setdefault(kind, []).append(f"{name} ({between})")
    out = [f"Under every protocol {kind}: {', '.join(names)}." for kind, names in stable.items()]
    out += [
        f"Under LVIS's rule {kind}, but not under every other: {'; '.join(names)}."
        for kind, names in changing.items()
    ]
    out += crossings(page)
    judged = [
        claim
        for claim in claim_grid(page)
        if any(verdict in style.JUDGED for verdict, _ in claim["cells"])
    ]
    if judged and len(page["protocols"]) > 1:
        same = sum(not claim["changes"] for claim in judged)
        turned = [c for c in judged if {HOLDS, FAILS} <= {verdict for verdict, _ in c["cells"]}]
        are = "holds under one and fails" if len(turned) == 1 else "hold under one and fail"
        out.append(
            f"Of {len(judged)} claims of direction that are measured, {same} have the same verdict "
            f"under all protocols; {len(turned)} {are} under another."
        )
    return out


def crossings(page: dict) -> list[str]:
    """Where a method's gain in AP_r ends as more absent classes are verified."""
    out = []
    plain = {row["sampler"]: row["density"] for row in page["rows"] if not row["effects"]}
    for row in page["rows"]:
        base = plain.get(row["sampler"])
        if not (row["effects"] and row["density"] and base):
            continue
        pairs = zip(row["density"]["APr"], base["APr"], strict=True)
        gains = [after - before for after, before in pairs if None not in (after, before)]
        if not gains or gains[0] <= 0:
            continue
        name = f"{row['method']} on {row['sampler']}"
        first, last = signed(gains[0]), signed(gains[-1])
        lost = [share for share, gain in zip(page["shares"], gains, strict=True) if gain <= 0]
        if lost:
            out.append(
                f"{name} gains {first} AP_r with no verified negatives; the gain is gone where "
                f"{lost[0]:.0%} of the absent classes are verified, {last} with all."
            )
        else:
            out.append(
                f"{name} gains AP_r at every density: {first} with no verified negatives, "
                f"{last} with all."
            )
    return out
