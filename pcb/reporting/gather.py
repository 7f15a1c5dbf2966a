"""A table's rows, ours beside the paper's: `gather(study, target)` writes `gathered/<target>.csv` and `<target>.json`.
A page of pictures has the JSON alone.

The CSV is long, one line per row, seed and metric. `ours` is filled only by a metrics.json of the very configuration that
the study describes now (its fingerprint says so); everything else is `not run`, whatever the paper printed. The JSON beside it
holds what a page says around the numbers: title, claim, scale, departures, provenance of the runs, verdicts on the claims.
Together they are all that a notebook reads.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from pcb.errors import UserError
from pcb.files import atomic, write_json
from pcb.reporting import captions
from pcb.reporting.claims import verdicts
from pcb.study import Page, Study, Table
from pcb.study.records import current_record

FIELDS_BEFORE = ("row", "id")
FIELDS_AFTER = ("run", "variant", "seed", "metric", "ours", "paper", "copied", "status")
MEASURED, NOT_RUN = "measured", "not run"


def gather(study: Study, target: str) -> Path:
    """Write what one notebook reads and return the file that it names. Raises `UserError` for an unknown target or a broken file."""
    if target not in study.targets:
        raise UserError(
            f"no table, figure or page is called {target!r}",
            f"choose one of: {', '.join(study.targets)}",
        )
    return (
        gather_page(study, study.pages[target])
        if target in study.pages
        else gather_table(study, study.tables[target])
    )


def gather_table(study: Study, table: Table) -> Path:
    found = {
        (row.run, seed): read_metrics(study, row.run, seed)
        for row in table.rows
        for seed in study.seeds
    }
    out = study.paths.gathered(table.id)
    write_json(study.paths.gathered(table.id, "json"), sidecar(study, table, found))
    with atomic(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS_BEFORE, *table.labels, *FIELDS_AFTER], restval="")
        writer.writeheader()
        writer.writerows(records(study, table, found))
    return out


def gather_page(study: Study, page: Page) -> Path:
    """Pictures are of the first seed alone."""
    from pcb.reporting.images import gallery, pair_explorer

    collect = {"gallery": gallery.collect, "pairs": pair_explorer.collect}[page.id]
    seeds = study.seeds[:1]
    found = {(run, seed): read_metrics(study, run, seed) for run in page.runs for seed in seeds}
    out = study.paths.gathered(page.id, "json")
    write_json(
        out,
        {
            **around(study, page, found, seeds),
            "shows": page.shows,
            "settings": page.settings,
            "shown_seed": seeds[0],
            "confusion": confusions(study, page, found),
            "compare": collect(study, page),
        },
    )
    return out


def records(study: Study, table: Table, found: dict) -> list[dict]:
    """One record per row, seed and metric. `ours` stays empty where nothing was measured; a paper's number never moves there."""
    out = []
    for index, row in enumerate(table.rows):
        for seed in study.seeds:
            ours = ((found[row.run, seed] or {}).get("variants") or {}).get(row.variant)
            for metric in table.columns:
                out.append(
                    {
                        "row": index,
                        "id": row.id,
                        **row.labels,
                        "run": row.run,
                        "variant": row.variant,
                        "seed": seed,
                        "metric": metric,
                        "ours": number((ours or {}).get(metric)),
                        "paper": number(row.paper.get(metric)),
                        "copied": row.copied or "",
                        "status": NOT_RUN if ours is None else MEASURED,
                    }
                )
    return out


def number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def read_metrics(study: Study, run: str, seed: int) -> dict | None:
    """The metrics of one run; None where it was not run in the study's present configuration."""
    return current_record(study.paths.metrics(run, seed), study.fingerprint(run, seed))


def sidecar(study: Study, table: Table, found: dict) -> dict:
    """What a table's page says around the numbers, as JSON values."""
    return {
        **around(study, table, found, study.seeds),
        "claim": table.claim,
        "columns": list(table.columns),
        "labels": list(table.labels),
        "claims": verdicts(study, found, table.id),
        "confusion": confusions(study, table, found) if table.id.startswith("figure") else [],
        "classes": classes(study, table, found) if "PCB" in table.labels else {},
    }


def classes(study: Study, table: Table, found: dict) -> dict:
    """AP of each class, for a table that sets a method beside the same with PCB: per data set train images and groups of the classes,
    per measured row a list for each of its seeds (None for a class without val objects)."""
    out: dict[str, dict] = {}
    for row in table.rows:
        for seed in study.seeds:
            measured = ((found[row.run, seed] or {}).get("classes") or {}).get(row.variant)
            if measured:
                dataset = out.setdefault(study.experiments[row.run].dataset, {"rows": {}})
                dataset |= {
                    "train_images": [c["train_images"] for c in measured],
                    "groups": "".join(c["frequency"] for c in measured),
                }
                dataset["rows"].setdefault(row.id, {})[str(seed)] = [
                    None if c["AP"] is None else round(c["AP"], 2) for c in measured
                ]
    return out


def around(study: Study, target: Table | Page, found: dict, seeds: Sequence[int]) -> dict:
    """What any page says of itself: title, scale, seeds, data, and where its runs come from."""
    scale = study.scale
    backbones = [study.experiments[run].backbone for run in target.runs]
    return {
        "target": target.id,
        "title": target.title,
        "scale": captions.scale_facts(scale, backbones),
        "seeds": list(study.seeds),
        "comparable": not scale.get("synthetic"),
        "datasets": datasets(study, target, found),
        "runs": provenance(study, target, seeds),
    }


def datasets(study: Study, target: Table | Page, found: dict) -> list[dict]:
    """Each data set of a page: its name, and where a run has been measured its val images and classes per group."""
    out = []
    for dataset in dict.fromkeys(study.experiments[run].dataset for run in target.runs):
        measured = [
            m for (run, _), m in found.items() if m and study.experiments[run].dataset == dataset
        ]
        classes = measured[0]["classes"]["plain"] if measured else []
        out.append(
            {
                "key": dataset,
                "version": study.scale["datasets"][dataset]["version"],
                "val_images": measured[0]["images"] if measured else None,
                "classes": {group: sum(c["frequency"] == group for c in classes) for group in "rcf"}
                if measured
                else None,
            }
        )
    return out


def provenance(study: Study, target: Table | Page, seeds: Sequence[int]) -> list[dict]:
    """Where each number comes from: the training's record, one entry per run and seed."""
    out = []
    for run in target.runs:
        for seed in seeds:
            record = current_record(study.paths.train(run, seed), study.fingerprint(run, seed))
            if record:
                out.append(
                    {
                        key: record.get(key)
                        for key in (
                            "run",
                            "seed",
                            "fingerprint",
                            "git",
                            "finished",
                            "seconds",
                            "iterations",
                            "hardware",
                            "versions",
                            "trunk",
                        )
                    }
                )
    return out


def confusions(study: Study, target: Table | Page, found: dict) -> list[dict]:
    """The measured confusion matrices of a page: path from the sidecar's folder, and the classes in the matrix's order."""
    here = study.paths.gathered(target.id).parent
    out = []
    for (run, seed), metrics in found.items():
        path = study.paths.confusion(run, seed)
        if metrics and path.exists():
            classes = [
                {key: c[key] for key in ("name", "frequency", "train_images")}
                for c in metrics["classes"]["plain"]
            ]
            out.append(
                {"run": run, "seed": seed, "path": os.path.relpath(path, here), "classes": classes}
            )
    return out
