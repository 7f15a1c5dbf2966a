"""Calibration with own and with other images, on a page: a table, a plot and what follows.

`collect` summarises oracle.json of every run that has one, `grid` is the table (no calibration,
oracle, cross-fit), `plot` shows the change of AP over the number of images behind the statistics,
and `conclusions` are sentences that follow from the numbers by a rule: an effect is there if it is
more than twice its standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pcb.formatting import signed
from pcb.reporting import style
from pcb.reporting.results import Results
from pcb.study import Study
from pcb.study.variants import oracle_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pcb.reporting.plots import Plot

METRICS = ("AP", "APr", "APc", "APf", "APb", "APbr", "APbc", "APbf")
KINDS = {"ms": "MS", "cm": "CM"}
COLOURS = {"ms": style.SERIES[0], "cm": style.SERIES[1]}
HALVES = 2
ERRORS = 2  # standard errors beyond which an effect is there


class Estimate(NamedTuple):
    """A mean over n parts with its standard error; None without two parts."""

    mean: float | None
    error: float | None
    n: int

    @property
    def there(self) -> bool:
        """Whether it is above zero by more than `ERRORS` standard errors."""
        return self.mean is not None and self.mean > ERRORS * (self.error or 0)

    def __str__(self) -> str:
        if self.mean is None:
            return "no value"
        mean = signed(self.mean)
        return mean if self.error is None else f"{mean} ± {self.error:.1f}"


def collect(results: Results) -> list[dict]:
    """What the section shows, as JSON values: one entry for each run with an oracle.json.

    Returns:
        `run`, `title`, `seeds`; `table`, [[label, {metric: values of the seeds}]]; `sizes`, one
        entry for each size of parts with `images`, `proposals`, `parts` and, over `all` classes and
        over the `known` ones, paired differences of columns, {"cm-own - plain": {metric: [mean,
        standard error, number of parts]}}.
    """
    study, out = results.study, []
    for run in oracle_runs(study):
        records = {seed: results.oracle(run, seed) for seed in study.seeds}
        found = {seed: record for seed, record in records.items() if record}
        if found:
            out.append(
                {
                    "run": run,
                    "title": title(study, run),
                    "seeds": list(found),
                    "table": table(list(found.values())),
                    "sizes": sizes(list(found.values())),
                }
            )
    return out


def title(study: Study, run: str) -> str:
    """The labels of the run's first row without a calibration: `Random`."""
    rows = (row for table in study.tables.values() for row in table.rows)
    plain = next((row for row in rows if row.run == run and row.variant == "plain"), None)
    labels = plain.labels.values() if plain else [run]
    return " ".join(label for label in labels if label not in ("/", "N/A", "✗"))


def table(records: Sequence[dict]) -> list[list]:
    """Rows of the table: a label, and for each metric the values of the seeds."""
    whole = [record["parts"][0]["all"] for record in records]
    rows: list[tuple[str, list[dict]]] = [("no calibration", [c["plain"] for c in whole])]
    for kind, name in KINDS.items():
        rows.append((f"{name}, the scored images (oracle)", [c[f"{kind}-own"] for c in whole]))
        for of in sorted({entry["of"] for entry in records[0]["crossfit"]}):
            label = "the other half" if of == HALVES else f"the other {of - 1} of {of} parts"
            divisions = (
                [e["all"][kind] for e in record["crossfit"] if e["of"] == of] for record in records
            )
            rows.append((f"{name}, {label}", [averaged(values) for values in divisions]))
    return [[label, {m: [v[m] for v in values] for m in METRICS}] for label, values in rows]


def averaged(values: Sequence[dict]) -> dict[str, float | None]:
    """The mean of each metric over several divisions, None where one of them has none."""
    by_metric = {metric: [v[metric] for v in values] for metric in METRICS}
    return {m: None if None in v else fmean(v) for m, v in by_metric.items()}


def sizes(records: Sequence[dict]) -> list[dict]:
    """Differences by the size of parts, smallest first; over parts, after the mean over seeds."""
    out = []
    for of in sorted({part["of"] for part in records[0]["parts"]} - {1}, reverse=True):
        # A part is the same images at every seed.
        by_seed = [[part for part in record["parts"] if part["of"] == of] for record in records]
        parts = list(zip(*by_seed, strict=True))
        entry: dict[str, Any] = {
            "of": of,
            "images": round(fmean(part["images"] for part in by_seed[0])),
            "proposals": float(np.median([part["proposals"] for p in by_seed for part in p])),
            "parts": len(parts),
        }
        for among in ("all", "known"):
            entry[among] = {
                f"{a} - {b}": differences(parts, among, a, b)
                for a, b in (
                    *((f"{kind}-{of}", "plain") for kind in KINDS for of in ("own", "other")),
                    *((f"{kind}-own", f"{kind}-other") for kind in KINDS),
                    *((f"cm-{of}", f"ms-{of}") for of in ("own", "other")),
                )
            }
        out.append(entry)
    return out


def differences(
    parts: Sequence[Sequence[dict]], among: str, column: str, reference: str
) -> dict[str, Estimate]:
    """Paired differences of two columns by metric, over parts that have both."""
    out = {}
    for metric in METRICS:
        values = []
        for seeds in parts:
            pairs = [(p[among][column][metric], p[among][reference][metric]) for p in seeds]
            if all(a is not None and b is not None for a, b in pairs):
                values.append(fmean(a - b for a, b in pairs))
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        out[metric] = Estimate(fmean(values) if values else None, error, len(values))
    return out


def conclusions(entries: Sequence[dict]) -> list[str]:
    """What follows from the numbers by rule: on all runs, then for each run and calibration."""
    shown = [entry for entry in entries if halves(entry)]
    if not shown:
        return []
    raised = [e["title"] for e in shown if effect(halves(e), "cm-other - plain").there]
    if len(raised) == len(shown):
        summary = (
            "The confusion matrix raises AP also with statistics of images that are not scored "
            "(halves of val, each scored by itself), so the gain in Table 1 is not memory of the "
            "scored images alone."
        )
    elif raised:
        summary = (
            f"The confusion matrix of images that are not scored raises AP for {join(raised)} only."
        )
    else:
        summary = (
            "The confusion matrix raises AP only with statistics of the scored images: the gain in "
            "Table 1 is memory of them."
        )
    out = [summary]
    for entry, (kind, name) in product(shown, KINDS.items()):
        text = on_halves(halves(entry), kind) + on_few(entry, kind)
        out.append(f"{entry['title']}, {name}: {text}")
    for entry in shown:
        own, other = (effect(halves(entry), f"cm-{of} - ms-{of}") for of in ("own", "other"))
        out.append(
            f"{entry['title']}, CM against MS on halves: {own} AP with statistics of the scored "
            f"half, {other} with those of the other half."
        )
    return out


def halves(entry: dict) -> dict:
    """The halves among the sizes of parts; {} where val is too small."""
    return next((size for size in entry["sizes"] if size["of"] == HALVES), {})


def effect(size: dict, name: str) -> Estimate:
    """A difference in AP over the classes that own and other images show."""
    return Estimate(*size["known"][name]["AP"])


def on_halves(size: dict, kind: str) -> str:
    """Whether the gain of the oracle on halves of val is memory of the scored images."""
    own, other = (effect(size, f"{kind}-{of} - plain") for of in ("own", "other"))
    memory = effect(size, f"{kind}-own - {kind}-other")
    text = f"on halves of val {own} AP with the half's own statistics, {other} with the other's"
    if not own.there:
        return f"{text}: no gain even with statistics of the scored images."
    if not memory.there:
        return f"{text}: no memory of the scored images is found."
    if not other.there:
        return f"{text}: all of the gain is memory of the scored images."
    share = (memory.mean or 0) / (own.mean or 1)
    return f"{text}: {share:.0%} of the gain, {memory}, is memory of the scored images."


def on_few(entry: dict, kind: str) -> str:
    """The same on the smallest parts, compared with halves."""
    size = entry["sizes"][0]
    if size["of"] == HALVES:
        return ""
    memory, before = (effect(s, f"{kind}-own - {kind}-other") for s in (size, halves(entry)))
    grows = memory.there and (memory.mean or 0) > (before.mean or 0)
    return (
        f" On parts of {size['images']} images, a median of {size['proposals']:g} matched "
        f"proposals a class, own statistics are ahead of others' by {memory}: "
        f"{'more memory' if grows else 'no clear growth of memory'} with fewer images."
    )


def join(names: Sequence[str]) -> str:
    """Names as `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def grid(entries: Sequence[dict]) -> list[dict]:
    """The cells of the table as text: for each row `run`, `label` and `cells` (mean, spread)."""
    out = []
    for entry in entries:
        for label, by_metric in entry["table"]:
            cells = [number(by_metric[metric]) for metric in METRICS]
            out.append({"run": entry["title"], "label": label, "cells": cells})
    return out


def number(by_seed: Sequence[float | None]) -> tuple[str, str]:
    """The mean over seeds, and their standard deviation where there are several."""
    values = [value for value in by_seed if value is not None]
    if not values:
        return "–", ""
    return f"{fmean(values):.1f}", f"±{stdev(values):.1f}" if len(values) > 1 else ""


def plot(entries: Sequence[dict]) -> Plot:
    """The change of AP and AP_r over the number of images behind the statistics."""
    from pcb.reporting.plots import Plot, canvas, empty  # a second that `gather` does not need

    with canvas(9.2, 0.9 + 3.3 * max(1, len(entries))) as figure:
        grid = figure.subplots(max(1, len(entries)), 2, squeeze=False, sharex=True)
        for axes, entry in zip(grid, entries, strict=False):
            for ax, metric in zip(axes, ("AP", "APr"), strict=True):
                gains(ax, entry["sizes"], metric)
                name = style.name(metric, "latex")
                ax.set(title=entry["title"], ylabel=f"change of {name}", xlabel="images")
        if not entries:
            for ax in grid[0]:
                empty(ax)
        else:
            handles, labels = grid[0][0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return Plot(
        figure,
        "Change of AP and AP_r by calibration with own and with other statistics, over the number "
        "of images behind them",
    )


def gains(ax: Axes, all_sizes: Sequence[dict], metric: str) -> None:
    """One panel: changes of a metric with their standard errors."""
    images = [size["images"] for size in all_sizes]
    lines = (("own", "all", "-", "o"), ("other", "all", "--", "s"), ("other", "known", ":", "D"))
    for (kind, name), (source, among, line, marker) in product(KINDS.items(), lines):
        values = [Estimate(*s[among][f"{kind}-{source} - plain"][metric]) for s in all_sizes]
        only = ", classes with samples" if among == "known" else ""
        ax.errorbar(
            images,
            [np.nan if v.mean is None else v.mean for v in values],
            yerr=[v.error or 0 for v in values],
            color=COLOURS[kind],
            linestyle=line,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if source == "other" else COLOURS[kind],
            capsize=2,
            label=f"{name}, {'scored' if source == 'own' else 'other'} images{only}",
        )
    ax.axhline(0, color="#777777", linewidth=1)
    ax.set_xscale("log")
    ax.set_xticks(images, [str(n) for n in images])
    ax.minorticks_off()
