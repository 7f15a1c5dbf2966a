"""Line charts as SVG, for pages that need no script: `chart(lines, …)`.

Pages have three or four on each of 43 pages. matplotlib would take seconds for them and could not
follow a dark page; a library for the browser (uPlot, 50 kB, is the smallest) draws nothing in print
or without scripts. A point's values appear as the browser's own tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, log10

from markupsafe import Markup

from pcb.reporting import style

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 36
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name in the legend and in tooltips.
        points: (x, y), by ascending x.
        look: Its CSS class: `s0` to `s5`, or `base` for a dashed grey one.
    """

    name: str
    points: Sequence[Point]
    look: str


def chart(
    lines: Sequence[Line],
    alt: str,
    xlabel: str,
    digits: int = 2,
    marks: Sequence[tuple[float, str]] = (),
    xlimit: float | None = None,
    ylimit: float | None = None,
) -> Markup:
    """Draw lines from 0 upwards.

    Args:
        lines: The lines; those without points are left out.
        alt: What the chart shows, for those who do not see it.
        xlabel: Title of the horizontal axis.
        digits: Significant digits of values in tooltips, from 2 on.
        marks: (x, text) of dotted vertical lines.
        xlimit: End of the horizontal axis; None: the largest x.
        ylimit: End of the vertical axis; None: the largest y.
    """
    lines = [line for line in lines if line.points]
    xs = sorted({x for line in lines for x, _ in line.points})
    right = xlimit or max(xs, default=1.0)
    top = ylimit or max((y for line in lines for _, y in line.points), default=1.0) * 1.04 or 1.0

    def at(x: float, y: float) -> Point:
        return (
            round(LEFT + x / right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / top * (HEIGHT - BOTTOM - TOP), 1),
        )

    values = [dict(line.points) for line in lines]
    edges = [at((a + b) / 2, 0)[0] for a, b in pairwise(xs)]
    bounds = list(zip([LEFT, *edges], [*edges, WIDTH - RIGHT], strict=True)) if xs else []
    return Markup(
        style.templates()
        .get_template("chart.svg.j2")
        .render(
            alt=alt,
            box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
            ground=HEIGHT - BOTTOM,
            top=TOP,
            xlabel=xlabel,
            xticks=[(at(x, 0)[0], f"{x:g}") for x in ticks(right, 6)],
            yticks=[(at(0, y)[1], f"{y:g}") for y in ticks(top, 4)],
            marks=[(at(x, 0)[0], text) for x, text in marks],
            lines=[
                {"look": line.look, "path": path([at(*point) for point in line.points])}
                for line in lines
            ],
            bands=[
                {
                    "left": low,
                    "width": round(high - low, 1),
                    "text": "\n".join(
                        [
                            f"{xlabel} {x:.4g}",
                            *(
                                f"{line.name}: {of[x]:.{max(digits, 2)}g}"
                                for line, of in zip(lines, values, strict=True)
                                if x in of
                            ),
                        ]
                    ),
                }
                for x, (low, high) in zip(xs, bounds, strict=True)
            ],
        )
    )


def ticks(end: float, count: int) -> list[float]:
    """About `count` round numbers from 0 to `end`."""
    raw = end / count
    scale = 10.0 ** floor(log10(raw))
    step = scale * next(f for f in (1, 2, 2.5, 5, 10) if f * scale >= raw * 0.999)
    return [round(step * k, 12) for k in range(int(end / step + 1e-9) + 1)]


def path(points: Sequence[Point]) -> str:
    """A polyline; a single point becomes a short dash."""
    if len(points) == 1:
        points = [(points[0][0] - 3, points[0][1]), (points[0][0] + 3, points[0][1])]
    return " ".join(f"{x:g},{y:g}" for x, y in points)
