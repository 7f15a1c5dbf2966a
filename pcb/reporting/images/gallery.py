"""The gallery: `collect(results, page)` draws validation images and gathers what two runs, before and after PCB, detect on them.

Three draws for each comparison, all with the page's seed, so that what is shown was not picked by anyone:

    gains    objects of rare and of common classes in turn, recognised after PCB but not before; at most one of an image
    losses   the same the other way round
    random   images from all that have an object

An object is recognised when the strongest detection on it names its class (`pcb.reporting.images.matched_objects`), whatever the score.
Detections below `score` are not drawn, but for the strongest one on the object in question.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pcb.evaluation.shards import Rows, Shards
from pcb.reporting.images import thumbnails
from pcb.reporting.images.matched_objects import (
    NOTHING,
    Judged,
    Split,
    judge,
    strongest,
)
from pcb.reporting.results import Results
from pcb.study import Page

AT_MOST = 12  # detections drawn of one image and run, the strongest


def collect(results: Results, page: Page) -> list[dict]:
    """One entry per comparison: its label, the counts of objects by group, and the images drawn; or the runs that are missing."""
    study = results.study
    split = cache(lambda dataset: Split(study, dataset, "val"))
    out = []
    for comparison in page.compare:
        found = {
            run: results.detections(run, study.seeds[0])
            for run in (comparison.before, comparison.after)
        }
        missing = [run for run, shards in found.items() if shards is None]
        entry = {"label": comparison.label, "missing": missing}
        if not missing:
            entry |= compare(
                split(study.experiments[comparison.before].dataset),
                list(found.values()),
                page.settings,
            )
        out.append(entry)
    return out


def compare(split: Split, shards: list[Shards], settings: dict) -> dict:
    """Counts and drawn images of one comparison; `shards` are those of the run before and of the run after."""
    before, after = (judge(split, s) for s in shards)
    group = np.array(split.groups)[split.label]
    right = [before.right(split), after.right(split)]
    chance = np.random.default_rng(settings["seed"])
    changed = {"gains": right[1] & ~right[0], "losses": right[0] & ~right[1]}
    drawn = {
        kind: in_turn(
            [np.flatnonzero(objects & (group == g)) for g in "rc"], settings[kind], split, chance
        )
        for kind, objects in changed.items()
    }
    images = list(split.of_image)
    chosen = [(kind, place) for kind, places in drawn.items() for place in places]
    chosen += [
        ("random", images[k]) for k in sorted(chance.permutation(len(images))[: settings["random"]])
    ]
    wanted = {int(split.image_id[item]) if kind != "random" else item for kind, item in chosen}
    rows = [of_images(s, wanted) for s in shards]
    scores = [
        float(np.median(j.score[r])) if r.any() else None
        for j, r in zip((before, after), right, strict=True)
    ]
    kinds = {"objects": np.ones_like(group, bool), "both": right[0] & right[1], **changed}
    return {
        "counts": {
            g: {kind: int(objects[group == g].sum()) for kind, objects in kinds.items()}
            for g in "rcf"
        },
        "median_scores": scores,
        "images": [
            image(split, kind, item, rows, (before, after), settings["score"])
            for kind, item in chosen
        ],
    }


def in_turn(
    pools: list[np.ndarray], count: int, split: Split, chance: np.random.Generator
) -> list[int]:
    """`count` places drawn from the pools in turn, as far as they reach, at most one of an image."""
    queues = [list(chance.permutation(pool)) for pool in pools]
    out, images = [], set()
    while len(out) < count and any(queues):
        for queue in queues:
            while queue and len(out) < count:
                place = int(queue.pop(0))
                if (image := int(split.image_id[place])) not in images:
                    images.add(image)
                    out.append(place)
                    break
    return out


def of_images(shards: Shards, wanted: set[int]) -> dict[int, Rows]:
    """The detections, with masks, of a few images."""
    out = {}
    for rows in shards.read("plain", masks=True):
        out |= {i: rows.where(rows.image_id == i) for i in wanted.intersection(rows.images)}
    return out


def image(
    split: Split,
    kind: str,
    item: int,
    rows: list[dict[int, Rows]],
    judged: tuple[Judged, Judged],
    least: float,
) -> dict:
    """One image as the page shows it. `item` is the place of the object in question, or the image's id if it was drawn from all."""
    place = None if kind == "random" else item
    image_id = item if place is None else int(split.image_id[place])
    height, width = split.size(split.of_image[image_id].start)
    truth = [
        {
            **split.named(split.label[p]),
            "box": split.bbox[p].tolist(),
            "focus": p == place,
            "path": thumbnails.outline(split.mask(p)),
        }
        for p in split.of_image[image_id]
    ]
    box = split.bbox[[place]] if place is not None else None
    panels = [detected(split, r[image_id], least, box) for r in rows]
    entry = {
        "kind": kind,
        "id": image_id,
        "photo": thumbnails.photo(split.photo(image_id)),
        "width": width,
        "height": height,
        "truth": truth,
        "panels": panels,
    }
    if place is not None:
        entry["object"] = split.named(split.label[place])
        entry["taken"] = [
            split.named(j.taken[place]) | {"score": float(j.score[place])}
            if j.taken[place] != NOTHING
            else None
            for j in judged
        ]
    return entry


def detected(split: Split, rows: Rows, least: float, box: np.ndarray | None) -> dict:
    """The detections drawn of one image, strongest first, and how many more reach the score."""
    focus = strongest(rows, np.arange(len(rows)), box)[0] if box is not None else None
    order = [int(k) for k in np.argsort(-rows.score, kind="stable") if rows.score[k] >= least]
    shown = order[:AT_MOST] + (
        [focus] if focus is not None and focus not in order[:AT_MOST] else []
    )
    return {
        "more": max(0, len(order) - AT_MOST),
        "objects": [
            {
                **split.named(rows.category_id[k] - 1),
                "score": float(rows.score[k]),
                "box": rows.box[k].tolist(),
                "focus": k == focus,
                "path": thumbnails.outline(
                    thumbnails.unpacked(rows.rle[k].as_py(), *rows.size[k].tolist())
                ),
            }
            for k in shown
        ],
    }
