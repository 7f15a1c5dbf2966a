"""Plots of confusion matrices and of objects: Figure 1, the gallery, the page of pairs."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pcb.frequency import GROUP_NAMES
from pcb.reporting.plots.parts import GREY, Plot, canvas, empty, literal, titled
from pcb.reporting.tables import ResultTable


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
    up, down = 100 * table.confusion["groups"][0][2], 100 * table.confusion["groups"][2][0]
    return Plot(
        figure,
        f"Heat map of the confusion between {', '.join(names)}, and between rare, common and "
        f"frequent classes: {up:.1f} % of objects of rare classes are predicted as a frequent one, "
        f"{down:.1f} % of the reverse.",
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
    found = [
        f"{entry['label']}: of rare and common classes, "
        f"{sum(entry['counts'][g]['gains'] for g in 'rc')} objects with PCB only, "
        f"{sum(entry['counts'][g]['losses'] for g in 'rc')} without PCB only"
        for entry in shown
    ]
    what = (
        "Objects of rare, common and frequent classes: recognised by both models, by one of them, "
        "by neither"
    )
    return Plot(figure, ". ".join([what, *found]) + ".")


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
    found = [
        f"{entry['label']}: more often in {shares[0]} of pairs before PCB, in {shares[1]} after"
        for entry in shown
        if all(shares := [share_below(points) for points in entry["both_ways"]])
    ]
    what = (
        "How often the rarer class of a pair is predicted as the more frequent one against the "
        "reverse"
    )
    return Plot(figure, ". ".join([what, *found]) + ".")


def share_below(points: dict) -> str:
    """The share of pairs in which the rarer class loses; empty without pairs."""
    up, down = np.array(points["up"]), np.array(points["down"])
    return f"{100 * (up > down).mean():.0f} %" if len(up) else ""


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
    below = f"{share_below(points)} of {len(up)} below the line" if len(up) else ""
    titled(ax, title, [below])
    ax.set(xscale="log", yscale="log", xlim=(least / 3.5, 1.2), ylim=(least / 3.5, 1.2))
    ax.set_xlabel("rarer predicted as more frequent")
