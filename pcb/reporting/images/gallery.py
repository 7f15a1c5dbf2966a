"""The gallery: validation images with what two runs, before and after PCB, detect on them.

Three draws for each comparison, all from the page's seed, so that no image is chosen by hand:

    gains    objects of rare and common classes in turn that are recognised after PCB but not
             before, at most one in an image
    losses   the same with before and after exchanged
    random   images among all that have an object

An object is recognised when its predicted class (`pcb.reporting.images.matched_objects`) is its
own, at any score. Detections with a score below `score` are not drawn, except the strongest one on
the object in question.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pcb.evaluation.shards import Rows, Shards
from pcb.reporting.images import thumbnails
from pcb.reporting.images.matched_objects import (
    MatchedObjects,
    SplitObjects,
    match_objects,
    strongest,
)
from pcb.reporting.results import Results
from pcb.study import Page

MOST_DETECTIONS = 12  # drawn in one image of one run, the strongest
KINDS = ("gains", "losses", "random")


def collect(results: Results, page: Page) -> list[dict]:
    """One entry for each comparison of the page.

    Returns:
        `label` and `missing`, the runs without detections. Where none is missing also `counts` of
        objects by group, `median_scores` of the recognised objects, and the drawn `images`.
    """
    study = results.study
    split = cache(lambda dataset: SplitObjects(study, dataset, "val"))
    entries = []
    for comparison in page.compare:
        runs = (comparison.before, comparison.after)
        shards = {run: results.detections(run, study.seeds[0]) for run in runs}
        existing = [s for s in shards.values() if s is not None]
        missing = [run for run in runs if shards[run] is None]
        entry = {"label": comparison.label, "missing": missing}
        if not missing:
            dataset = study.experiments[comparison.before].dataset
            entry |= compare(split(dataset), existing, page.settings)
        entries.append(entry)
    return entries


def compare(split: SplitObjects, shards: list[Shards], settings: dict) -> dict:
    """The counts and images of one comparison.

    Args:
        split: The objects of val.
        shards: Detections of the run before and of the run after.
        settings: Counts, score threshold and seed, from configs/paper.yaml.
    """
    matched = [match_objects(split, s) for s in shards]
    group = np.array(split.groups)[split.label]
    before, after = (m.is_correct(split) for m in matched)
    changed = {"gains": after & ~before, "losses": before & ~after}
    rng = np.random.default_rng(settings["seed"])
    chosen: list[tuple[str, int]] = []  # kind; object or, for "random", image id
    for kind, is_changed in changed.items():
        pools = [np.flatnonzero(is_changed & (group == g)) for g in "rc"]
        chosen += [(kind, index) for index in draw_in_turn(pools, settings[kind], split, rng)]
    images = list(split.of_image)
    drawn = sorted(rng.permutation(len(images))[: settings["random"]])
    chosen += [("random", images[k]) for k in drawn]
    wanted = {int(split.image_id[i]) if kind != "random" else i for kind, i in chosen}
    rows = [of_images(s, wanted) for s in shards]
    medians = [
        float(np.median(m.score[correct])) if correct.any() else None
        for m, correct in zip(matched, (before, after), strict=True)
    ]
    counted = {"objects": np.ones_like(before), "both": before & after, **changed}
    return {
        "counts": {
            g: {kind: int(objects[group == g].sum()) for kind, objects in counted.items()}
            for g in "rcf"
        },
        "median_scores": medians,
        "images": [
            gallery_image(split, kind, item, rows, matched, settings["score"])
            for kind, item in chosen
        ],
    }


def draw_in_turn(
    pools: list[np.ndarray], count: int, split: SplitObjects, rng: np.random.Generator
) -> list[int]:
    """Draw `count` objects from the pools in turn, or fewer, at most one in an image.

    Args:
        pools: Arrays (k,) of indices of objects.
        count: Number of objects to draw in all.
        split: The objects.
        rng: The source of random numbers.
    """
    queues = [list(rng.permutation(pool)) for pool in pools]
    drawn: list[int] = []
    images: set[int] = set()
    while len(drawn) < count and any(queues):
        for queue in queues:
            while queue and len(drawn) < count:
                index = int(queue.pop(0))
                image = int(split.image_id[index])
                if image not in images:
                    images.add(image)
                    drawn.append(index)
                    break
    return drawn


def of_images(shards: Shards, image_ids: set[int]) -> dict[int, Rows]:
    """The detections, with masks, of some images."""
    by_image = {}
    for rows in shards.read("plain", masks=True):
        for image in image_ids.intersection(rows.images):
            by_image[image] = rows.where(rows.image_id == image)
    return by_image


def gallery_image(
    split: SplitObjects,
    kind: str,
    item: int,
    rows: list[dict[int, Rows]],
    matched: list[MatchedObjects],
    least: float,
) -> dict:
    """One image of the page.

    Args:
        split: The objects of val.
        kind: One of `KINDS`.
        item: Index of the object in question or, for 'random', the id of the image.
        rows: Image id -> detections, of the run before and of the run after.
        matched: Predictions of these runs.
        least: Lowest score of a drawn detection.
    """
    focus = None if kind == "random" else item
    image_id = item if focus is None else int(split.image_id[focus])
    height, width = split.size(split.of_image[image_id].start)
    entry = {
        "kind": kind,
        "id": image_id,
        "thumbnail": thumbnails.thumbnail(split.image_path(image_id)),
        "width": width,
        "height": height,
        "truth": [
            {
                **split.class_label(split.label[index]),
                "box": split.bbox[index].tolist(),
                "focus": index == focus,
                "path": thumbnails.outline(split.mask(index)),
            }
            for index in split.of_image[image_id]
        ],
        "panels": [
            detections(split, of_run[image_id], least, None if focus is None else split.bbox[focus])
            for of_run in rows
        ],
    }
    if focus is not None:
        entry["object"] = split.class_label(split.label[focus])
        entry["predictions"] = [m.prediction(split, focus) for m in matched]
    return entry


def detections(split: SplitObjects, rows: Rows, least: float, box: np.ndarray | None) -> dict:
    """The detections that are drawn in an image.

    Args:
        split: The objects of val, for class names.
        rows: The detections on the image, with masks.
        least: Lowest score of a drawn detection.
        box: (4,) box of the object in question; its strongest detection is drawn in any case.

    Returns:
        `objects`, strongest first, and `more`, how many others reach the score.
    """
    assert rows.rle is not None
    all_rows = np.arange(len(rows))
    focus = None if box is None else strongest(rows, all_rows, box[None])[0]
    order = [int(k) for k in np.argsort(-rows.score, kind="stable") if rows.score[k] >= least]
    drawn = order[:MOST_DETECTIONS]
    if focus is not None and focus not in drawn:
        drawn.append(focus)
    objects = []
    for k in drawn:
        mask = thumbnails.mask_of_detection(rows.rle[k].as_py(), *rows.size[k].tolist())
        objects.append(
            {
                **split.class_label(rows.category_id[k] - 1),
                "score": float(rows.score[k]),
                "box": rows.box[k].tolist(),
                "focus": k == focus,
                "path": thumbnails.outline(mask),
            }
        )
    return {"more": max(0, len(order) - MOST_DETECTIONS), "objects": objects}
