"""The pair explorer: `collect(study, page)` gathers the most one-sided pairs of classes, before and after PCB, with objects of both.

Pairs (i, j) with the largest M_ij - M_ji, in the matrix of the run before PCB and in that of the run after: whichever matrix chooses
the pairs, the other looks better on them by chance alone, so there are two lists. Crops are drawn with the page's seed: train
objects of either class from the larger half of them, and val objects of i that the run which chose the pair takes for j.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pcb.reporting.images import thumbnails
from pcb.reporting.images.matched_objects import NOTHING, Judged, Split, judge
from pcb.reporting.results import Results
from pcb.study import Page
from pcb.study.study import Comparison

ENDS = ("before", "after")
LEAST = 1e-3  # of a pair's two probabilities, for a dot in the plot of all pairs


def collect(results: Results, page: Page) -> list[dict]:
    """One entry per comparison: its label, all pairs as points, and the most one-sided pairs.

    Where a run is missing the entry names it and has neither.
    """
    study = results.study
    seed = study.seeds[0]
    split = cache(lambda dataset, name: Split(study, dataset, name))
    out = []
    for comparison in page.compare:
        runs = (comparison.before, comparison.after)
        missing = [
            run
            for run in runs
            if results.metrics(run, seed) is None or results.detections(run, seed) is None
        ]
        entry = {"label": comparison.label, "missing": missing, "runs": list(runs)}
        if not missing:
            dataset = study.experiments[comparison.before].dataset
            entry["least"] = LEAST
            entry["both_ways"] = [points(results, run, seed) for run in runs]
            entry["pairs"] = compare(
                results, comparison, split(dataset, "train"), split(dataset, "val"), page.settings
            )
        out.append(entry)
    return out


def points(results: Results, run: str, seed: int) -> dict[str, list]:
    """`Confusion.both_ways` of a run as lists, to five digits."""
    found = results.confusion(run, seed).both_ways(LEAST)
    return {
        "groups": found.groups.tolist(),
        "up": [float(f"{p:.5g}") for p in found.up],
        "down": [float(f"{p:.5g}") for p in found.down],
    }


def compare(
    results: Results, comparison: Comparison, train: Split, val: Split, settings: dict
) -> list[dict]:
    """The pairs of one comparison, those of the run before first; a pair that both runs choose stands once."""
    seed, runs = results.study.seeds[0], (comparison.before, comparison.after)
    metrics = [results.metrics(run, seed) for run in runs]
    matrices = [results.confusion(run, seed) for run in runs]
    judged = [judge(val, results.detections(run, seed)) for run in runs]
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
