"""The look of tables, plots and pages: metric names, colours, and the templates in this folder.

The colours are Okabe and Ito's, which people with any colour vision can distinguish. Marker shapes
carry the same information.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from pcb.formatting import signed

FOLDER = Path(__file__).parent

# A metric's name in the paper: plain text, HTML, LaTeX (which matplotlib reads too).
METRICS = {
    "AP": ("AP", "AP", "AP"),
    "AP50": ("AP50", "AP<sub>50</sub>", "AP$_{50}$"),
    "AP75": ("AP75", "AP<sub>75</sub>", "AP$_{75}$"),
    "APr": ("AP_r", "AP<sub>r</sub>", "AP$_r$"),
    "APc": ("AP_c", "AP<sub>c</sub>", "AP$_c$"),
    "APf": ("AP_f", "AP<sub>f</sub>", "AP$_f$"),
    "APb": ("AP^b", "AP<sup>b</sup>", "AP$^b$"),
    "APbr": ("AP^b_r", "AP<sup>b</sup><sub>r</sub>", "AP$^b_r$"),
    "APbc": ("AP^b_c", "AP<sup>b</sup><sub>c</sub>", "AP$^b_c$"),
    "APbf": ("AP^b_f", "AP<sup>b</sup><sub>f</sub>", "AP$^b_f$"),
    "PwB": ("PwB ↓", "PwB ↓", r"PwB $\downarrow$"),
    "Mrf": ("M_rf %", "M<sub>rf</sub> %", r"$M_{rf}$ \%"),
    "Mfr": ("M_fr %", "M<sub>fr</sub> %", r"$M_{fr}$ \%"),
    "Mup": ("one-sided %", "one-sided %", r"one-sided \%"),
    "Mcor": ("score–count r", "score–count <i>r</i>", "score-count $r$"),
}
COLOURS = {
    "AP": "#333333",
    "APr": "#D55E00",
    "APc": "#009E73",
    "APf": "#0072B2",
    "APb": "#CC79A7",
    "AP50": "#56B4E9",
    "AP75": "#E69F00",
}
MARKERS = {"AP": "o", "APr": "v", "APc": "s", "APf": "^", "APb": "D", "AP50": "P", "AP75": "X"}
# Methods, in order of appearance.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")

# Verdicts on claims; the words stand beside them.
SIGNS = {
    "holds": "✓",
    "partly holds": "◐",
    "within noise": "≈",
    "fails": "✗",
    "not comparable": "↔",
    "no such class here": "·",
    "not printed": "·",
    "not run": "·",
    "not judged": "·",
}

# Protocols of scoring, in a sentence.
PROTOCOLS = {
    "lvis": "LVIS's rule",
    "verified": "every absent class verified",
    "fixed": "AP-Fixed",
    "loose": "a looser limit of detections an image",
}
JUDGED = ("holds", "partly holds", "within noise", "fails")
# The same after a number of claims or checks: "7 hold".
PHRASES = {
    "holds": "hold",
    "partly holds": "partly hold",
    "within noise": "within noise",
    "fails": "fail",
    "not comparable": "not comparable",
    "no such class here": "without such classes here",
    "not printed": "not printed",
    "not run": "not run",
    "not judged": "not judged",
}

RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


def name(metric: str, form: str = "text") -> str:
    """A metric as the paper writes it, as `text`, `html` or `latex`."""
    return METRICS.get(metric, (metric,) * 3)[("text", "html", "latex").index(form)]


def colour(metric: str) -> str:
    """The colour of a metric in plots."""
    return COLOURS.get(metric, "#333333")


def marker(metric: str) -> str:
    """The marker of a metric in plots."""
    return MARKERS.get(metric, "o")


def notation(text: str) -> Markup:
    """A sentence as HTML, with the indices of `AP_r`, `M_rf` and `AP^b` set as such."""
    text = re.sub(r"\b(AP|M|L)_\{?([\w,]*\w)\}?", r"\1<sub>\2</sub>", str(escape(text)))
    return Markup(re.sub(r"\bAP\^(\w)", r"AP<sup>\1</sup>", text))


def tally_text(counts: dict[str, int]) -> str:
    """`7 of 8 checks hold, 3 not printed`, from the counts of a claim's checks."""
    judged = sum(counts.get(verdict, 0) for verdict in JUDGED)
    held = f"{counts.get('holds', 0)} of {judged} check{'' if judged == 1 else 's'} hold"
    others = [f"{n} {verdict}" for verdict, n in tally(counts) if verdict not in JUDGED]
    return ", ".join([held + "s" * (judged == 1), *others] if judged else others)


def tally(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The verdicts that occur with their number, in the order of pages."""
    return [(verdict, counts[verdict]) for verdict in SIGNS if counts.get(verdict)]


def figure(value: float, digits: int = 2) -> str:
    """A number that a check compares, with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


@lru_cache
def templates() -> Environment:
    """The jinja2 environment of the templates in this folder; values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["notation"] = notation
    functions: dict[str, Any] = {
        "css": read,
        "margin": partial(signed, digits=2),
        "figure": figure,
        "signed": signed,
        "tally_text": tally_text,
        "tally": tally,
        "signs": SIGNS,
        "phrases": PHRASES,
        "judged": JUDGED,
    }
    environment.globals.update(functions)
    return environment


def read(file: str) -> str:
    """A style sheet or script of this folder, to be set into a page."""
    return (FOLDER / file).read_text(encoding="utf-8")
