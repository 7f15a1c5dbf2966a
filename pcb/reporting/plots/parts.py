"""What all plots share: the figure with its description, panels and their heads, legends."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pcb import formatting
from pcb.reporting import captions, style
from pcb.reporting.tables import OURS, PAPER, ResultTable

DPI = 200
NO_CLASS = "no class to measure it on"
GREY = "#555555"


@dataclass(frozen=True)
class Plot:
    """A figure that Jupyter shows, with a description for readers who cannot see it."""

    figure: Figure
    alt: str

    def png(self) -> bytes:
        """The picture in at most 256 colours, a third of the bytes of a full PNG.

        Its field `Description` holds what it shows.
        """
        full, small = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(style.RC):
            self.figure.savefig(full, dpi=DPI, format="png", facecolor="white")
        about = PngInfo()
        about.add_itxt("Description", self.alt)
        Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True, pnginfo=about
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


def described(figure: Figure, table: ResultTable, text: str, found: Sequence[str]) -> Plot:
    """A plot of ours and of the published numbers, where the table has any.

    Args:
        figure: The figure.
        table: The table.
        text: What is drawn.
        found: What it shows, a sentence each.
    """
    both = "; ours and the paper's apart" if PAPER in table.blocks else ""
    sentences = [f"{formatting.number(table.target)}: {text}{both}", *found]
    return Plot(figure, ". ".join(sentences) + ".")


def sources(table: ResultTable) -> tuple[str, ...]:
    """The blocks that have a panel each: ours, and the paper's where it prints numbers."""
    return (OURS, PAPER) if PAPER in table.blocks else (OURS,)


def equal_spans(axes: Iterable[Axes], axis: str) -> None:
    """Give panels axes of equal length in AP, each around its own numbers.

    Slopes and distances then compare, although the numbers are of different sizes.

    Args:
        axes: The panels, drawn.
        axis: `x` or `y`.
    """
    drawn = [ax for ax in axes if ax.has_data()]
    limits = [getattr(ax, f"get_{axis}lim")() for ax in drawn]
    span = max((high - low for low, high in limits), default=0.0)
    for ax, (low, high) in zip(drawn, limits, strict=True):
        grown = (span - (high - low)) / 2
        getattr(ax, f"set_{axis}lim")(low - grown, high + grown)


@contextmanager
def canvas(width: float, height: float) -> Generator[Figure]:
    """A figure of this size in inches, in the style of all pages."""
    with matplotlib.rc_context(style.RC):
        yield Figure(figsize=(width, height), layout="constrained")


def literal(text: str) -> str:
    """A text of the user's data or study, whose dollar signs are not mathematics."""
    return text.replace("$", r"\$")


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


def empty(ax: Axes, table: ResultTable | None = None) -> None:
    """Mark a panel without numbers: of what was not run, or of rows that have no such metric."""
    measured = table is not None and any(row.ours for row in table.rows)
    ax.text(
        0.5,
        0.5,
        NO_CLASS if measured else "not run",
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize=14,
        style="italic",
        color="#888888",
    )
    ax.grid(visible=False)
    ax.tick_params(axis="x", labelcolor="#bbbbbb")


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
