"""The pair explorer: `collect(study, page)` gathers the most one-sided pairs of classes, before and after PCB, with objects of both.

Pairs (i, j) with the largest M_ij - M_ji, in the matrix of the run before PCB and in that of the run after: whichever matrix chooses
the pairs, the other looks better on them by chance alone, so there are two lists. Crops are drawn with the page's seed: train
objects of either class from the larger half of them, and val objects of i that the run which chose the pair takes for j.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pcb.reporting.gather import read_metrics
from pcb.reporting.images import thumbnails
from pcb.reporting.images.matched_objects import NOTHING, Judged, Split, detections, judge
from pcb.reporting.pairs import of_run
from pcb.study import Page, Study
from pcb.study.study import Comparison

ENDS = ("before", "after")


def collect(study: Study, page: Page) -> list[dict]:
    """One entry per comparison: its label and the pairs, or the runs that are missing."""
    split = cache(lambda dataset, name: Split(study, dataset, name))
    out = []
    for comparison in page.compare:
        runs = (comparison.before, comparison.after)
        missing = [
            run
            for run in runs
            if None
            in (read_metrics(study, run, study.seeds[0]), detections(study, run, study.seeds[0]))
        ]
        entry = {"label": comparison.label, "missing": missing, "runs": list(runs)}
        if not missing:
            dataset = study.experiments[comparison.before].dataset
            entry["pairs"] = compare(
                study, comparison, split(dataset, "train"), split(dataset, "val"), page.settings
            )
        out.append(entry)
    return out


def compare(
    study: Study, comparison: Comparison, train: Split, val: Split, settings: dict
) -> list[dict]:
    """The pairs of one comparison, those of the run before first; a pair that both runs choose stands once."""
    seed, runs = study.seeds[0], (comparison.before, comparison.after)
    metrics = [read_metrics(study, run, seed) for run in runs]
    matrices = [of_run(study, run, seed, m) for run, m in zip(runs, metrics, strict=True)]
    judged = [judge(val, detections(study, run, seed)) for run in runs]
    chosen: dict[tuple[int, int], int] = {}
    for end, matrix in enumerate(matrices):
        for i, j in matrix.most_one_sided(settings["pairs"]):
            chosen.setdefault((i, j), end)
    chance = np.random.default_rng(settings["seed"])

    def about(label: int) -> dict:
        places = larger_half(train, np.flatnonzero(train.label == label), settings["crops"])
        return {
            **val.named(label),
            "train_images": matrices[0].train_images[label],
            "AP": [m["classes"]["plain"][label]["AP"] for m in metrics],
            "crops": crops(train, draw(places, settings["crops"], chance)),
        }

    return [
        {
            "by": ENDS[end],
            "i": about(i),
            "j": about(j),
            "M": [[float(m.matrix[i, j]), float(m.matrix[j, i])] for m in matrices],
            "seen": int(matrices[0].seen[i]),
            "objects": int((val.label == i).sum()),
            "taken": [taken(val, seen, i, j) for seen in judged],
            "mistakes": mistakes(val, judged, judged[end], i, j, settings["mistakes"], chance),
        }
        for (i, j), end in chosen.items()
    ]


def taken(val: Split, judged: Judged, i: int, j: int) -> dict[str, int]:
    """How many val objects of class i are taken for i, for j, for anything else, or overlap no detection."""
    counts = {
        what: int((judged.taken[val.label == i] == label).sum())
        for what, label in (("right", i), ("j", j), ("nothing", NOTHING))
    }
    return counts | {"other": int((val.label == i).sum()) - sum(counts.values())}


def mistakes(
    val: Split,
    judged: list[Judged],
    by: Judged,
    i: int,
    j: int,
    count: int,
    chance: np.random.Generator,
) -> list[dict]:
    """Val objects of class i that one run takes for j, and what each run says of them."""
    places = draw(np.flatnonzero((val.label == i) & (by.taken == j)), count, chance)
    return [
        {
            "crop": picture,
            "taken": [
                val.named(seen.taken[place]) | {"score": float(seen.score[place])}
                if seen.taken[place] != NOTHING
                else None
                for seen in judged
            ],
        }
        for place, picture in zip(places, crops(val, places), strict=True)
    ]


def draw(places: np.ndarray, count: int, chance: np.random.Generator) -> list[int]:
    return [int(p) for p in chance.permutation(places)[:count]]


def larger_half(split: Split, places: np.ndarray, least: int) -> np.ndarray:
    """The larger half of some objects by area, and at least `least` of them if there are as many."""
    order = np.argsort(-split.area[places], kind="stable")
    return places[order[: max(least, -(-len(places) // 2))]]


def crops(split: Split, places: list[int]) -> list[str]:
    return [
        thumbnails.crop(split.photo(int(split.image_id[p])), split.bbox[p].tolist()) for p in places
    ]
