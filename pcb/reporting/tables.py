"""Result tables: the rows of a table of the paper with our numbers beside the published ones.

`ResultTable` is the one form of a table. `pcb gather` writes it as JSON, a notebook loads that, the
site builds it in memory, and every rendering (HTML, Markdown, LaTeX, CSV) is made from its `grid`.

Blocks of columns never mix: `ours` (measured here), `paper` (published), and of each the difference
of a row from its base row, `Δ ours` and `Δ paper`. `ours − paper` is there only where the data are
comparable. A row without a measurement shows `not run`, or `not in this scale`. With several seeds,
`ours` is the mean and sample standard deviation over those that were run.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from csv import writer
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.formatting import signed
from pcb.reporting import captions, style
from pcb.reporting.claims import difference
from pcb.reporting.current import MADE_FROM
from pcb.reporting.results import Results
from pcb.study import Row, Table
from pcb.study.records import read_record

if TYPE_CHECKING:
    import pandas as pd  # imported where it is used: half a second that `gather` does not need

FORMAT = 1  # of gathered files; a change of their structure raises it
OURS, PAPER, SEEDS = "ours", "paper", "seeds"
GAIN, PAPER_GAIN, DELTA = "Δ ours", "Δ paper", "ours − paper"
SIGNED = (GAIN, PAPER_GAIN, DELTA)  # blocks of differences
NOT_RUN, NO_VALUE, NO_BASE = "not run", "–", ""
ABSENT = "not in this scale"  # a row of the paper
# CSS classes, and the last part of a cell's address.
KINDS = {
    "": "label",
    OURS: "ours",
    PAPER: "paper",
    GAIN: "gain",
    PAPER_GAIN: "paper-gain",
    DELTA: "delta",
}
LESS_IS_BETTER = {"PwB", "Mrf", "Mfr", "Mup", "Mcor"}  # measures of bias
MARKS = "†‡§¶"  # sources of copied rows, in order of appearance
NAMED_BY_PAPER = {"Dataset", "Backbone", "Model"}  # label columns; ours may be others


@dataclass(frozen=True)
class ResultRow:
    """A row of a table: published numbers, and ours at every seed that was run.

    Attributes:
        id: The row's id in configs/paper.yaml.
        labels: One text for each label column.
        run: The training behind it.
        variant: The evaluation variant behind it.
        paper: Published numbers by metric, without those that the paper does not print.
        copied_from: Where the paper copied the numbers from, if it did not train the row itself.
        ours: Measured values by seed (as text, for JSON) and metric.
        base: Id of the row that it is compared with; None where there is none.
        gains: Our difference from the base row by metric, paired over seeds and resampled images:
            `mean`, `low` and `high` (the limits of its 95 % interval, None without one), `seeds`,
            and whether the interval covers the sampling of `images`.
        absent: Whether its data set, backbone or base method is not in the scale.
    """

    id: str
    labels: list[str]
    run: str
    variant: str
    paper: dict[str, float]
    copied_from: str | None
    ours: dict[str, dict[str, float | None]]
    base: str | None = None
    gains: dict[str, dict] = field(default_factory=dict)
    absent: bool = False

    def values(self, metric: str) -> list[float]:
        """Our values of a metric, one for each seed that has one."""
        by_seed = (values[metric] for values in self.ours.values())
        return [value for value in by_seed if value is not None]

    def number(self, block: str, metric: str) -> float | None:
        """The number of a block: our mean, the published one, a difference from base or paper.

        `ResultTable.paper_gain` has the difference of the published numbers.
        """
        values, paper = self.values(metric), self.paper.get(metric)
        ours = fmean(values) if values else None
        if block == DELTA:
            return None if ours is None or paper is None else ours - paper
        if block == GAIN:
            return self.gains[metric]["mean"] if metric in self.gains else None
        return ours if block == OURS else paper

    def reach(self, metric: str) -> float | None:
        """Half of the 95 % interval of our difference from the base row."""
        gain = self.gains.get(metric)
        return None if gain is None or gain["low"] is None else (gain["high"] - gain["low"]) / 2

    def outside_noise(self, metric: str) -> bool:
        """Whether the 95 % interval of our difference from the base row excludes 0."""
        gain = self.gains.get(metric)
        return bool(gain and gain["low"] is not None and gain["low"] * gain["high"] > 0)

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None below two seeds."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class ResultTable:
    """A table or figure of the paper with our numbers, as JSON values.

    Attributes:
        about: Title, scale, seeds, data, detectors, departures and runs, for `captions`.
        claim: What the paper concludes from the table, in our words.
        labels: Names of the label columns.
        metrics: Keys of the metrics, the columns of every block.
        rows: The rows, in the paper's order.
        claims: Verdicts on the claims that this table's runs decide (`claims.verdicts`).
        plots: The plots of its page, as configs/paper.yaml lists them.
        class_ap: AP of single classes by data set, where a plot shows it (`gather.class_ap`).
        confusion: Excerpts of a confusion matrix, for Figure 1 (`gather.confusion`).
        left_out: How many rows of the paper's table are not in the scale and not among `rows`.
    """

    about: dict
    claim: str
    labels: list[str]
    metrics: list[str]
    rows: list[ResultRow]
    claims: list[dict] = field(default_factory=list)
    plots: list[dict] = field(default_factory=list)
    class_ap: dict[str, dict] = field(default_factory=dict)
    confusion: dict | None = None
    left_out: int = 0

    @property
    def target(self) -> str:
        """Its id: `table06`."""
        return self.about["target"]

    @property
    def planned(self) -> int:
        """How many seeds the study has."""
        return len(self.about["seeds"])

    @property
    def sources(self) -> dict[str, str]:
        """Source of copied rows -> its footnote mark."""
        copied = dict.fromkeys(row.copied_from for row in self.rows if row.copied_from)
        return dict(zip(copied, MARKS, strict=False))

    @property
    def blocks(self) -> list[str]:
        """The blocks of columns; those of the paper only where it prints a number."""
        printed, based = any(r.paper for r in self.rows), any(r.base for r in self.rows)
        return [
            OURS,
            *([PAPER] if printed else []),
            *([GAIN] if based else []),
            *([PAPER_GAIN] if based and printed else []),
            *([DELTA] if printed and self.about["comparable"] else []),
        ]

    def number(self, row: ResultRow, block: str, metric: str) -> float | None:
        """The number of a row in a block; None where there is none."""
        if block != PAPER_GAIN:
            return row.number(block, metric)
        base = next((other for other in self.rows if other.id == row.base), None)
        value, before = row.paper.get(metric), base.paper.get(metric) if base else None
        return None if value is None or before is None else value - before

    def to_json(self) -> dict:
        """The content of a gathered file."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: dict) -> ResultTable:
        """A table from the content of a gathered file."""
        content: dict[str, Any] = {k: v for k, v in value.items() if k not in ("format", "rows")}
        return cls(**content, rows=[ResultRow(**row) for row in value["rows"]])


def rows(results: Results, table: Table) -> list[ResultRow]:
    """The rows of a table of the study, with our measured numbers.

    Rows that are not in the scale are among them where published numbers are shown.
    """
    measured = measured_rows(results, table)
    if not any(row.paper for row in measured):
        return measured
    absent = [
        ResultRow(
            *(row.id, list(row.labels.values()), row.run, row.variant, row.paper),
            copied_from=row.copied_from,
            ours={},
            absent=True,
        )
        for row in table.absent
    ]
    by_id = {row.id: row for row in [*measured, *absent]}
    return [by_id[row] for row in table.order]


def measured_rows(results: Results, table: Table) -> list[ResultRow]:
    """The rows of a table that are in the scale."""
    return [
        ResultRow(
            id=row.id,
            labels=list(row.labels.values()),
            run=row.run,
            variant=row.variant,
            paper=row.paper,
            copied_from=row.copied_from,
            ours={
                str(seed): {metric: values.get(metric) for metric in table.columns}
                for seed in results.study.seeds
                if (values := results.values(row.run, seed, row.variant)) is not None
            },
            base=row.base,
            gains=gains(results, table, row),
        )
        for row in table.rows
    ]


def gains(results: Results, table: Table, row: Row) -> dict[str, dict]:
    """Our differences of a row from its base row, by metric; none of what was not measured."""
    base = next((other for other in table.rows if other.id == row.base), None)
    if base is None:
        return {}
    out = {}
    for metric in table.columns:
        found = difference(results, row, base, metric)
        if found.margin is not None:
            known = found.seeds > 1 or found.images  # else the limits are those of rounding
            out[metric] = {
                "mean": found.margin,
                "low": found.low if known else None,
                "high": found.high if known else None,
                "seeds": found.seeds,
                "images": found.images,
            }
    return out


# Gathered files


def load(gathered: str | Path) -> ResultTable:
    """Load the gathered file of a table or figure. Raises `UserError` (see `load_json`)."""
    return ResultTable.from_json(load_json(gathered))


def load_json(gathered: str | Path) -> dict:
    """Load any gathered file.

    Args:
        gathered: Its path. A relative one counts from the working directory, else from the
            repository's root, so that a notebook's default works wherever Jupyter was started.

    Raises:
        UserError: It does not exist, cannot be read, or is of another format.
    """
    path = Path(gathered)
    if not path.exists() and not path.is_absolute():
        path = ROOT / path
    again = f"run `snakemake --cores all {path.stem}` again"
    value = read_record(path, f"delete it and {again}")
    if value is None and not path.exists():
        raise UserError(
            f"{path} does not exist", f"make it with `snakemake --cores all {path.stem}`"
        )
    if value is None or value.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of this repository", again)
    value.pop(MADE_FROM, None)  # what it was made from is for the workflow
    return value


# Cells


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its position, its text and the number behind it.

    Attributes:
        block: "" for a label, else `ours`, `paper` or `Δ`.
        column: Label column or metric.
        text: What it shows, without `spread` and `mark`.
        spread: Standard deviation over seeds, of `Δ ours` half of the 95 % interval, as text; ""
            for none.
        mark: Footnote mark.
        value: Number to sort by; None where there is none.
        rowspan: Rows that it covers where equal labels are joined; 0 if a cell above covers it.
        clear: Whether the interval of a difference excludes 0.
    """

    block: str
    column: str
    text: str
    spread: str = ""
    mark: str = ""
    value: float | None = None
    rowspan: int = 1
    clear: bool = False

    @property
    def not_run(self) -> bool:
        """Whether it stands for a missing measurement."""
        return self.block == OURS and self.text in (NOT_RUN, ABSENT)

    @property
    def kind(self) -> str:
        """Its CSS class."""
        return "notrun" if self.not_run else KINDS[self.block] + (" clear" if self.clear else "")

    def __str__(self) -> str:
        return self.text + (f" ± {self.spread}" if self.spread else "") + self.mark


def grid(table: ResultTable) -> list[list[Cell]]:
    """The cells of a table, row by row: labels, seeds where they differ, then block by block."""
    spans = row_spans([row.labels for row in table.rows])
    partial = any(0 < len(row.ours) < table.planned for row in table.rows)
    out = []
    for row, row_span in zip(table.rows, spans, strict=True):
        line = [
            Cell("", name, text, rowspan=span)
            for name, text, span in zip(table.labels, row.labels, row_span, strict=True)
        ]
        if partial:
            count = len(row.ours)
            text = str(count) if count == table.planned else f"{count} of {table.planned}"
            line.append(Cell("", SEEDS, text, value=count))
        line += [cell(table, row, b, metric) for b in table.blocks for metric in table.metrics]
        out.append(line)
    return out


def cell(table: ResultTable, row: ResultRow, block: str, metric: str) -> Cell:
    """The cell of one number, with as many decimals as the paper prints."""
    if block == OURS and not row.ours:
        return Cell(block, metric, ABSENT if row.absent else NOT_RUN)
    first_of_paper = block == PAPER and metric == table.metrics[0]
    mark = table.sources.get(row.copied_from or "", "") if first_of_paper else ""
    value = table.number(row, block, metric)
    if value is None:
        without = block in (GAIN, PAPER_GAIN) and row.base is None
        return Cell(block, metric, NO_BASE if without else NO_VALUE, mark=mark)
    digits = decimals(block, metric)
    spread = row.spread(metric) if block == OURS else row.reach(metric) if block == GAIN else None
    shown = "" if spread is None else f"{spread:.{digits}f}"
    if block in SIGNED:
        clear = block == GAIN and row.outside_noise(metric)
        return Cell(block, metric, signed(value, digits), shown, value=value, clear=clear)
    return Cell(block, metric, f"{value:.{digits}f}", shown, mark, value)


def decimals(block: str, metric: str) -> int:
    """Decimals of a number: one, with three exceptions.

    Our PwB, a norm that grows with the number of classes, and correlations have two. The paper
    prints 0.19 and 0.01 for M_rf and M_fr, so its percentages have none.
    """
    measured = block in (OURS, GAIN)
    if metric in ("Mrf", "Mfr"):
        return 1 if measured else 0
    return 2 if measured and metric in ("PwB", "Mcor") else 1


def row_spans(labels: list[list[str]]) -> list[list[int]]:
    """How many rows each label cell covers when equal neighbours are joined.

    Labels are joined only within the label to their left, the last column never. The first cell of
    a group has its length, the others 0.
    """
    spans = [[1] * len(row) for row in labels]
    for column in range(len(labels[0]) - 1):
        start = 0
        for _, group in groupby(labels, key=lambda row: row[: column + 1]):
            length = len(list(group))
            for i in range(start, start + length):
                spans[i][column] = length if i == start else 0
            start += length
    return spans


def ruled(cells: list[list[Cell]]) -> list[bool]:
    """Which rows have a line above: the first of each group, where all rows are in groups."""
    spans = [row[0].rowspan for row in cells]
    return [1 not in spans and i > 0 and span > 0 for i, span in enumerate(spans)]


def footnotes(table: ResultTable) -> list[str]:
    """Sentences below a table: sources of copied rows, whose names labels are, what ± means."""
    notes = [
        f"{mark} Not trained by the paper: it copied this row's numbers from {source}."
        for source, mark in table.sources.items()
    ]
    scale = table.about["scale"]
    if scale["departures"] and not scale["own"] and NAMED_BY_PAPER.intersection(table.labels):
        notes.append(
            "Row labels name the paper's data and backbones; those of our numbers are named above "
            "their columns."
        )
    if table.left_out:
        notes.append(
            f"Not in this scale: {table.left_out} of the paper's rows, on other data sets, "
            "detectors or base methods."
        )
    if table.planned > 1:
        notes.append(
            "Ours: mean ± sample standard deviation over the seeds that were run, "
            f"of {table.planned} planned."
        )
    if GAIN in table.blocks:
        several = "seeds and " if table.planned > 1 else ""
        notes.append(
            f"Δ: a row minus its base row ({base_names(table)}). Of ours ± is half of the 95 % "
            f"interval, paired over {several}resampled validation images; bold where it excludes 0."
        )
    if GAIN in table.blocks and any(row.gains for row in table.rows):
        values = [gain for row in table.rows for gain in row.gains.values()]
        if all(gain["seeds"] == 1 for gain in values):
            notes.append("Provisional: one seed, so no interval covers retraining.")
        if any(not gain["images"] for gain in values):
            notes.append(
                "Where there is no bootstrap of the images, the interval is of seeds alone."
            )
    return notes


def base_names(table: ResultTable) -> str:
    """The rows that others are compared with: by their place, or else by their labels."""
    before, above = None, True
    for row in table.rows:
        above &= row.base in (None, before)
        before = row.id if row.base is None else before
    if above:
        return "the nearest row above that has no Δ"
    used = {row.base for row in table.rows}
    rows = [row for row in table.rows if row.id in used]
    differ = [len({row.labels[k] for row in rows}) > 1 for k in range(len(table.labels))]
    names = [
        " ".join(text for text, own in zip(row.labels, differ, strict=True) if own)
        or " ".join(row.labels)
        for row in rows
    ]
    return "; ".join(dict.fromkeys(names))


# Renderings


def layout(table: ResultTable) -> dict:
    """What the HTML templates of notebooks and of the site need of a table.

    Neither pandas' Styler nor great-tables draws it: both lack a cell that spans the columns of one
    block in some rows (`not run`), joined label cells, and attributes for sorting and provenance.
    """
    cells = grid(table)
    origins = {
        OURS: captions.origin(table.about),
        PAPER: "published, LVIS",
        GAIN: "row − base row, ± 95 %",
        PAPER_GAIN: "the same, published",
        DELTA: "on the same data",
    }
    return {
        "target": table.target,
        "labels": table.labels,
        "seeds": any(c.column == SEEDS for c in cells[0]),
        "blocks": [{"name": b, "kind": KINDS[b], "origin": origins[b]} for b in table.blocks],
        "width": len(table.metrics),
        "columns": [
            {
                "block": block,
                "metric": metric,
                "html": style.name(metric, "html"),
                "kind": KINDS[block],
                "start": metric == table.metrics[0],
                "sort": "up" if metric in LESS_IS_BETTER and block != DELTA else "down",
                "term": glossary_term(metric),
            }
            for block in table.blocks
            for metric in table.metrics
        ],
        "rows": [
            {
                "id": row.id,
                "labels": line[: len(table.labels)],
                "seeds": next((c for c in line if c.column == SEEDS), None),
                "numbers": [c for c in line if c.block],
                "rule": rule,
            }
            for row, line, rule in zip(table.rows, cells, ruled(cells), strict=True)
        ],
        "notes": footnotes(table),
    }


def glossary_term(metric: str) -> str:
    """The term of docs/glossary.md that defines a metric: `AP_r`, `M_rf`."""
    if metric == "Mup":
        return "M_up"
    return style.name(metric).removesuffix(" ↓").removesuffix(" %")


def html(table: ResultTable) -> str:
    """A table for a notebook or page, with its style; colours follow the surroundings."""
    return style.templates().get_template("table.html.j2").render(layout(table))


def text_frame(table: ResultTable) -> pd.DataFrame:
    """The cells as text; columns are pairs (block, column)."""
    import pandas as pd

    cells = grid(table)
    columns = pd.MultiIndex.from_tuples([(c.block, c.column) for c in cells[0]])
    return pd.DataFrame([list(map(str, row)) for row in cells], columns=columns)


def outside_noise(table: ResultTable) -> np.ndarray:
    """Which cells are bold: differences whose interval excludes 0, (rows, columns) bool."""
    return np.array([[cell.clear for cell in row] for row in grid(table)])


def markdown(table: ResultTable) -> str:
    """A GitHub-flavoured table; every numeric column names its block."""
    frame = text_frame(table).map(lambda text: text.replace("|", "\\|"))
    frame = frame.mask(outside_noise(table), "**" + frame + "**")
    align = ["left" if block == "" else "right" for block, _ in frame.columns]
    names = [
        name if block == "" else f"{style.name(name)} ({block})" for block, name in frame.columns
    ]
    body = frame.set_axis(names, axis=1).to_markdown(
        index=False, tablefmt="pipe", disable_numparse=True, colalign=align
    )
    statements = "\n".join(f"> {line}" for line in captions.statements(table.about))
    paragraphs = [f"**{captions.heading(table.about)}**", statements, body, *footnotes(table)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


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


def latex(table: ResultTable) -> str:
    """A booktabs table with its caption; needs the packages booktabs and amssymb."""
    import pandas as pd

    frame = text_frame(table).map(lambda text: text.translate(TEX))
    frame = frame.mask(outside_noise(table), r"\textbf{" + frame + "}")
    labels = sum(block == "" for block, _ in frame.columns)
    numeric = len(frame.columns) - labels
    frame.columns = pd.MultiIndex.from_tuples(
        [
            (block.translate(TEX), name.translate(TEX) if not block else style.name(name, "latex"))
            for block, name in frame.columns
        ]
    )
    sentences = [captions.heading(table.about) + "."]
    sentences += [*captions.statements(table.about), *footnotes(table)]
    return frame.style.hide(axis="index").to_latex(
        column_format="l" * labels + "r" * numeric,
        hrules=True,
        multicol_align="c",
        position="t",
        position_float="centering",
        caption=" ".join(sentences).translate(TEX),
        label=f"tab:{table.target}",
    )


def numbers(table: ResultTable) -> pd.DataFrame:
    """The numbers of a table, unrounded, one line per row.

    Columns are the labels, `id`, `base`, `run`, `variant`, `copied_from`, `seeds` (how many were
    run), and for each metric `ours`, `std` and the other blocks of the table, as in `ours AP` and
    `Δ ours AP`; `low` and `high` are the interval of the latter. A missing number is NaN.
    """
    import pandas as pd

    lines = []
    for row in table.rows:
        line: dict = dict(zip(table.labels, row.labels, strict=True))
        line |= {
            "id": row.id,
            "base": row.base or "",
            "run": row.run,
            "variant": row.variant,
            "copied_from": row.copied_from or "",
        }
        line[SEEDS] = len(row.ours)
        for metric in table.metrics:
            line[f"{OURS} {metric}"] = row.number(OURS, metric)
            line[f"std {metric}"] = row.spread(metric)
            for block in table.blocks[1:]:
                line[f"{block} {metric}"] = table.number(row, block, metric)
                if block == GAIN:
                    gain = row.gains.get(metric, {})
                    line |= {f"{limit} {metric}": gain.get(limit) for limit in ("low", "high")}
        lines.append(line)
    frame = pd.DataFrame(lines)
    measured = list(frame.columns[len(table.labels) + 6 :])
    return frame.astype(dict.fromkeys(measured, float))


def csv(table: ResultTable) -> str:
    """`numbers` to four decimals, for a spreadsheet or a plot."""
    return numbers(table).round(4).to_csv(index=False)


FORMS = {"csv": csv, "md": markdown, "tex": latex}  # the files that a site offers of a table


def csv_text(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV with a head."""
    text = io.StringIO()
    rows = writer(text, lineterminator="\n")
    rows.writerow(head)
    rows.writerows(lines)
    return text.getvalue()
