"""Detections to AP: a CPU job of seconds, streaming over the shards, by LVIS's rules (hotcoco). Never imports torch.

    evaluate("val.json", Shards(...), "plain", "segm")  ->  {"AP": 27.7, "APr": 21.8, …, "classes": {category id: AP}}
    score(study, run, seed)                             ->  writes metrics.json: all variants of a run, mask and box AP, PwB

LVIS's rules: an image counts for a class only where the class is annotated or listed in `neg_category_ids`; a false positive of
a class in `not_exhaustive_category_ids` is ignored; at most 300 detections an image, over all classes together. AP is the mean
over IoU .5:.05:.95 and over the classes that have ground truth; AP_r, AP_c, AP_f over those whose category says `frequency` r, c, f.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import hotcoco
import numpy as np

from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.evaluation.confusion_metrics import bias_metrics, pairwise_bias, read_confusion
from pcb.evaluation.shards import Rows, Shards
from pcb.files import write_json
from pcb.study import Study
from pcb.study.load import read_json
from pcb.study.variants import choice, file_of, gamma_of

MASK = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APs", "APm", "APl")
BOX = {"AP": "APb", "AP50": "APb50", "AP75": "APb75", "APr": "APbr", "APc": "APbc", "APf": "APbf"}
MAX_DETECTIONS = 300


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles: it would walk through millions of dicts that form none, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ahead(items: Iterable[Rows]) -> Iterator[Rows]:
    """The same items, each fetched in a thread while the one before it is in use: the evaluator leaves Python's lock alone."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, rest, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, rest, None)
            yield item


class GroundTruth:
    """An annotation file in LVIS format, as what the evaluator is fed image by image. Raises `UserError` that lists its faults."""

    @uncollected()
    def __init__(
        self, path: str | Path, cache: Path | None = None, only: Container[int] | None = None
    ):
        """`only`: ids of the images that count, by default all of the file."""
        index = LVISIndex(path, cache=cache)
        self.path = index.path
        # In the order of labels and of confusion matrices: by id.
        self.categories = [
            {**c, "frequency": f} for c, f in zip(index.categories, index.frequency(), strict=True)
        ]
        self.images = {
            image["id"]: image for image in index.images if only is None or image["id"] in only
        }
        lacking = [
            key
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
            if not all(key in image for image in index.images)
        ]
        if lacking:
            raise UserError(
                f"{path} is no LVIS annotation file: images without {' and '.join(lacking)}",
                "give LVIS's, not COCO's",
            )
        self.by_image = defaultdict(list)
        for annotation in index.annotations:  # also those too small to train on
            if annotation["image_id"] in self.images:
                self.by_image[annotation["image_id"]].append(annotation)

    def relevant(self, rows: Rows) -> np.ndarray:
        """(n,) bool: the 300 best of each image, and of these the ones of a class that the image has or is known not to have.

        The evaluator would drop the others itself. Doing it before their masks are unpacked halves the time.
        """
        best = np.lexsort((-rows.score, rows.image_id))
        first = np.searchsorted(rows.image_id[best], rows.image_id[best])
        kept = np.zeros(len(rows), bool)
        kept[best[np.arange(len(rows)) - first < MAX_DETECTIONS]] = True
        classes = len(self.categories) + 1
        known = [
            i * classes + c
            for i in rows.images
            for c in (
                *self.images[i]["neg_category_ids"],
                *(a["category_id"] for a in self.by_image.get(i, ())),
            )
        ]
        return kept & np.isin(rows.image_id * classes + rows.category_id, known)


@uncollected()
def evaluate(
    gt: str | Path | GroundTruth,
    detections: Shards | Iterable[Rows],
    variant: str = "plain",
    iou_type: str = "segm",
) -> dict:
    """Score one variant's detections against LVIS ground truth.

    `detections` is a `Shards` reader, or the `Rows` themselves (then `variant` does not matter); together they must cover every
    image of `gt` once. `iou_type` is 'segm' or 'bbox'. Returns points (0-100), None where a group has no class with ground truth:
    AP, AP50, AP75, APs, APm, APl (by area: a detection's is that of its box), APr, APc, APf, AR@300 and its three sizes,
    and 'classes': {category id: AP}. Raises `UserError` where images and detections do not belong together.
    """
    gt = gt if isinstance(gt, GroundTruth) else GroundTruth(gt)
    masks = iou_type == "segm"
    stream = hotcoco.StreamingEval(gt.categories, iou_type, lvis_style=True)
    missing = set(gt.images)
    for rows in ahead(
        detections.read(variant, masks) if isinstance(detections, Shards) else detections
    ):
        if foreign := set(rows.images) - missing:
            raise UserError(
                f"{gt.path} has no image {min(foreign)}, or the detections cover it twice",
                "run the inference again: it was made on other annotations",
            )
        missing -= set(rows.images)
        rows = rows.where(gt.relevant(rows))
        table = np.column_stack([rows.image_id, rows.box, rows.score, rows.category_id]).astype(
            np.float64
        )
        size = {i: [gt.images[i]["height"], gt.images[i]["width"]] for i in rows.images}
        rle = (
            [
                {"size": size[i], "counts": c}
                for i, c in zip(rows.image_id.tolist(), rows.rle.to_pylist(), strict=True)
            ]
            if masks
            else None
        )
        annotations = [a for i in rows.images for a in gt.by_image.get(i, ())]
        stream.update([gt.images[i] for i in rows.images], annotations, table, segmentation=rle)
    if missing:
        raise UserError(
            f"the detections do not cover {len(missing)} images of {gt.path}, {min(missing)} among them",
            "run the inference again",
        )
    evaluation = stream.finalize()
    evaluation.accumulate()
    return summarize(evaluation, gt.categories)


def summarize(evaluation: hotcoco.COCOeval, categories: list[dict]) -> dict:
    """The 13 metrics of lvis-api and AP per class, in points, from an accumulated evaluation's raw arrays."""
    precision = np.asarray(evaluation.eval["precision"])[
        ..., 0
    ]  # IoU, recall, class, area; -1: no ground truth
    recall = np.asarray(evaluation.eval["recall"])[..., 0]  # IoU, class, area
    order = {category: k for k, category in enumerate(evaluation.params.cat_ids)}
    iou = np.round(evaluation.params.iou_thrs, 2)
    group = {f: [order[c["id"]] for c in categories if c["frequency"] == f] for f in "rcf"}
    everything = precision[..., 0]
    out = {
        "AP": points(everything),
        "AP50": points(everything[iou == 0.5]),
        "AP75": points(everything[iou == 0.75]),
    }
    out |= {f"AP{size}": points(precision[..., k]) for k, size in enumerate("sml", 1)}
    out |= {f"AP{f}": points(everything[:, :, group[f]]) for f in "rcf"}
    out |= {
        f"AR{size}@{MAX_DETECTIONS}": points(recall[..., k])
        for k, size in enumerate(["", "s", "m", "l"])
    }
    out["classes"] = {c["id"]: points(everything[:, :, order[c["id"]]]) for c in categories}
    return out


def points(values: np.ndarray) -> float | None:
    """Mean of the entries that exist (> -1), in points; None where there are none."""
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else None


def score(study: Study, run: str, seed: int, split: str = "val") -> dict:
    """Score every variant that `infer` left for this run and write `study.paths.metrics(run, seed)`. Raises `UserError`.

    NorCal's γ is the one of best mask AP on the split that is scored, as the paper seems to have chosen it (it does not say); where `infer`
    left a `dev` split too, `norcal-dev` is NorCal with the γ chosen there. Where a scale has none, `norcal-train` has the γ chosen on part
    of the training images: apart from the images that are scored, but the detector was trained on them.
    """
    detections = Detections(study, run, seed, split)
    manifest, gt = detections.manifest, detections.gt
    train = LVISIndex(
        study.scale["datasets"][study.experiments[run].dataset]["train"], cache=study.paths.indices
    )
    out = {
        "run": run,
        "seed": seed,
        "scale": study.scale["name"],
        "dataset": study.experiments[run].dataset,
        "split": split,
        "fingerprint": manifest["fingerprint"],
        "evaluation": manifest["evaluation"],
        "images": len(gt.images),
        "variants": {},
        "classes": {},
    }
    column = {variant: variant for variant in manifest["variants"] if variant != "norcal"}
    if "norcal" in manifest["variants"]:
        out["norcal"] = {split: detections.norcal()}
        column["norcal"] = out["norcal"][split]["column"]
        other = choice(study.scale["datasets"][study.experiments[run].dataset])
        elsewhere = Detections(study, run, seed, other)
        if split == "val" and elsewhere.belongs_to(manifest):
            out["norcal"][file_of(other)] = elsewhere.norcal()
            column[f"norcal-{file_of(other)}"] = out["norcal"][file_of(other)]["column"]
    for variant, name in column.items():
        masks, boxes = detections.evaluate(name, "segm"), detections.evaluate(name, "bbox")
        out["variants"][variant] = {
            **{k: masks[k] for k in MASK},
            **{k: boxes[key] for key, k in BOX.items()},
        }
        out["classes"][variant] = [
            {
                "id": c["id"],
                "name": c["name"],
                "frequency": c["frequency"],
                "train_images": count,
                "AP": masks["classes"][c["id"]],
                "APb": boxes["classes"][c["id"]],
            }
            for c, count in zip(gt.categories, train.image_count, strict=True)
        ]
    confusion = study.paths.confusion(run, seed, split)
    out["variants"]["plain"] |= pairwise_bias(confusion)
    out["variants"]["plain"] |= bias_metrics(read_confusion(confusion, out["classes"]["plain"]))
    write_json(study.paths.metrics(run, seed, split), out)
    return out


class Detections:
    """What `infer` left of a run on one split, with its ground truth; every column is scored once."""

    def __init__(self, study: Study, run: str, seed: int, split: str):
        self.path = study.paths.detections(run, seed, split)
        self.command = f"pcb infer {run} --seed {seed} --split {split}"
        self.annotations = study.scale["datasets"][study.experiments[run].dataset].get(
            file_of(split)
        )
        self.cache, self.whole = study.paths.indices, file_of(split) == split
        self.scored: dict[tuple[str, str], dict] = {}

    @cached_property
    def manifest(self) -> dict:
        if not self.path.exists():
            raise UserError(
                f"{self.path} does not exist", f"run the inference first: {self.command}"
            )
        return read_json(self.path)

    @cached_property
    def gt(self) -> GroundTruth:
        return GroundTruth(self.annotations, self.cache, None if self.whole else self.images)

    def belongs_to(self, manifest: dict) -> bool:
        """Whether these are detections of the same training."""
        return self.path.exists() and self.manifest["fingerprint"] == manifest["fingerprint"]

    @property
    def shards(self) -> Shards:
        return Shards(self.path.parent / self.manifest["folder"], self.manifest["shards"])

    @property
    def images(self) -> set[int]:
        return {i for rows in self.shards.read("plain") for i in rows.images}

    def evaluate(self, column: str, iou_type: str) -> dict:
        if (column, iou_type) not in self.scored:
            self.scored[column, iou_type] = evaluate(self.gt, self.shards, column, iou_type)
        return self.scored[column, iou_type]

    def norcal(self) -> dict:
        """Mask AP over NorCal's γ, the best γ (of equals the smallest) and its column."""
        by_gamma = {gamma_of(c): c for c in self.manifest["columns"] if gamma_of(c) is not None}
        found = {
            gamma: self.evaluate(column, "segm")["AP"] for gamma, column in sorted(by_gamma.items())
        }
        best = max(found, key=lambda gamma: (found[gamma] or 0, -gamma))
        return {
            "gamma": best,
            "column": by_gamma[best],
            "AP": [[gamma, ap] for gamma, ap in found.items()],
        }
