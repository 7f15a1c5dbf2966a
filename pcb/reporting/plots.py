"""Plots of result tables, ours and the paper's in separate panels.

The paper's panels are grey, their markers hollow. configs/paper.yaml lists the plots of a table
(`plots:`); `draw(table)` makes them:

    groups    AP_r, AP_c, AP_f of each row      (Tables 1, 3, 4, 8, 9, 11; the default)
    curve     metrics over a setting            (Tables 5, 6, 7, 10)
    arrows    base method -> with PCB           (Table 2)
    by_class  AP of classes by train images     (Table 2)

`confusion` draws Figure 1, `recognised` the gallery, `both_ways` the page of pairs.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter
from PIL import Image

from pcb import formatting
from pcb.frequency import GROUP_NAMES
from pcb.reporting import captions, style
from pcb.reporting.tables import OURS, PAPER, ResultTable, numbers
from pcb.study.study import PAIRED_LABELS

DPI = 200
GROUP_METRICS = ("APr", "APc", "APf")
DEFAULT = {
    "kind": "groups",
    "text": "AP of rare (r), common (c) and frequent (f) classes, row by row. "
    "The shorter the line, the smaller the gap between them.",
}  # for a table that lists no plots
GREY = "#555555"
DATASET, METHOD, PCB = PAIRED_LABELS


@dataclass(frozen=True)
class Plot:
    """A figure that Jupyter shows, with a description for readers who cannot see it."""

    figure: Figure
    alt: str

    def png(self) -> bytes:
        """The picture in at most 256 colours, a third of the bytes of a full PNG."""
        full, small = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(style.RC):
            self.figure.savefig(full, dpi=DPI, format="png", facecolor="white")
        Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
        return small.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        width = int(self.figure.get_figwidth() * 100)
        return (
            {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt},
            {"image/png": {"width": width, "alt": self.alt}},
        )


@dataclass(frozen=True)
class Section:
    """A plot of a page with its heading and a sentence on how to read it."""

    title: str
    text: str
    plot: Plot


def draw(table: ResultTable) -> Iterator[Section]:
    """Draw the plots of a table, as configs/paper.yaml lists them."""
    kinds = {"groups": groups, "curve": curve, "arrows": arrows, "by_class": by_class}
    for spec in table.plots or [DEFAULT]:
        arguments = {k: v for k, v in spec.items() if k not in ("kind", "title", "text")}
        plot = kinds[spec["kind"]](table, **arguments)
        yield Section(spec.get("title", "Picture"), spec["text"], plot)


def described(figure: Figure, table: ResultTable, text: str) -> Plot:
    """A plot of both blocks of a table."""
    name = formatting.number(table.target)
    return Plot(figure, f"{name}: {text}; ours and the paper's in separate panels")


@contextmanager
def canvas(width: float, height: float) -> Generator[Figure]:
    """A figure of this size in inches, in the style of all pages."""
    with matplotlib.rc_context(style.RC):
        yield Figure(figsize=(width, height), layout="constrained")


def literal(text: str) -> str:
    """A text of the user's data or study, whose dollar signs are not mathematics."""
    return text.replace("$", r"\$")


def curve(table: ResultTable, x: str, by: str | None = None) -> Plot:
    """Every metric over a setting, evenly spaced.

    `x` is the label column of the setting. Each value of the label column `by` has a row of panels.
    """
    frame, metrics = numbers(table), [m for m in table.metrics if m in style.COLOURS]
    panels: list[tuple[str | None, pd.DataFrame]] = [(None, frame)]
    if by is not None:
        panels = [(str(value), data) for value, data in frame.groupby(by, sort=False)]
    with canvas(8.4, 0.6 + 3.4 * len(panels)) as figure:
        grid = figure.subplots(
            len(panels),
            2,
            squeeze=False,
            sharex=True,
            sharey="row" if table.about["comparable"] else False,
        )
        for axes, (value, data) in zip(grid, panels, strict=True):
            for ax, source in zip(axes, (OURS, PAPER), strict=True):
                panel(ax, table, source, value)
                for metric in metrics:
                    marks(
                        ax,
                        np.arange(len(data)),
                        data[f"{source} {metric}"],
                        metric,
                        source,
                        line="-",
                        yerr=data[f"std {metric}"],
                    )
                if data[[f"{source} {m}" for m in metrics]].isna().all(axis=None):
                    empty(ax)
                ax.set(ylabel=f"AP, {value}" if value else "AP", xlabel=x)
                ax.set_xticks(np.arange(len(data)), [literal(str(value)) for value in data[x]])
        metric_legend(figure, metrics)
    return described(figure, table, f"{', '.join(map(style.name, metrics))} over {x}")


def marks(
    ax: Axes,
    x: np.ndarray,
    y: pd.Series | np.ndarray,
    metric: str,
    source: str,
    line: str = "",
    xerr: pd.Series | None = None,
    yerr: pd.Series | None = None,
) -> None:
    """Draw a metric in its colour and shape, hollow for the paper.

    Args:
        ax: The panel.
        x: (n,) positions.
        y: (n,) positions.
        metric: Key of the metric.
        source: `ours` or `paper`.
        line: Style of the line that joins the markers; "" for none.
        xerr: (n,) our standard deviation over seeds along x, for bars.
        yerr: The same along y.
    """
    colour = style.colour(metric)
    ax.errorbar(
        x,
        y,
        xerr=bars(xerr, source),
        yerr=bars(yerr, source),
        color=colour,
        linestyle=line,
        linewidth=1.8,
        elinewidth=1.4,
        capsize=3,
        zorder=2,
        marker=style.marker(metric),
        markersize=7,
        markeredgewidth=1.5,
        markerfacecolor="white" if source == PAPER else colour,
    )


def bars(spread: pd.Series | None, source: str) -> pd.Series | None:
    """The spread of our values, where there is any."""
    return spread if source == OURS and spread is not None and spread.notna().any() else None


def groups(table: ResultTable) -> Plot:
    """AP of rare, common and frequent classes, a line of three markers for each row.

    The shorter the line, the smaller the bias. Without these metrics: all that the table has.
    """
    frame = numbers(table)
    metrics = [m for m in GROUP_METRICS if m in table.metrics] or table.metrics
    names = [literal(" · ".join(row.labels)) for row in table.rows]
    heights = np.arange(len(names))[::-1]
    with canvas(9.2, 1.7 + 0.32 * len(names)) as figure:
        axes = figure.subplots(1, 2, sharey=True, sharex=table.about["comparable"])
        for ax, source in zip(axes, (OURS, PAPER), strict=True):
            panel(ax, table, source, width=50)
            values = frame[[f"{source} {m}" for m in metrics]].to_numpy(float)
            drawn = ~np.isnan(values).all(1)
            ax.hlines(
                heights[drawn],
                np.nanmin(values[drawn], 1),
                np.nanmax(values[drawn], 1),
                color="#bbbbbb",
                linewidth=2.5,
                zorder=1,
            )
            for i, metric in enumerate(metrics):
                spread = frame[f"std {metric}"]
                marks(ax, values[:, i], heights, metric, source, xerr=spread)
            if not drawn.any():
                empty(ax)
            else:
                for height in heights[~drawn]:
                    ax.text(
                        0.02,
                        height,
                        "not run" if source == OURS else "not printed",
                        transform=ax.get_yaxis_transform(),
                        va="center",
                        color="#777777",
                        fontsize=9,
                    )
            ax.set(xlabel="AP", ylim=(-0.7, len(names) - 0.3))
            ax.set_yticks(heights, names)
            ax.grid(axis="y", visible=False)
        metric_legend(figure, metrics)
    return described(figure, table, "AP of rare, common and frequent classes, row by row")


def arrows(table: ResultTable) -> Plot:
    """From each base method to the same with PCB: AP_r against AP_f above, PwB against AP below."""
    frame = numbers(table)
    methods, datasets = list(frame[METHOD].unique()), list(frame[DATASET].unique())
    with canvas(9.2, 8.2) as figure:
        grid = figure.subplots(2, 2)
        for axes, (x, y) in zip(grid, (("APf", "APr"), ("AP", "PwB")), strict=True):
            for ax, source in zip(axes, (OURS, PAPER), strict=True):
                panel(ax, table, source)
                ax.set(xlabel=style.name(x, "latex"), ylabel=style.name(y, "latex"))
                drawn = []
                for of_dataset, of_method in product(datasets, methods):
                    pair = frame[(frame[DATASET] == of_dataset) & (frame[METHOD] == of_method)]
                    colour = style.SERIES[methods.index(of_method)]
                    line = "-" if of_dataset == datasets[0] else (0, (3, 1.5))
                    drawn.append(arrow(ax, pair, source, (x, y), colour, line))
                if not any(drawn):
                    empty(ax)
                ax.margins(0.12)
        handles = [
            Line2D([], [], color=colour, linewidth=2.5, label=name)
            for name, colour in zip(methods, style.SERIES, strict=False)
        ]
        handles += [
            Line2D([], [], color=GREY, linestyle=line, label=name)
            for name, line in zip(datasets, ("-", "--"), strict=False)
        ]
        handles += base_and_pcb()
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    what = "arrows from each base method to the same with PCB, AP_r against AP_f, PwB against AP"
    return described(figure, table, what)


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
    colour: str,
    line: str | tuple,
) -> bool:
    """Draw an arrow from a base method to PCB, or the one end that has numbers.

    Returns:
        Whether anything was drawn.
    """
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
            "o",
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
                base_against_pcb(axes, base, after, style.SERIES[k])
            grid[0, 0].set_ylabel("AP of a class")
            grid[1, 0].set_ylabel("PCB − base")
        figure.legend(handles=base_and_pcb(lines=True), loc="outside lower center", ncols=2)
    return Plot(
        figure,
        "AP of single classes over their train images, for each base method without and with PCB, "
        "and the difference",
    )


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


def base_against_pcb(
    axes: np.ndarray, base: ClassAP | None, after: ClassAP | None, colour: str
) -> None:
    """Draw one method of `by_class` into its upper and lower panel."""
    upper, lower = axes
    for class_values, hollow in ((base, True), (after, False)):
        if class_values:
            count, mean = class_values.train_images, class_values.mean()
            dots_and_means(upper, count, mean, colour, hollow)
    seeds = sorted(base.AP.keys() & after.AP.keys()) if base and after else []
    if base and after and seeds:
        gain = after.mean(seeds) - base.mean(seeds)
        dots_and_means(lower, base.train_images, gain, colour, hollow=False)
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
    ax: Axes, count: np.ndarray, values: np.ndarray, colour: str, hollow: bool
) -> None:
    """Draw classes as faint dots, and over them the means of bins of about nine classes each.

    `count` (C,) are train images, `values` (C,) an AP or a difference; NaN is ignored.
    """
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
        marker="o",
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


def confusion(table: ResultTable) -> Plot:
    """Heat maps of a measured confusion matrix: log2 M_ij of ten classes, and of the three groups.

    Raises:
        ValueError: The table has no measured matrix (`table.confusion` is None).
    """
    import seaborn  # imported here: half a second that the other plots do not need

    if table.confusion is None:
        raise ValueError(f"{table.target} was gathered without a confusion matrix")
    names, floor = table.confusion["classes"], -10
    groups = list(GROUP_NAMES.values())
    with canvas(10.4, 5.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
        cells = {"cmap": "cividis", "square": True, "linewidths": 0.6}
        seaborn.heatmap(
            np.log2(np.maximum(table.confusion["matrix"], 2.0**floor)),
            ax=left,
            vmin=floor,
            vmax=0,
            xticklabels=list(map(literal, names)),
            yticklabels=list(map(literal, names)),
            **cells,
            cbar_kws={"label": r"$\log_2 M_{ij}$ (lighter: more probable)", "shrink": 0.75},
        )
        left.set(xlabel="predicted class", ylabel="true class")
        left.set_title("ten classes, measured")
        left.tick_params(axis="x", rotation=90)
        seaborn.heatmap(
            np.array(table.confusion["groups"]),
            ax=right,
            vmin=0,
            vmax=1,
            xticklabels=groups,
            yticklabels=groups,
            **cells,
            annot=True,
            fmt=".3f",
            cbar=False,
        )
        right.set(xlabel="predicted group", ylabel="true group")
        right.tick_params(axis="y", rotation=0)
        right.set_title("groups, measured")
    return Plot(
        figure,
        f"Heat map of the confusion between {', '.join(names)}, and between rare, common and "
        "frequent classes",
    )


OUTCOMES = {
    "both": ("by both", "#8a9099"),
    "gains": ("with PCB only", "#0072B2"),
    "losses": ("without PCB only", "#D55E00"),
    "neither": ("by neither", "#e9ebee"),
}  # of a val object: legend and colour


def recognised(page: dict) -> Plot:
    """Share of val objects of each group that both models recognise, one of them, or neither."""
    shown = [entry for entry in page["compare"] if not entry["missing"]]
    with canvas(8.4, 0.9 + 1.35 * max(1, len(shown))) as figure:
        axes = figure.subplots(max(1, len(shown)), 1, squeeze=False, sharex=True)[:, 0]
        for ax, entry in zip(axes, shown, strict=False):
            labels = []
            for height, group in enumerate("fcr"):
                counts = entry["counts"][group]
                outcome_bar(ax, height, counts)
                labels.append(f"{GROUP_NAMES[group]} ({counts['objects']})")
            ax.set_yticks(range(3), labels)
            ax.set_title(literal(f"{entry['label']} → {entry['label']} + PCB"))
            ax.grid(visible=False)
            ax.set_xlim(0, 100)
        if not shown:
            empty(axes[0])
        axes[-1].set_xlabel("objects of the validation set, %")
        handles = [
            Patch(facecolor=colour, label=label, hatch=hatch(outcome), edgecolor="white")
            for outcome, (label, colour) in OUTCOMES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return Plot(
        figure,
        "Objects of rare, common and frequent classes: recognised by both models, by one of them, "
        "by neither",
    )


def outcome_bar(ax: Axes, height: float, counts: dict[str, int]) -> None:
    """One stacked bar of `recognised`, with a count in each segment that has room for it."""
    total, left = max(1, counts["objects"]), 0.0
    segments = {outcome: counts[outcome] for outcome in ("both", "gains", "losses")}
    segments["neither"] = counts["objects"] - sum(segments.values())
    for outcome, count in segments.items():
        share, colour = 100 * count / total, OUTCOMES[outcome][1]
        ax.barh(
            height,
            share,
            left=left,
            color=colour,
            height=0.74,
            edgecolor="white",
            linewidth=0.8,
            hatch=hatch(outcome),
        )
        if share > 1.2:
            ax.text(
                left + share / 2,
                height,
                str(count),
                ha="center",
                va="center",
                fontsize=8.5,
                color="#333333" if outcome == "neither" else "white",
                bbox={"boxstyle": "round,pad=.1", "facecolor": colour, "edgecolor": "none"},
            )
        left += share


def hatch(outcome: str) -> str | None:
    """A pattern that distinguishes losses from gains without colour."""
    return "///" if outcome == "losses" else None


PAIRS = {
    "rf": ("rare, frequent", "#D55E00", "v"),
    "rc": ("rare, common", "#E69F00", "s"),
    "cf": ("common, frequent", "#0072B2", "o"),
}  # of the groups of two classes: legend, colour and marker


def both_ways(page: dict) -> Plot:
    """How often the rarer class of a pair is predicted as the more frequent one, and the reverse.

    A dot for each pair of classes of different groups, before and after PCB.
    """
    shown = [entry for entry in page["compare"] if not entry["missing"]]
    with canvas(8.4, 0.9 + 3.8 * max(1, len(shown))) as figure:
        grid = figure.subplots(max(1, len(shown)), 2, squeeze=False, sharex=True, sharey=True)
        for axes, entry in zip(grid, shown, strict=False):
            titles = (entry["label"], f"{entry['label']} + PCB")
            for ax, points, title in zip(axes, entry["both_ways"], titles, strict=True):
                scatter_pairs(ax, points, entry["least"], title)
            axes[0].set_ylabel("the reverse")
        if not shown:
            for ax in grid[0]:
                empty(ax)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
            for label, colour, marker in PAIRS.values()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Plot(
        figure,
        "How often the rarer class of a pair is predicted as the more frequent one against the "
        "reverse, before and after PCB",
    )


def scatter_pairs(ax: Axes, points: dict, least: float, title: str) -> None:
    """One panel of `both_ways`; probabilities below `least` are drawn at the edge."""
    groups, up, down = (np.array(points[key]) for key in ("groups", "up", "down"))
    edge = least / 3
    for pair, (_, colour, marker) in reversed(PAIRS.items()):  # rare, frequent on top
        ax.scatter(
            np.maximum(up[groups == pair], edge),
            np.maximum(down[groups == pair], edge),
            s=13,
            marker=marker,
            color=colour,
            alpha=0.55,
            linewidth=0,
            rasterized=True,
        )
    ax.plot([edge, 1], [edge, 1], color=GREY, linewidth=1, linestyle="--", zorder=0)
    below = f"{100 * (up > down).mean():.0f} % of {len(up)} below the line" if len(up) else ""
    titled(ax, title, [below])
    ax.set(xscale="log", yscale="log", xlim=(least / 3.5, 1.2), ylim=(least / 3.5, 1.2))
    ax.set_xlabel("rarer predicted as more frequent")


def panel(
    ax: Axes, table: ResultTable, source: str, value: str | None = None, width: int = 60
) -> None:
    """Head of a panel: ours or the paper's (on grey), and where the numbers are from.

    `value` is the value that the rows of the panel share, `width` the characters in a line.
    """
    spread = "; bars: ± std over seeds" if table.planned > 1 else ""
    origin = captions.origin(table.about).replace(" px", "\N{NO-BREAK SPACE}px")
    ours = textwrap.wrap(origin + spread, width)
    lines = ours if source == OURS else ["published, LVIS"]
    titled(ax, f"{source} · {value}" if value else source, lines, room=len(ours))
    if source == PAPER:
        ax.set_facecolor("#f3f3f3")


def titled(ax: Axes, title: str, subtitle: list[str], room: int = 1) -> None:
    """Title of a panel and below it a smaller subtitle, with room for so many lines."""
    line = 11  # points
    ax.set_title(literal(title), loc="left", pad=9 + line * room)
    ax.annotate(
        literal("\n".join(subtitle)),
        (0, 1),
        (0, 5 + line * room),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=8,
        linespacing=1.2,
        color="#666666",
    )


def empty(ax: Axes) -> None:
    """Mark a panel without numbers."""
    ax.text(
        0.5,
        0.5,
        "not run",
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize=14,
        style="italic",
        color="#888888",
    )
    ax.grid(visible=False)
    ax.tick_params(axis="x", labelcolor="#bbbbbb")


def metric_legend(figure: Figure, metrics: list[str]) -> None:
    """Legend of metrics by colour and marker, below the figure."""
    handles = [
        Line2D(
            [],
            [],
            color=style.colour(metric),
            marker=style.marker(metric),
            label=style.name(metric, "latex"),
        )
        for metric in metrics
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
