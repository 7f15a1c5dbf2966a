"""Gather what a notebook reads: `gather(study, target)` writes gathered/TARGET.json.

For a table or figure that is a `ResultTable`, for a page of images its content. `collect` returns
the same in memory, for the site. Numbers are ours only where metrics.json is of the configuration
that the study describes now; everything else is `not run`, even where the paper prints a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pcb.errors import UserError
from pcb.evaluation.confusion_metrics import Confusion
from pcb.reporting import findings, tables
from pcb.reporting.claims import verdicts
from pcb.reporting.current import MADE_FROM, gathered_from
from pcb.reporting.results import Results
from pcb.reporting.tables import FORMAT, ResultTable
from pcb.study import Page, Study, Summary, Table
from pcb.study.records import write_record

PROVENANCE = (
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
)  # what a page needs of run.json
FIGURE_CLASSES, FIGURE_SEED, FIGURE_PAIRS = 10, 0, 10  # Figure 1: classes drawn, their seed, pairs


def gather(study: Study, target: str) -> Path:
    """Write the input of a notebook.

    Returns:
        The file that was written.

    Raises:
        UserError: A result cannot be read.
    """
    results, out = Results(study), study.paths.gathered(target)
    if target in study.summaries:
        content = collect_summary(results, study.summaries[target])
    elif target in study.pages:
        content = collect_page(results, study.pages[target])
    else:
        content = collect(results, target).to_json()
    write_record(out, {**content, MADE_FROM: gathered_from(study, target)})
    return out


def collect(results: Results, target: str) -> ResultTable:
    """A table or figure of the study with everything that its page shows."""
    table = results.study.tables[target]
    kinds = {plot["kind"] for plot in table.plots}
    rows = tables.rows(results, table)
    return ResultTable(
        about=about(results, table, results.study.seeds),
        claim=table.claim,
        labels=list(table.labels),
        metrics=list(table.columns),
        rows=rows,
        left_out=len(table.rows) + len(table.absent) - len(rows),
        claims=verdicts(results, target),
        plots=list(table.plots),
        class_ap=class_ap(results, table) if "by_class" in kinds else {},
        confusion=confusion(results, table) if target.startswith("figure") else None,
    )


def collect_page(results: Results, page: Page) -> dict:
    """A page of images. It shows the first seed alone."""
    # Imported here: tables, which are most of the jobs, start without pyarrow and hotcoco.
    from pcb.reporting.images import gallery, pair_explorer

    compare = {"gallery": gallery.collect, "pairs": pair_explorer.collect}[page.id]
    seed = results.study.seeds[0]
    return {
        "format": FORMAT,
        **about(results, page, [seed]),
        "shows": page.shows,
        "settings": page.settings,
        "shown_seed": seed,
        "compare": compare(results, page),
    }


def collect_summary(results: Results, summary: Summary) -> dict:
    """A page over all tables."""
    # Imported here: it needs matplotlib, which the gathering of a table does not.
    from pcb.reporting import protocols

    content = {"findings": findings.collect, "protocols": protocols.collect}[summary.id]
    return {
        "format": FORMAT,
        **about(results, summary, results.study.seeds),
        "shows": summary.shows,
        **content(results),
    }


def outdated(study: Study, table: ResultTable) -> bool:
    """Whether a table was gathered earlier, with other content than it has now."""
    path = study.paths.gathered(table.target)
    if not path.exists():
        return False
    try:
        before = tables.load_json(path)
    except UserError:  # broken or of another format
        return True
    return before != json.loads(json.dumps(table.to_json()))


def about(results: Results, target: Table | Page | Summary, seeds: Sequence[int]) -> dict:
    """Metadata of a page: title, seeds, scale, data, detectors, departures, runs."""
    return {
        "target": target.id,
        "title": target.title,
        "seeds": list(results.study.seeds),
        **scale_about(results, target.runs),
        "datasets": datasets(results, target, seeds),
        "runs": provenance(results, target, seeds),
    }


def scale_about(results: Results, runs: Sequence[str]) -> dict:
    """Metadata of a page about the scale of its runs.

    `comparable` is whether every data set behind them was found equal to its LVIS release; on any
    other data the size of a number cannot be compared with the paper's.
    """
    study = results.study
    experiments = [study.experiments[run] for run in runs]
    datasets = {experiment.dataset for experiment in experiments}
    return {
        "scale": results.scale_facts([e.backbone for e in experiments], datasets),
        "comparable": all(results.release(dataset) for dataset in datasets),
    }


def datasets(results: Results, target: Table | Page | Summary, seeds: Sequence[int]) -> list[dict]:
    """The data sets of a page: their names and, once a run was scored, images and classes."""
    study, out = results.study, []
    for key in dict.fromkeys(study.experiments[run].dataset for run in target.runs):
        runs = [run for run in target.runs if study.experiments[run].dataset == key]
        scored = (results.metrics(run, seed) for run in runs for seed in seeds)
        metrics = next((content for content in scored if content), None)
        groups = [c["frequency"] for c in metrics["classes"]["plain"]] if metrics else []
        entry = study.scale["datasets"][key]
        out.append(
            {
                "key": key,
                "version": entry.get("version"),
                "title": entry.get("title"),
                "format": entry.get("format", "lvis"),
                "val_images": metrics["images"] if metrics else None,
                "classes": {g: groups.count(g) for g in "rcf"} if metrics else None,
            }
        )
    return out


def provenance(
    results: Results, target: Table | Page | Summary, seeds: Sequence[int]
) -> list[dict]:
    """Where the numbers come from: an excerpt of the record of every run and seed."""
    records = (results.record(run, seed) for run in target.runs for seed in seeds)
    return [{key: record.get(key) for key in PROVENANCE} for record in records if record]


def class_ap(results: Results, table: Table) -> dict[str, dict]:
    """AP of single classes, for a plot over their train images.

    Returns:
        For each data set that was measured: `train_images` and `groups` of its classes, and `rows`,
        which maps row -> seed -> AP of each class (None for a class without val objects).
    """
    study = results.study
    out: dict[str, dict] = {}
    for row in table.rows:
        for seed in study.seeds:
            metrics = results.metrics(row.run, seed)
            classes = metrics["classes"].get(row.variant) if metrics else None
            if not classes:
                continue
            dataset = out.setdefault(study.experiments[row.run].dataset, {"rows": {}})
            dataset["train_images"] = [c["train_images"] for c in classes]
            dataset["groups"] = "".join(c["frequency"] for c in classes)
            dataset["rows"].setdefault(row.id, {})[str(seed)] = [
                None if c["AP"] is None else round(c["AP"], 2) for c in classes
            ]
    return out


def confusion(results: Results, table: Table) -> dict | None:
    """Excerpts of the first measured confusion matrix of a figure; None where nothing was run.

    Returns:
        `classes` and `matrix` of ten classes drawn at random, rarest first, `groups`, the (3, 3)
        probabilities between rare, common and frequent classes, and the most one-sided `pairs`.
    """
    for run in table.runs:
        for seed in results.study.seeds:
            if measured := results.confusion(run, seed):
                chosen = measured.choose(FIGURE_CLASSES, FIGURE_SEED)
                return {
                    "run": run,
                    "seed": seed,
                    "classes": [f"{measured.names[i]} ({measured.frequency[i]})" for i in chosen],
                    "matrix": measured.matrix[chosen][:, chosen].tolist(),
                    "groups": measured.by_group().tolist(),
                    "pairs": [
                        {
                            "i": class_label(measured, i),
                            "j": class_label(measured, j),
                            "i_for_j": float(measured.matrix[i, j]),
                            "j_for_i": float(measured.matrix[j, i]),
                        }
                        for i, j in measured.most_one_sided(FIGURE_PAIRS)
                    ],
                }
    return None


def class_label(confusion: Confusion, i: int) -> str:
    """A class with its group and number of train images."""
    images = confusion.train_images[i]
    plural = "s" if images != 1 else ""
    return f"{confusion.names[i]} ({confusion.frequency[i]}, {images} train image{plural})"
