"""Plots of methods without and with PCB: arrows from one to the other, AP class by class."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from pcb.formatting import signed
from pcb.frequency import GROUP_NAMES
from pcb.reporting import captions, style
from pcb.reporting.plots.parts import (
    GREY,
    Plot,
    canvas,
    described,
    empty,
    equal_spans,
    literal,
    panel,
    sources,
)
from pcb.reporting.tables import OURS, ResultTable, numbers
from pcb.study.study import PAIRED_LABELS

DATASET, METHOD, PCB = PAIRED_LABELS
MARKERS = "os^Dv<>"  # of the methods, in order of appearance, beside the colours `style.SERIES`


def arrows(table: ResultTable) -> Plot:
    """From each base method to the same with PCB: AP_r against AP_f above, PwB against AP below."""
    frame = numbers(table)
    methods, datasets = list(frame[METHOD].unique()), list(frame[DATASET].unique())
    with canvas(9.2, 8.2) as figure:
        grid = figure.subplots(2, len(sources(table)), squeeze=False)
        for axes, (x, y) in zip(grid, (("APf", "APr"), ("AP", "PwB")), strict=True):
            for ax, source in zip(axes, sources(table), strict=True):
                panel(ax, table, source)
                ax.set(xlabel=style.name(x, "latex"), ylabel=style.name(y, "latex"))
                drawn = []
                for of_dataset, of_method in product(datasets, methods):
                    pair = frame[(frame[DATASET] == of_dataset) & (frame[METHOD] == of_method)]
                    look = look_of(methods.index(of_method))
                    line = "-" if of_dataset == datasets[0] else (0, (3, 1.5))
                    drawn.append(arrow(ax, pair, source, (x, y), look, line))
                if not any(drawn):
                    empty(ax, table if source == OURS else None)
                ax.margins(0.12)
            if not table.about["comparable"]:
                equal_spans(axes, "x")
        if not table.about["comparable"]:
            equal_spans(grid[0], "y")  # not PwB, which grows with the number of classes
        handles = [
            Line2D([], [], color=colour, marker=marker, linewidth=2.5, label=name)
            for name, (colour, marker) in ((n, look_of(k)) for k, n in enumerate(methods))
        ]
        handles += [
            Line2D([], [], color=GREY, linestyle=line, label=name)
            for name, line in zip(datasets, ("-", "--"), strict=False)
        ]
        handles += base_and_pcb()
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    what = "arrows from each base method to the same with PCB, AP_r against AP_f, PwB against AP"
    found = [gains(frame, source) for source in sources(table)]
    return described(figure, table, what, list(filter(None, found)))


def look_of(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th method."""
    return style.SERIES[k % len(style.SERIES)], MARKERS[k % len(MARKERS)]


def gains(frame: pd.DataFrame, source: str) -> str:
    """For how many base methods PCB raises AP_r, AP_f and AP and lowers PwB."""
    parts = []
    for verb, sign, metrics in (("raises", 1, ("APr", "APf", "AP")), ("lowers", -1, ("PwB",))):
        for metric in metrics:
            ends = frame.pivot_table(f"{source} {metric}", [DATASET, METHOD], PCB)
            if {"✗", "✓"} <= set(ends):
                change = (sign * (ends["✓"] - ends["✗"])).dropna()
                count = f"{(change > 0).sum()} of {len(change)}"
                parts.append(f"{verb} {style.name(metric).removesuffix(' ↓')} for {count}")
    return f"{source.capitalize()}: PCB {', '.join(parts)} base methods" if parts else ""


def base_and_pcb(lines: bool = False) -> list[Line2D]:
    """Legend entries: hollow markers are a base method, full ones the same with PCB."""
    shape: dict[str, Any] = {"color": GREY, "marker": "o"}
    base, pcb = ("--", "-") if lines else ("", "")
    return [
        Line2D([], [], **shape, ls=base, markerfacecolor="white", label="base"),
        Line2D([], [], **shape, ls=pcb, label="with PCB"),
    ]


def arrow(
    ax: Axes,
    pair: pd.DataFrame,
    source: str,
    metrics: tuple[str, str],
    look: tuple[str, str],
    line: str | tuple,
) -> bool:
    """Draw an arrow from a base method to PCB, or the one end that has numbers.

    Returns:
        Whether anything was drawn.
    """
    colour, marker = look
    ends = {
        mark: end[[f"{source} {metric}" for metric in metrics]].to_numpy(float)[0]
        for mark, end in pair.groupby(PCB)
    }
    ends = {mark: end for mark, end in ends.items() if not np.isnan(end).any()}
    for mark, (x, y) in ends.items():
        end = pair.loc[pair[PCB] == mark, [f"std {metric}" for metric in metrics]]
        xerr, yerr = end.to_numpy(float)[0]
        if source == OURS and not np.isnan([xerr, yerr]).any():
            ax.errorbar(x, y, xerr=xerr, yerr=yerr, color=colour, elinewidth=1, alpha=0.6, zorder=1)
        ax.plot(
            x,
            y,
            marker,
            color=colour,
            markerfacecolor="white" if mark == "✗" else colour,
            markersize=7,
            markeredgewidth=1.6,
            zorder=3,
        )
    if len(ends) == 2:
        properties = {
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.8,
            "linestyle": line,
            "shrinkA": 4,
            "shrinkB": 4,
        }
        ax.annotate("", ends["✓"], ends["✗"], zorder=2, arrowprops=properties)
    return bool(ends)


def by_class(table: ResultTable) -> Plot:
    """AP of single classes over their train images: base and with PCB above, the difference below.

    Dots are classes; lines are means of classes with similar counts, with their standard error over
    classes. Every value is a mean over seeds, a difference over the seeds that both ends have.
    """
    frame = numbers(table)
    methods, datasets = list(frame[METHOD].unique()), list(frame[DATASET].unique())
    gained: dict[str, list[dict[str, float]]] = {}
    with canvas(10.4, 5.2 * len(datasets)) as figure:
        subfigures = np.atleast_1d(np.array(figure.subfigures(len(datasets), 1)))
        for subfigure, name in zip(subfigures, datasets, strict=True):
            grid = subfigure.subplots(
                2, len(methods), squeeze=False, sharex=True, sharey="row", height_ratios=[1.25, 1]
            )
            heading = textwrap.fill(f"{name} · {captions.origin(table.about)}", 130)
            subfigure.suptitle(literal(heading), fontsize=10, x=0.02, ha="left")
            for k, (of_method, axes) in enumerate(zip(methods, grid.T, strict=True)):
                pair = frame[(frame[DATASET] == name) & (frame[METHOD] == of_method)]
                base, after = (class_ap(table, pair.loc[pair[PCB] == mark, "id"]) for mark in "✗✓")
                axes[0].set_title(literal(of_method))
                base_against_pcb(axes, base, after, look_of(k))
                gained.setdefault(name, []).append(gain_by_group(base, after))
            grid[0, 0].set_ylabel("AP of a class")
            grid[1, 0].set_ylabel("PCB − base")
        figure.legend(handles=base_and_pcb(lines=True), loc="outside lower center", ncols=2)
    what = (
        "AP of single classes over their train images, for each base method without and with PCB, "
        "and the difference"
    )
    found = [mean_gains(name, of_methods) for name, of_methods in gained.items()]
    return Plot(figure, ". ".join([what, *filter(None, found)]) + ".")


def mean_gains(name: str, of_methods: list[dict[str, float]]) -> str:
    """What PCB adds to the classes of each group, mean over methods; empty without numbers."""
    found = {g: [gain[g] for gain in of_methods if g in gain] for g in GROUP_NAMES}
    parts = [
        f"{signed(float(np.mean(values)))} for {GROUP_NAMES[g]} ones"
        for g, values in found.items()
        if values
    ]
    return f"{name}: PCB changes AP of a class by {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class ClassAP:
    """AP of single classes in one row.

    Attributes:
        train_images: (C,) train images of each class.
        groups: Their groups, C letters r, c and f.
        AP: AP of each class by seed, None for a class without val objects.
    """

    train_images: np.ndarray
    groups: str
    AP: dict[str, list[float | None]]

    def mean(self, seeds: list[str] | None = None) -> np.ndarray:
        """(C,) mean over seeds (all by default), NaN for a class without val objects."""
        return np.array([self.AP[seed] for seed in seeds or self.AP], float).mean(0)


def class_ap(table: ResultTable, rows: pd.Series) -> ClassAP | None:
    """AP of single classes of the first of `rows` (ids); None where it was not run."""
    for dataset in table.class_ap.values():
        for row in rows[:1]:
            if row in dataset["rows"]:
                counts = np.array(dataset["train_images"], float)
                return ClassAP(counts, dataset["groups"], dataset["rows"][row])
    return None


def gain_by_group(base: ClassAP | None, after: ClassAP | None) -> dict[str, float]:
    """Mean gain of the classes of each group, over the seeds of both ends; {} without them."""
    seeds = sorted(base.AP.keys() & after.AP.keys()) if base and after else []
    if not (base and after and seeds):
        return {}
    gain, groups = after.mean(seeds) - base.mean(seeds), np.array(list(base.groups))
    of_group = {g: gain[(groups == g) & ~np.isnan(gain)] for g in GROUP_NAMES}
    return {g: float(values.mean()) for g, values in of_group.items() if len(values)}


def base_against_pcb(
    axes: np.ndarray, base: ClassAP | None, after: ClassAP | None, look: tuple[str, str]
) -> None:
    """Draw one method of `by_class` into its upper and lower panel."""
    upper, lower = axes
    for class_values, hollow in ((base, True), (after, False)):
        if class_values:
            count, mean = class_values.train_images, class_values.mean()
            dots_and_means(upper, count, mean, look, hollow)
    seeds = sorted(base.AP.keys() & after.AP.keys()) if base and after else []
    if base and after and seeds:
        gain = after.mean(seeds) - base.mean(seeds)
        dots_and_means(lower, base.train_images, gain, look, hollow=False)
        lower.axhline(0, color="#777777", linewidth=1)
    else:
        empty(lower if base or after else upper)
    for ax in (upper, lower):
        ax.set_xscale("log")
        if class_values := base or after:
            group_borders(ax, class_values.train_images, class_values.groups)
    lower.set_xlabel("train images")
    lower.xaxis.set_major_formatter("{x:g}")
    lower.xaxis.set_minor_formatter(LogFormatter())


def dots_and_means(
    ax: Axes, count: np.ndarray, values: np.ndarray, look: tuple[str, str], hollow: bool
) -> None:
    """Draw classes as faint dots, and over them the means of bins of about nine classes each.

    `count` (C,) are train images, `values` (C,) an AP or a difference; NaN is ignored.
    """
    colour, marker = look
    drawn = ~np.isnan(values) & (count > 0)
    count, values = count[drawn], values[drawn]
    ax.scatter(
        count,
        values,
        s=9,
        facecolor="none" if hollow else colour,
        edgecolor=colour,
        linewidth=0.6,
        alpha=0.3,
        zorder=1,
    )
    order = np.argsort(count, kind="stable")
    bins = [b for b in np.array_split(order, np.clip(len(order) // 9, 1, 9)) if len(b)]
    ax.errorbar(
        [np.exp(np.log(count[b]).mean()) for b in bins],
        [values[b].mean() for b in bins],
        yerr=[values[b].std(ddof=1) / len(b) ** 0.5 if len(b) > 1 else 0 for b in bins],
        color=colour,
        linestyle="--" if hollow else "-",
        linewidth=1.7,
        marker=marker,
        markersize=5,
        markerfacecolor="white" if hollow else colour,
        elinewidth=1.1,
        capsize=2,
        zorder=3,
    )


def group_borders(ax: Axes, count: np.ndarray, groups: str) -> None:
    """Mark where rare classes end and frequent ones begin.

    `count` (C,) are train images, `groups` C letters r, c and f.
    """
    for lower, upper in ("rc", "cf"):
        below = max((n for n, g in zip(count, groups, strict=True) if g == lower), default=None)
        above = min((n for n, g in zip(count, groups, strict=True) if g == upper), default=None)
        if below and above:
            border = (below * above) ** 0.5
            ax.axvline(border, color="#999999", linewidth=0.9, linestyle=":", zorder=0)
