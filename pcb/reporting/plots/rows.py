"""Plots of the rows of a table: groups of classes row by row, metrics over a setting."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pcb.reporting import style
from pcb.reporting.plots.parts import (
    NO_CLASS,
    Plot,
    canvas,
    described,
    empty,
    equal_spans,
    literal,
    marks,
    metric_legend,
    panel,
    sources,
)
from pcb.reporting.tables import ABSENT, NOT_RUN, OURS, ResultTable, numbers

GROUP_METRICS = ("APr", "APc", "APf")


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
            len(sources(table)),
            squeeze=False,
            sharex=True,
            sharey="row" if table.about["comparable"] else False,
        )
        for axes, (value, data) in zip(grid, panels, strict=True):
            for ax, source in zip(axes, sources(table), strict=True):
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
                    empty(ax, table if source == OURS else None)
                ax.set(ylabel=f"AP, {value}" if value else "AP", xlabel=x)
                ax.set_xticks(np.arange(len(data)), [literal(str(value)) for value in data[x]])
        if not table.about["comparable"]:
            equal_spans(grid.flat, "y")
        metric_legend(figure, metrics)
    found = [
        best_setting(data, source, metrics[0], x, value)
        for value, data in panels
        for source in sources(table)
    ]
    what = f"{', '.join(map(style.name, metrics))} over {x}"
    return described(figure, table, what, list(filter(None, found)))


def best_setting(data: pd.DataFrame, source: str, metric: str, x: str, value: str | None) -> str:
    """Where a metric of a curve is largest, and its range; empty without numbers."""
    values = data[f"{source} {metric}"].dropna()
    if values.empty:
        return ""
    at = data.loc[values.idxmax(), x]
    of = f"{source.capitalize()}, {value}" if value else source.capitalize()
    return (
        f"{of}: {style.name(metric)} is between {values.min():.1f} and {values.max():.1f}, "
        f"highest at {x} = {at}"
    )


def groups(table: ResultTable) -> Plot:
    """AP of rare, common and frequent classes, a line of three markers for each row.

    The shorter the line, the smaller the bias. Without these metrics: all that the table has.
    """
    frame = numbers(table)
    metrics = [m for m in GROUP_METRICS if m in table.metrics] or table.metrics
    names = [literal(" · ".join(row.labels)) for row in table.rows]
    heights = np.arange(len(names))[::-1]
    with canvas(9.2, 1.7 + 0.32 * len(names)) as figure:
        shape = 1, len(sources(table))
        axes = figure.subplots(
            *shape, squeeze=False, sharey=True, sharex=table.about["comparable"]
        )[0]
        for ax, source in zip(axes, sources(table), strict=True):
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
                        absence(table, height, source),
                        transform=ax.get_yaxis_transform(),
                        va="center",
                        color="#777777",
                        fontsize=9,
                    )
            ax.set(xlabel="AP", ylim=(-0.7, len(names) - 0.3))
            ax.set_yticks(heights, names)
            ax.grid(axis="y", visible=False)
        if not table.about["comparable"]:
            equal_spans(axes, "x")
        metric_legend(figure, metrics)
    found = [extreme_gaps(table, frame, source) for source in sources(table)]
    what = "AP of rare, common and frequent classes, row by row"
    return described(figure, table, what, list(filter(None, found)))


def absence(table: ResultTable, height: int, source: str) -> str:
    """Why the row at a height, counted from the last, has no number."""
    if source != OURS:
        return "not printed"
    row = table.rows[len(table.rows) - 1 - height]
    return NO_CLASS if row.ours else ABSENT if row.absent else NOT_RUN


def extreme_gaps(table: ResultTable, frame: pd.DataFrame, source: str) -> str:
    """Between which rows AP_f and AP_r differ least and most; empty without numbers."""
    if not {"APr", "APf"} <= set(table.metrics):
        return ""
    gaps = (frame[f"{source} APf"] - frame[f"{source} APr"]).dropna()
    if gaps.empty:
        return ""
    least, most = (" · ".join(table.rows[k].labels) for k in (gaps.idxmin(), gaps.idxmax()))
    return (
        f"{source.capitalize()}: AP_f and AP_r differ least for {least} ({gaps.min():.1f}) "
        f"and most for {most} ({gaps.max():.1f})"
    )
