"""A gathered table as numbers and as text: `load` it, then `wide`, `cells`, `html`, `markdown`, `latex`, `csv`.

Three blocks of columns that are never mixed: `ours` (measured here), `paper` (published) and `Δ` = ours − paper. A row without a
measurement says `not run`. With several seeds `ours` is the mean ± the sample standard deviation over those that were run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.reporting import style
from pcb.reporting.captions import heading, origin, statements
from pcb.reporting.gather import FIELDS_AFTER, FIELDS_BEFORE, NOT_RUN

OURS, PAPER, DELTA = "ours", "paper", "Δ"
NO_VALUE = "–"
KINDS = {"": "label", OURS: "ours", PAPER: "paper", DELTA: "delta"}  # CSS classes
MARKS = "†‡§¶"  # sources of copied rows, in order of appearance


@dataclass(frozen=True)
class Gathered:
    """A table's long rows (`gather.py` names the columns), what its sidecar says about them, and where both lie."""

    rows: pd.DataFrame
    about: dict
    path: Path

    @property
    def labels(self) -> list[str]:
        return self.about["labels"]

    @property
    def columns(self) -> list[str]:
        return self.about["columns"]

    @property
    def sources(self) -> dict[str, str]:
        """Source of copied rows -> its mark."""
        sources = [s for s in self.rows["copied"].unique() if s]
        return dict(zip(sources, MARKS, strict=False))


def load(gathered: str | Path) -> Gathered:
    """Read a gathered CSV and its sidecar.

    Raises `UserError` when there is none, or when it is not a file of `pcb gather`.
    """
    path = located(gathered)
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
        about = json.loads(path.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or path} does not exist",
            f"make it with `snakemake --cores all {path.stem}`",
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read: {error}",
            f"delete it and run `snakemake --cores all {path.stem}`",
        ) from error
    if missing := [c for c in (*FIELDS_BEFORE, *FIELDS_AFTER) if c not in rows]:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}",
            f"delete it and run `snakemake --cores all {path.stem}`",
        )
    for column in ("row", "seed", "ours", "paper"):
        rows[column] = pd.to_numeric(rows[column])
    return Gathered(rows, about, path)


def located(gathered: str | Path) -> Path:
    """A relative path counts from the current folder, else from the repository's root: notebooks run in both."""
    path = Path(gathered)
    return path if path.exists() or path.is_absolute() else ROOT / path


def wide(table: Gathered) -> pd.DataFrame:
    """One line per row of the paper: labels, run, variant, copied, `seeds` (how many were measured), and per metric

    `ours <metric>` (mean over seeds), `std <metric>` (NaN below two seeds), `paper <metric>`, `Δ <metric>`.
    """
    lines = []
    for _, group in groupby(
        sorted(table.rows.to_dict("records"), key=itemgetter("row")), itemgetter("row")
    ):
        entries = list(group)
        line = {key: entries[0][key] for key in (*table.labels, "id", "run", "variant", "copied")}
        line["seeds"] = len({entry["seed"] for entry in entries if entry["status"] != NOT_RUN})
        for metric in table.columns:
            mine = [entry for entry in entries if entry["metric"] == metric]
            values = [entry["ours"] for entry in mine if not isnan(entry["ours"])]
            line[f"{OURS} {metric}"] = fmean(values) if values else nan
            line[f"std {metric}"] = stdev(values) if len(values) > 1 else nan
            line[f"{PAPER} {metric}"] = mine[0]["paper"]
            line[f"{DELTA} {metric}"] = line[f"{OURS} {metric}"] - line[f"{PAPER} {metric}"]
        lines.append(line)
    return pd.DataFrame(lines)


def published(table: Gathered) -> bool:
    """Whether the paper prints any number for this table (Figure 1 has none)."""
    return bool(table.rows["paper"].notna().any())


def blocks(table: Gathered) -> tuple[str, ...]:
    return (OURS, PAPER, DELTA) if published(table) else (OURS,)


def cells(table: Gathered) -> pd.DataFrame:
    """The table as text. Columns are pairs: ('', label) and (block, metric)."""
    numbers = wide(table)
    out = {}
    for label in table.labels:
        out["", label] = list(numbers[label])
    if (
        numbers["seeds"].between(1, len(table.about["seeds"]) - 1).any()
    ):  # some rows rest on fewer seeds than planned
        out["", "seeds"] = [str(n) for n in numbers["seeds"]]
    for block in blocks(table):
        for metric in table.columns:
            out[block, metric] = [cell(line, block, metric) for _, line in numbers.iterrows()]
    if table.sources:
        first = PAPER, table.columns[0]
        out[first] = [
            value + table.sources.get(copied, "")
            for value, copied in zip(out[first], numbers["copied"], strict=True)
        ]
    return pd.DataFrame(out)


def cell(line: pd.Series, block: str, metric: str) -> str:
    """One number as the page shows it: with as many decimals as the paper prints."""
    value = line[f"{block} {metric}"]
    if block == OURS and not line["seeds"]:
        return NOT_RUN
    if pd.isna(value):
        return NO_VALUE
    digits = decimals(block, metric)
    if block == DELTA:
        return (
            f"{value:+.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"
        )
    spread = line[f"std {metric}"] if block == OURS else float("nan")
    return f"{value:.{digits}f}" if pd.isna(spread) else f"{value:.{digits}f} ± {spread:.{digits}f}"


def decimals(block: str, metric: str) -> int:
    """One; of our PwB, a norm that grows with the number of classes, two; of the paper's probabilities, printed as 0.19 and 0.01, none."""
    if metric in ("Mrf", "Mfr"):
        return 1 if block == OURS else 0
    return 2 if block == OURS and metric == "PwB" else 1


def footnotes(table: Gathered) -> list[str]:
    notes = [
        f"{mark} Not trained by the paper: it copied this row's numbers from {source}."
        for source, mark in table.sources.items()
    ]
    if len(table.about["seeds"]) > 1:
        notes.append(
            f"Ours: mean ± sample standard deviation over the seeds that were run, of {len(table.about['seeds'])} planned."
        )
    return notes


def html(table: Gathered) -> str:
    """The table for a page or a notebook, with its own few lines of style; colours follow the surroundings, light or dark."""
    text = cells(table)
    return (
        style.templates()
        .get_template("table.html.j2")
        .render(
            labels=list(text[""]),
            blocks=blocks(table),
            kinds=KINDS,
            metrics=[style.name(m, "html") for m in table.columns],
            rows=html_rows(table, text),
            notes=footnotes(table),
            origin=origin(table.about),
        )
    )


def html_rows(table: Gathered, text: pd.DataFrame) -> list[dict]:
    """Rows for the template: equal neighbours of a label column share one cell, and `not run` stands once across its block."""
    spans = {
        label: merge(text[""][table.labels[: i + 1]]) for i, label in enumerate(table.labels[:-1])
    }
    first = spans[table.labels[0]] if spans else []
    ruled = all(span != 1 for span in first)  # a line between groups, where all rows are in groups
    rows = []
    for i, line in text.iterrows():
        shown = []
        for (block, name), value in line.items():
            start, not_run = (
                block != "" and name == table.columns[0],
                block == OURS and value == NOT_RUN,
            )
            rowspan = spans[name][i] if block == "" and name in spans else 1
            if rowspan and (start or not not_run):
                value, _, spread = value.partition(" ± ")
                shown.append(
                    {
                        "text": value,
                        "spread": spread,
                        "kind": "notrun" if not_run else KINDS[block],
                        "start": start,
                        "span": len(table.columns) if not_run else 1,
                        "rowspan": rowspan,
                    }
                )
        rows.append({"cells": shown, "rule": ruled and i > 0 and bool(first) and first[i] > 0})
    return rows


def merge(labels: pd.DataFrame) -> list[int]:
    """Row spans that join neighbours with equal labels: the first of a group carries its length, the others 0."""
    new = (labels != labels.shift()).any(axis=1)
    return list(new.groupby(new.cumsum()).transform("size").where(new, 0))


def markdown(table: Gathered) -> str:
    """A GitHub-flavoured table; every numeric column names its block, so that no number stands without its origin."""
    text = cells(table)
    head = [
        name if block == "" else f"{style.name(name)} ({block})" for block, name in text.columns
    ]
    align = ["---" if block == "" else "---:" for block, _ in text.columns]
    lines = [
        f"**{heading(table.about)}**",
        "",
        *(f"> {line}" for line in statements(table.about)),
        "",
    ]
    lines += [
        "| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |"
        for row in [head, align, *text.itertuples(index=False)]
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in footnotes(table))]) + "\n"


TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "×": r"$\times$",
        "→": r"$\to$",
        "✓": r"$\checkmark$",
        "✗": r"$\times$",
        "↓": r"$\downarrow$",
        "α": r"$\alpha$",
        "γ": r"$\gamma$",
        "Δ": r"$\Delta$",
        "†": r"$^\dagger$",
        "‡": r"$^\ddagger$",
        "§": r"$^\S$",
        "¶": r"$^\P$",
    }
)


def latex(table: Gathered) -> str:
    """A booktabs table with its caption: needs the packages booktabs and amssymb."""
    text = cells(table).map(lambda value: value.translate(TEX))
    labels = sum(block == "" for block, _ in text.columns)
    numeric = len(text.columns) - labels
    text.columns = pd.MultiIndex.from_tuples(
        [
            (
                block.translate(TEX),
                name.translate(TEX) if block == "" else style.name(name, "latex"),
            )
            for block, name in text.columns
        ]
    )
    caption = " ".join(
        [heading(table.about) + ".", *statements(table.about), *footnotes(table)]
    ).translate(TEX)
    return text.style.hide(axis="index").to_latex(
        column_format="l" * labels + "r" * numeric,
        hrules=True,
        multicol_align="c",
        position="t",
        position_float="centering",
        caption=caption,
        label=f"tab:{table.about['target']}",
    )


def csv(table: Gathered) -> str:
    """The numbers of `wide`, unrounded to four decimals, for a spreadsheet or a plot."""
    return wide(table).round(4).to_csv(index=False)
