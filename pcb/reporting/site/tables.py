"""A table of the site: `view(study, target, found)`, the very numbers and roundings of its notebook, with what sorting and the
dialog behind every number need.

Unlike a notebook's table it joins no cells of equal labels, so that its rows can be put into any order.
"""

from __future__ import annotations

import json
import math

import pandas as pd

from pcb.reporting import captions, style, tables
from pcb.reporting.gather import records, sidecar
from pcb.reporting.tables import DELTA, KINDS, NOT_RUN, OURS, PAPER, Gathered
from pcb.study import Study
from pcb.study.records import read_record

LESS_IS_BETTER = {"PwB", "Mrf", "Mfr", "Mup"}  # measures of bias


def view(study: Study, target: str, found: dict) -> dict:
    """What the template draws of one table or figure, from the metrics in `found` ((run, seed) -> metrics or None)."""
    table = assembled(study, target, found)
    numbers, blocks = tables.wide(table), tables.blocks(table)
    columns = [
        {
            "block": block,
            "metric": metric,
            "html": style.name(metric, "html"),
            "kind": KINDS[block],
            "start": i == 0,
            "sort": "up" if metric in LESS_IS_BETTER and block != DELTA else "down",
        }
        for block in blocks
        for i, metric in enumerate(table.columns)
    ]
    origins = {OURS: captions.origin(table.about), PAPER: "published, LVIS", DELTA: "ours − paper"}
    return {
        "target": target,
        "labels": table.labels,
        "blocks": [{"name": b, "kind": KINDS[b], "origin": origins[b]} for b in blocks],
        "metrics": len(table.columns),
        "columns": columns,
        "seeds": len(study.seeds) > 1,
        "rows": rows(table, numbers, columns, len(study.seeds)),
        "notes": tables.footnotes(table),
        "outdated": outdated(table),
    }


def assembled(study: Study, target: str, found: dict) -> Gathered:
    """A table's rows as `pcb gather` would write them now, without the detour over files."""
    table = study.tables[target]
    mine = {(run, seed): found[run, seed] for run in table.runs for seed in study.seeds}
    frame = pd.DataFrame(records(study, table, mine))
    for column in ("row", "seed", "ours", "paper"):
        frame[column] = pd.to_numeric(frame[column])
    return Gathered(frame, sidecar(study, table, mine), study.paths.gathered(target))


def outdated(table: Gathered) -> bool:
    """Whether the page was rendered from other runs, seeds or words than those of now."""
    before = read_record(table.path.with_suffix(".json"))
    return before is not None and before != json.loads(json.dumps(table.about))


def rows(table: Gathered, numbers: pd.DataFrame, columns: list[dict], planned: int) -> list[dict]:
    """One entry per row: labels (`again`: as in the row above), seeds, cells. A row without a measurement has one cell for all of ours."""
    out, above = [], [None] * len(table.labels)
    for _, line in numbers.iterrows():
        labels = [line[label] for label in table.labels]
        again = [labels[: i + 1] == above[: i + 1] for i in range(len(labels))]
        seeds = f"{line['seeds']}" if line["seeds"] == planned else f"{line['seeds']} of {planned}"
        out.append(
            {
                "id": line["id"],
                "labels": [{"text": t, "again": a} for t, a in zip(labels, again, strict=True)],
                "seeds": seeds,
                "cells": cells(table, line, columns),
            }
        )
        above = labels
    first = [row["labels"][0] for row in out]
    grouped = len(table.labels) > 1 and all(
        a["again"] or b["again"] for a, b in zip(first, [*first[1:], {"again": False}], strict=True)
    )
    for i, row in enumerate(out):  # a line between groups, where all rows are in groups
        row["rule"] = grouped and i > 0 and not first[i]["again"]
    return out


def cells(table: Gathered, line: pd.Series, columns: list[dict]) -> list[dict]:
    out = []
    for i, column in enumerate(columns):
        block, metric = column["block"], column["metric"]
        text, _, spread = tables.cell(line, block, metric).partition(" ± ")
        if block == OURS and text == NOT_RUN:
            if column["start"]:
                out.append(
                    {
                        "column": i,
                        "kind": "notrun",
                        "start": True,
                        "text": text,
                        "span": len(table.columns),
                    }
                )
            continue
        mark = table.sources.get(line["copied"], "") if block == PAPER and column["start"] else ""
        value = line[f"{block} {metric}"]
        out.append(
            {
                "column": i,
                "kind": column["kind"],
                "start": column["start"],
                "text": text + mark,
                "spread": spread,
                "span": 1,
                "value": None if math.isnan(value) else round(float(value), 6),
            }
        )
    return out
