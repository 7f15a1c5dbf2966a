"""Plots of result tables, ours and the paper's in separate panels.

The paper's panels are grey, their markers hollow. Axes of AP have equal spans in both, so that
slopes and distances can be compared; where the data are comparable, equal limits. A figure's
description says what it shows, in numbers. configs/paper.yaml lists the plots of a table
(`plots:`); `draw(table)` makes them:

    groups    AP_r, AP_c, AP_f of each row      (Tables 1, 3, 4, 8, 9, 11; the default)
    curve     metrics over a setting            (Tables 5, 6, 7, 10)
    arrows    base method -> with PCB           (Table 2)
    by_class  AP of classes by train images     (Table 2)

`confusion` draws Figure 1, `recognised` the gallery, `both_ways` the page of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

from pcb.reporting.plots.methods import arrows, by_class
from pcb.reporting.plots.pages import both_ways, confusion, recognised
from pcb.reporting.plots.parts import Plot, Section, canvas, empty
from pcb.reporting.plots.rows import curve, groups
from pcb.reporting.tables import ResultTable

__all__ = [
    "Plot",
    "Section",
    "arrows",
    "both_ways",
    "by_class",
    "canvas",
    "confusion",
    "curve",
    "draw",
    "empty",
    "groups",
    "recognised",
]

DEFAULT = {
    "kind": "groups",
    "text": "AP of rare (r), common (c) and frequent (f) classes, row by row. "
    "The shorter the line, the smaller the gap between them.",
}  # for a table that lists no plots


def draw(table: ResultTable) -> Iterator[Section]:
    """Draw the plots of a table, as configs/paper.yaml lists them."""
    kinds = {"groups": groups, "curve": curve, "arrows": arrows, "by_class": by_class}
    for spec in table.plots or [DEFAULT]:
        arguments = {k: v for k, v in spec.items() if k not in ("kind", "title", "text")}
        plot = kinds[spec["kind"]](table, **arguments)
        yield Section(spec.get("title", "Picture"), spec["text"], plot)
