"""Plots of a gathered table. Ours and the paper's stand in separate panels, the paper's on grey with hollow markers.

curve(table, x="α")   metrics over a setting        (Tables 5, 6, 7, 10)
groups(table)         AP_r, AP_c, AP_f of each row  (Tables 1, 3, 4, 8, 9, 11)
arrows(table)         base method -> with PCB       (Table 2)
by_class(table)       AP by train images            (Table 2)
confusion(matrix)     log2 heat map of ten classes  (Figure 1)
recognised(album)     objects gained and lost       (gallery)
both_ways(album)      M_ij against M_ji             (pairs)
"""

from __future__ import annotations

import base64
import io
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from pcb import formatting
from pcb.evaluation.confusion_metrics import Confusion
from pcb.reporting import captions, pairs, style
from pcb.reporting.album import Album
from pcb.reporting.pairs import GROUPS
from pcb.reporting.tables import OURS, PAPER, Gathered, wide

DPI = 200


@dataclass(frozen=True)
class Plot:
    """A figure that Jupyter shows, with words for those who cannot see it."""

    figure: Figure
    alt: str

    def png(self) -> bytes:
        """The picture in at most 256 colours: a third of the bytes, and nothing that an eye would miss."""
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


def plot(figure: Figure, table: Gathered, text: str) -> Plot:
    return Plot(
        figure,
        f"{formatting.number(table.about['target'])}: {text}; ours and the paper's in separate panels",
    )


@contextmanager
def canvas(width: float, height: float):
    with matplotlib.rc_context(style.RC):
        yield Figure(figsize=(width, height), layout="constrained")


def curve(table: Gathered, x: str, by: str | None = None) -> Plot:
    """Every metric over the setting in label column `x`, spaced evenly; one row of panels for each value of label column `by`."""
    numbers, metrics = wide(table), [m for m in table.columns if m in style.COLOURS]
    parts = [(None, numbers)] if by is None else list(numbers.groupby(by, sort=False))
    with canvas(8.4, 0.4 + 3.3 * len(parts)) as figure:
        grid = figure.subplots(
            len(parts),
            2,
            squeeze=False,
            sharex=True,
            sharey="row" if table.about["comparable"] else False,
        )
        for axes, (part, data) in zip(grid, parts, strict=True):
            for ax, source in zip(axes, (OURS, PAPER), strict=True):
                panel(ax, table, source, part)
                for metric in metrics:
                    marks(
                        ax,
                        np.arange(len(data)),
                        data[f"{source} {metric}"],
                        metric,
                        source,
                        yerr=data[f"std {metric}"],
                        linestyle="-",
                    )
                if data[[f"{source} {m}" for m in metrics]].isna().all(axis=None):
                    empty(ax)
                ax.set(ylabel=f"AP, {part}" if part else "AP", xlabel=x)
                ax.set_xticks(np.arange(len(data)), data[x])
        metric_legend(figure, metrics)
    return plot(figure, table, f"{', '.join(map(style.name, metrics))} over {x}")


def marks(ax: Axes, x, y, metric: str, source: str, linestyle: str, **spread) -> None:
    """A metric's markers in its colour and shape, hollow for the paper's; `xerr` or `yerr` is our spread over seeds."""
    spread = {key: value for key, value in spread.items() if source == OURS and value.notna().any()}
    colour = style.COLOURS[metric]
    ax.errorbar(
        x,
        y,
        **spread,
        color=colour,
        linestyle=linestyle,
        linewidth=1.8,
        elinewidth=1.4,
        capsize=3,
        zorder=2,
        marker=style.MARKERS[metric],
        markersize=7,
        markeredgewidth=1.5,
        markerfacecolor="white" if source == PAPER else colour,
    )


def groups(table: Gathered) -> Plot:
    """AP of rare, common and frequent classes, a line of three markers for each row: the shorter the line, the smaller the bias."""
    numbers, metrics = wide(table), ("APr", "APc", "APf")
    names = [" · ".join(line[label] for label in table.labels) for _, line in numbers.iterrows()]
    heights = np.arange(len(names))[::-1]
    with canvas(9.2, 1.5 + 0.32 * len(names)) as figure:
        axes = figure.subplots(1, 2, sharey=True, sharex=table.about["comparable"])
        for ax, source in zip(axes, (OURS, PAPER), strict=True):
            panel(ax, table, source)
            values = numbers[[f"{source} {m}" for m in metrics]].to_numpy(float)
            there = ~np.isnan(values).all(1)
            ax.hlines(
                heights[there],
                np.nanmin(values[there], 1),
                np.nanmax(values[there], 1),
                color="#bbbbbb",
                linewidth=2.5,
                zorder=1,
            )
            for i, metric in enumerate(metrics):
                marks(
                    ax,
                    values[:, i],
                    heights,
                    metric,
                    source,
                    xerr=numbers[f"std {metric}"],
                    linestyle="",
                )
            for height in heights[~there] if there.any() else ():
                ax.text(
                    0.02,
                    height,
                    "not run",
                    transform=ax.get_yaxis_transform(),
                    va="center",
                    color="#777777",
                    fontsize=9,
                )
            if not there.any():
                empty(ax)
            ax.set(xlabel="AP", ylim=(-0.7, len(names) - 0.3))
            ax.set_yticks(heights, names)
            ax.grid(axis="y", visible=False)
        metric_legend(figure, metrics)
    return plot(figure, table, "AP of rare, common and frequent classes, row by row")


def arrows(
    table: Gathered, method: str = "Method", dataset: str = "Dataset", pcb: str = "PCB"
) -> Plot:
    """From each base method to the same with PCB: AP_r against AP_f above, PwB against AP below."""
    numbers = wide(table)
    methods, sets = list(numbers[method].unique()), list(numbers[dataset].unique())
    with canvas(9.2, 8) as figure:
        grid = figure.subplots(2, 2)
        for axes, (xm, ym) in zip(grid, (("APf", "APr"), ("AP", "PwB")), strict=True):
            for ax, source in zip(axes, (OURS, PAPER), strict=True):
                panel(ax, table, source)
                ax.set(xlabel=style.name(xm, "latex"), ylabel=style.name(ym, "latex"))
                drawn = [
                    arrow(
                        ax,
                        pair,
                        source,
                        xm,
                        ym,
                        pcb,
                        style.SERIES[methods.index(m)],
                        "-" if d == sets[0] else (0, (3, 1.5)),
                    )
                    for (d, m), pair in numbers.groupby([dataset, method], sort=False)
                ]
                if not any(drawn):
                    empty(ax)
                ax.margins(0.12)
        handles = [
            Line2D([], [], color=style.SERIES[i], linewidth=2.5, label=m)
            for i, m in enumerate(methods)
        ]
        handles += [
            Line2D([], [], color="#555555", linestyle=line, label=d)
            for d, line in zip(sets, ("-", "--"), strict=False)
        ]
        handles += [
            Line2D(
                [],
                [],
                color="#555555",
                linestyle="",
                marker="o",
                markerfacecolor="white",
                label="base",
            ),
            Line2D([], [], color="#555555", linestyle="", marker="o", label="with PCB"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return plot(
        figure,
        table,
        "arrows from each base method to the same with PCB, AP_r against AP_f and PwB against AP",
    )


def arrow(
    ax: Axes, pair: pd.DataFrame, source: str, xm: str, ym: str, pcb: str, colour: str, line
) -> bool:
    """Draw one base -> PCB arrow, or whichever end is there. Returns whether anything was drawn."""
    ends = {
        mark: end[[f"{source} {xm}", f"{source} {ym}"]].to_numpy(float)[0]
        for mark, end in pair.groupby(pcb)
    }
    ends = {mark: at for mark, at in ends.items() if not np.isnan(at).any()}
    for mark, at in ends.items():
        spread = pair.loc[pair[pcb] == mark, [f"std {xm}", f"std {ym}"]].to_numpy(float)[0]
        if source == OURS and not np.isnan(spread).any():
            ax.errorbar(
                *at, xerr=spread[0], yerr=spread[1], color=colour, elinewidth=1, alpha=0.6, zorder=1
            )
        ax.plot(
            *at,
            "o",
            color=colour,
            markerfacecolor="white" if mark == "✗" else colour,
            markersize=7,
            markeredgewidth=1.6,
            zorder=3,
        )
    if len(ends) == 2:
        ax.annotate(
            "",
            ends["✓"],
            ends["✗"],
            zorder=2,
            arrowprops={
                "arrowstyle": "-|>",
                "color": colour,
                "linewidth": 1.8,
                "linestyle": line,
                "shrinkA": 4,
                "shrinkB": 4,
            },
        )
    return bool(ends)


def by_class(
    table: Gathered, method: str = "Method", dataset: str = "Dataset", pcb: str = "PCB"
) -> Plot:
    """AP of single classes over their train images, base and with PCB, above; the difference below: dots, and means of classes with
    similar counts with their standard error over classes. One pair of panels for each method and data set; means over seeds, of the
    difference over those that both ends have."""
    numbers = wide(table)
    sets = list(numbers[dataset].unique())
    methods = list(numbers[method].unique())
    with canvas(10.4, 5.2 * len(sets)) as figure:
        for part, (name, rows) in zip(
            np.atleast_1d(figure.subfigures(len(sets), 1)),
            numbers.groupby(dataset, sort=False),
            strict=True,
        ):
            grid = part.subplots(
                2, len(methods), sharex=True, sharey="row", height_ratios=[1.25, 1]
            )
            part.suptitle(
                f"{name} · {captions.origin(table.about)}", fontsize=10, x=0.02, ha="left"
            )
            for k, (pair, (upper, lower)) in enumerate(
                zip([rows[rows[method] == m] for m in methods], grid.T, strict=True)
            ):
                upper.set_title(methods[k])
                base, after = (
                    class_ap(table, list(pair.loc[pair[pcb] == mark, "id"])) for mark in "✗✓"
                )
                for found, hollow in ((base, True), (after, False)):
                    if found:
                        dots_and_means(
                            upper, found.train_images, found.mean(), style.SERIES[k], hollow
                        )
                if base and after and (seeds := sorted(base.AP.keys() & after.AP.keys())):
                    dots_and_means(
                        lower,
                        base.train_images,
                        after.mean(seeds) - base.mean(seeds),
                        style.SERIES[k],
                        hollow=False,
                    )
                    lower.axhline(0, color="#777777", linewidth=1)
                else:
                    empty(lower if base or after else upper)
                for ax, label in ((upper, "AP of a class"), (lower, "PCB − base")):
                    ax.set_xscale("log")
                    if base or after:
                        borders(ax, (base or after).train_images, (base or after).groups)
                    if k == 0:
                        ax.set_ylabel(label)
                lower.set_xlabel("train images")
                lower.xaxis.set_major_formatter("{x:g}")
        handles = [
            Line2D(
                [],
                [],
                color="#555555",
                marker="o",
                markerfacecolor="white",
                linestyle="--",
                label="base",
            ),
            Line2D([], [], color="#555555", marker="o", label="with PCB"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Plot(
        figure,
        "AP of single classes over their train images, for each base method without and with PCB, and the difference",
    )


@dataclass(frozen=True)
class ClassAP:
    """Of a row: train images (C,) and groups of the classes, and their AP by seed, NaN for a class without val objects."""

    train_images: np.ndarray
    groups: str
    AP: dict[str, list[float | None]]

    def mean(self, seeds: list[str] | None = None) -> np.ndarray:
        return np.array([self.AP[seed] for seed in seeds or self.AP], float).mean(0)


def class_ap(table: Gathered, rows: list[str]) -> ClassAP | None:
    """What was measured of the first of `rows`, or None."""
    found = [f for f in table.about["classes"].values() if rows and rows[0] in f["rows"]]
    return (
        ClassAP(
            np.array(found[0]["train_images"], float), found[0]["groups"], found[0]["rows"][rows[0]]
        )
        if found
        else None
    )


def dots_and_means(
    ax: Axes, count: np.ndarray, values: np.ndarray, colour: str, hollow: bool
) -> None:
    """Classes as faint dots; over them the means of bins with about as many classes each, at their mean count."""
    there = ~np.isnan(values) & (count > 0)
    count, values = count[there], values[there]
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
    bins = [part for part in np.array_split(order, np.clip(len(order) // 9, 1, 9)) if len(part)]
    x = [np.exp(np.log(count[part]).mean()) for part in bins]
    error = [values[part].std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0 for part in bins]
    ax.errorbar(
        x,
        [values[part].mean() for part in bins],
        yerr=error,
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


def borders(ax: Axes, count: np.ndarray, groups: str) -> None:
    """Where rare classes end and frequent ones begin."""
    for lower, upper in ("rc", "cf"):
        below = max((n for n, g in zip(count, groups, strict=True) if g == lower), default=None)
        above = min((n for n, g in zip(count, groups, strict=True) if g == upper), default=None)
        if below and above:
            ax.axvline(
                (below * above) ** 0.5, color="#999999", linewidth=0.9, linestyle=":", zorder=0
            )


def confusion(found: Confusion, count: int = 10, seed: int = 0) -> Plot:
    """log2 M_ij over `count` classes drawn with `seed` among those that val shows, rare to frequent; beside it the three groups."""
    import seaborn

    chosen, floor = found.choose(count, seed), -10
    names = [f"{found.names[i]} ({found.frequency[i]})" for i in chosen]
    with canvas(10.4, 5.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
        part = found.matrix[np.ix_(chosen, chosen)]
        look = {"cmap": "cividis", "square": True, "linewidths": 0.6}
        seaborn.heatmap(
            np.log2(np.maximum(part, 2.0**floor)),
            ax=left,
            vmin=floor,
            vmax=0,
            xticklabels=names,
            yticklabels=names,
            **look,
            cbar_kws={"label": r"$\log_2 M_{ij}$ (lighter: more probable)", "shrink": 0.75},
        )
        left.set(xlabel="predicted class", ylabel="true class")
        left.set_title("ten classes, measured")
        left.tick_params(axis="x", rotation=90)
        seaborn.heatmap(
            found.by_group(),
            ax=right,
            vmin=0,
            vmax=1,
            xticklabels=GROUPS,
            yticklabels=GROUPS,
            **look,
            annot=True,
            fmt=".3f",
            cbar=False,
        )
        right.set(xlabel="predicted group", ylabel="true group")
        right.tick_params(axis="y", rotation=0)
        right.set_title("groups, measured")
    return Plot(
        figure,
        f"Heat map of the confusion between {', '.join(names)}, and between rare, common and frequent classes",
    )


def recognised(album: Album) -> Plot:
    """Share of val objects of each group that both models recognise, one of them, or neither; a bar each, its counts in it."""
    parts = {"both": "#8a9099", "gains": "#0072B2", "losses": "#D55E00", "neither": "#e9ebee"}
    labels = {
        "both": "by both",
        "gains": "with PCB only",
        "losses": "without PCB only",
        "neither": "by neither",
    }
    shown = [entry for entry in album.about["compare"] if not entry["missing"]]
    with canvas(8.4, 0.9 + 1.35 * max(1, len(shown))) as figure:
        axes = figure.subplots(max(1, len(shown)), 1, squeeze=False, sharex=True)[:, 0]
        for ax, entry in zip(axes, shown, strict=False):
            for height, group in enumerate("fcr"):
                counts = entry["counts"][group]
                left, total = 0, max(1, counts["objects"])
                for part, colour in parts.items():
                    n = (
                        counts[part]
                        if part in counts
                        else counts["objects"] - sum(counts[p] for p in ("both", "gains", "losses"))
                    )
                    ax.barh(
                        height,
                        100 * n / total,
                        left=left,
                        color=colour,
                        height=0.74,
                        edgecolor="white",
                        linewidth=0.8,
                        hatch="///" if part == "losses" else None,
                    )
                    if n / total > 0.012:
                        ax.text(
                            left + 50 * n / total,
                            height,
                            str(n),
                            ha="center",
                            va="center",
                            fontsize=8.5,
                            color="#333333" if part == "neither" else "white",
                            bbox={
                                "boxstyle": "round,pad=.1",
                                "facecolor": colour,
                                "edgecolor": "none",
                            },
                        )
                    left += 100 * n / total
            ax.set_yticks(
                range(3),
                [
                    f"{name} ({entry['counts'][g]['objects']})"
                    for g, name in zip("fcr", reversed(GROUPS), strict=True)
                ],
            )
            ax.set_title(f"{entry['label']} → {entry['label']} + PCB")
            ax.grid(visible=False)
            ax.set_xlim(0, 100)
        if not shown:
            empty(axes[0])
        axes[-1].set_xlabel("objects of the validation set, %")
        handles = [
            Patch(
                facecolor=colour,
                label=labels[part],
                hatch="///" if part == "losses" else None,
                edgecolor="white",
            )
            for part, colour in parts.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return Plot(
        figure,
        "Objects of rare, common and frequent classes: recognised by both models, by one of them, by neither",
    )


def both_ways(album: Album, least: float = 1e-3) -> Plot:
    """Every pair of classes of different groups: how often the rarer is taken for the more frequent one, against the reverse."""
    kinds = {
        "rf": ("rare, frequent", "#D55E00", "v"),
        "rc": ("rare, common", "#E69F00", "s"),
        "cf": ("common, frequent", "#0072B2", "o"),
    }
    shown = [entry for entry in album.about["compare"] if not entry["missing"]]
    with canvas(8.4, 0.7 + 3.7 * max(1, len(shown))) as figure:
        grid = figure.subplots(max(1, len(shown)), 2, squeeze=False, sharex=True, sharey=True)
        for axes, entry in zip(grid, shown, strict=False):
            for ax, run, title in zip(
                axes, entry["runs"], (entry["label"], f"{entry['label']} + PCB"), strict=True
            ):
                matrix = pairs.load(album, run)
                found = pd.DataFrame(matrix.both_ways(least)._asdict())
                for kind, (_, colour, marker) in kinds.items():
                    part = found.loc[found["groups"] == kind, ["up", "down"]].clip(lower=least / 3)
                    ax.scatter(
                        part["up"],
                        part["down"],
                        s=13,
                        marker=marker,
                        color=colour,
                        alpha=0.55,
                        linewidth=0,
                        rasterized=True,
                    )
                ax.plot(
                    [least / 3, 1],
                    [least / 3, 1],
                    color="#555555",
                    linewidth=1,
                    linestyle="--",
                    zorder=0,
                )
                one_sided = (found["up"] > found["down"]).mean()
                ax.set_title(title, loc="left")
                ax.set_title(
                    f"{100 * one_sided:.0f} % of {len(found)} below the line" if len(found) else "",
                    loc="right",
                    fontsize=8,
                    fontweight="normal",
                    color="#666666",
                )
                ax.set(xscale="log", yscale="log", xlim=(least / 3.5, 1.2), ylim=(least / 3.5, 1.2))
                ax.set_xlabel("the rarer is taken for the more frequent")
            axes[0].set_ylabel("the reverse")
        if not shown:
            for ax in grid[0]:
                empty(ax)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
            for label, colour, marker in kinds.values()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Plot(
        figure,
        "How often the rarer class of a pair is taken for the more frequent one against the reverse, before and after PCB",
    )


def panel(ax: Axes, table: Gathered, source: str, part: str | None = None) -> None:
    """Title and ground of a panel say whose numbers it shows."""
    spread = ", bars ± std over seeds" if len(table.about["seeds"]) > 1 else ""
    origin = "published, LVIS"
    if source == OURS:
        origin = f"measured: {table.about['scale']['data']}{spread}"
    ax.set_title(f"{source}{f' · {part}' if part else ''}", loc="left")
    ax.set_title(origin, loc="right", fontsize=8, fontweight="normal", color="#666666")
    if source == PAPER:
        ax.set_facecolor("#f3f3f3")


def empty(ax: Axes) -> None:
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


def metric_legend(figure: Figure, metrics) -> None:
    handles = [
        Line2D(
            [], [], color=style.COLOURS[m], marker=style.MARKERS[m], label=style.name(m, "latex")
        )
        for m in metrics
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
