"""The pair explorer: the most one-sided pairs of classes, with objects of both.

Pairs (i, j) are those with the largest M_ij - M_ji, in the matrix of the run before PCB and in that
of the run after. On pairs chosen by one matrix the other looks better by chance alone; hence the
two lists. Crops are drawn from the page's seed: train objects of both classes, among the larger
half of them, and val objects of i that the run which chose the pair predicts as j.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from pcb.reporting.images import thumbnails
from pcb.reporting.images.matched_objects import (
    UNDETECTED,
    MatchedObjects,
    SplitObjects,
    match_objects,
)
from pcb.reporting.results import Results
from pcb.study import Page
from pcb.study.study import Comparison

LEAST = 1e-3  # a pair is in the plot of all pairs if either probability is at least this


def collect(results: Results, page: Page) -> list[dict]:
    """One entry for each comparison of the page.

    Returns:
        `label`, `runs` and `missing`, the runs that were not evaluated. Where none is missing also
        `both_ways`, the probabilities of all pairs in each run, and the most one-sided `pairs`.
    """
    study, seed = results.study, results.study.seeds[0]
    split = cache(lambda dataset, name: SplitObjects(study, dataset, name))
    entries = []
    for comparison in page.compare:
        runs = [comparison.before, comparison.after]
        missing = [
            run
            for run in runs
            if results.metrics(run, seed) is None or results.detections(run, seed) is None
        ]
        entry: dict = {"label": comparison.label, "missing": missing, "runs": runs}
        if not missing:
            dataset = study.experiments[comparison.before].dataset
            entry["least"] = LEAST
            entry["both_ways"] = [both_ways(results, run, seed) for run in runs]
            entry["pairs"] = compare(
                results, comparison, split(dataset, "train"), split(dataset, "val"), page.settings
            )
        entries.append(entry)
    return entries


def both_ways(results: Results, run: str, seed: int) -> dict[str, list]:
    """`Confusion.both_ways` of an evaluated run as lists, to five digits."""
    confusion = results.confusion(run, seed)
    assert confusion is not None
    pairs = confusion.both_ways(LEAST)
    return {
        "groups": pairs.groups.tolist(),
        "up": [float(f"{p:.5g}") for p in pairs.up],
        "down": [float(f"{p:.5g}") for p in pairs.down],
    }


def compare(
    results: Results,
    comparison: Comparison,
    train: SplitObjects,
    val: SplitObjects,
    settings: dict,
) -> list[dict]:
    """The pairs of one comparison whose two runs are evaluated.

    Args:
        results: The results of the study.
        comparison: The runs before and after PCB.
        train: Objects of the training images, for crops.
        val: Objects of the validation images.
        settings: Counts and seed, from configs/paper.yaml.

    Returns:
        Pairs that the run before chooses, then those that the run after chooses; a pair that both
        choose is listed once.
    """
    seed, runs = results.study.seeds[0], (comparison.before, comparison.after)
    metrics = [m for m in (results.metrics(run, seed) for run in runs) if m]
    confusions = [c for c in (results.confusion(run, seed) for run in runs) if c]
    shards = [s for s in (results.detections(run, seed) for run in runs) if s]
    matched = [match_objects(val, s) for s in shards]
    chosen_by: dict[tuple[int, int], int] = {}
    for k, confusion in enumerate(confusions):
        for pair in confusion.most_one_sided(settings["pairs"]):
            chosen_by.setdefault(pair, k)
    rng = np.random.default_rng(settings["seed"])

    def describe(label: int) -> dict:
        objects = larger_half(train, np.flatnonzero(train.label == label), settings["crops"])
        return {
            **val.class_label(label),
            "train_images": confusions[0].train_images[label],
            "AP": [m["classes"]["plain"][label]["AP"] for m in metrics],
            "crops": crops(train, draw(objects, settings["crops"], rng)),
        }

    return [
        {
            "chosen_by": ("before", "after")[k],
            "i": describe(i),
            "j": describe(j),
            "M": [[float(c.matrix[i, j]), float(c.matrix[j, i])] for c in confusions],
            "seen": int(confusions[0].seen[i]),
            "objects": int((val.label == i).sum()),
            "outcomes": [outcomes(val, m, i, j) for m in matched],
            "mistakes": mistakes(val, matched, k, i, j, settings["mistakes"], rng),
        }
        for (i, j), k in chosen_by.items()
    ]


def outcomes(val: SplitObjects, matched: MatchedObjects, i: int, j: int) -> dict[str, int]:
    """How many val objects of class i are predicted as i, as j, as another class, or undetected."""
    predicted = matched.predicted_class[val.label == i]
    counts = {
        "correct": int((predicted == i).sum()),
        "as_j": int((predicted == j).sum()),
        "undetected": int((predicted == UNDETECTED).sum()),
    }
    return counts | {"as_other": len(predicted) - sum(counts.values())}


def mistakes(
    val: SplitObjects,
    matched: Sequence[MatchedObjects],
    chooser: int,
    i: int,
    j: int,
    count: int,
    rng: np.random.Generator,
) -> list[dict]:
    """Val objects of class i that the run `matched[chooser]` predicts as j.

    Returns:
        At most `count` of them: a `crop`, and the `predictions` of each run.
    """
    as_j = matched[chooser].predicted_class == j
    objects = draw(np.flatnonzero((val.label == i) & as_j), count, rng)
    return [
        {"crop": picture, "predictions": [m.prediction(val, index) for m in matched]}
        for index, picture in zip(objects, crops(val, objects), strict=True)
    ]


def draw(objects: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """At most `count` of some objects, (n,) indices, in random order."""
    return [int(index) for index in rng.permutation(objects)[:count]]


def larger_half(split: SplitObjects, objects: np.ndarray, least: int) -> np.ndarray:
    """The larger half by area of some objects, (n,) indices, but at least `least` of them."""
    order = np.argsort(-split.area[objects], kind="stable")
    return objects[order[: max(least, -(-len(objects) // 2))]]


def crops(split: SplitObjects, objects: list[int]) -> list[str]:
    """Crops of some objects, as data URIs."""
    return [
        thumbnails.crop(split.image_path(int(split.image_id[i])), split.bbox[i].tolist())
        for i in objects
    ]
