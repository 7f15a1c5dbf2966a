"""How much of the oracle calibration is memory of the scored images: `pcb oracle`.

    oracle(study, run, seed)  ->  writes oracle.json

Table 1 calibrates with statistics of the very images that are scored. Here val is divided into
parts at random, and each part is calibrated twice: with its *own* statistics, and with those of
an *other* part of the same size, which has no image in common with it. Parts of few images are the
oracle on a small sample of val. A cross-fit calibrates each part with the *rest* of val, and scores
all of val together: with halves the rest is the other half, with `FOLDS` parts it is nearly all.

The network runs once while its outputs fit into `CACHE_BYTES`, otherwise twice, as for `pcb infer`.
Detections go through shards on disk, deleted at the end. Memory is that of one shard, the matches
of four columns, and one C x C matrix for each part. With the divisions of `ORACLE_PARTS` that is 54
matrices (0.7 GB for 1,230 classes) and 41 columns, about three times those of a run with NorCal.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import group_means, match_columns
from pcb.evaluation.score import BOX
from pcb.evaluation.shards import IMAGES_PER_SHARD, Shards, ShardWriter, plan_shards
from pcb.inference.calibrations import ScoreFunction, score_functions
from pcb.inference.forward import Image, Selection, detect
from pcb.inference.infer import SplitDetector, progress_bar, shard_columns, trained, watched
from pcb.inference.proposal_confusion import ConfusionSums
from pcb.study import Study
from pcb.study.current import weights_of
from pcb.study.records import write_record
from pcb.study.study import fingerprint
from pcb.study.variants import ORACLE_PARTS

KINDS = {"ms": "ms-val", "cm": "cm-val"}  # the variant's calibration, with statistics of a part
METRICS = {"segm": {k: k for k in ("AP", "APr", "APc", "APf")}, "bbox": BOX}
FOLDS = 8  # parts of the division whose parts are also calibrated with all the rest of val


class Part(NamedTuple):
    """Images of the r-th division of val into k parts: a part, or all but that part.

    Attributes:
        parts: k.
        repeat: r.
        which: The part, 0 .. k-1.
        rest: Whether all but this part are meant.
    """

    parts: int
    repeat: int
    which: int
    rest: bool = False


@dataclass(frozen=True)
class Division:
    """A random division of images into parts of equal size, up to one image.

    Attributes:
        parts: Number of parts k.
        repeat: Number of this division among those into k parts.
        part_of: Image id -> its part, 0 .. k-1.
    """

    parts: int
    repeat: int
    part_of: Mapping[int, int]

    @property
    def all(self) -> list[Part]:
        """Its parts."""
        return [Part(self.parts, self.repeat, which) for which in range(self.parts)]

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose statistics calibrate a part: its own, those of another part, those of the rest."""
        return ("own", "other", "rest")[: 1 + (self.parts > 1) + (self.parts == FOLDS)]

    def source(self, part: Part, source: str) -> Part:
        """The images that calibrate a part."""
        if source == "rest":
            return part._replace(rest=True)
        return self.all[(part.which + (source == "other")) % self.parts]

    def images(self, part: Part) -> set[int]:
        """Ids of the images of a part."""
        return {image for image, which in self.part_of.items() if which == part.which}

    def column(self, kind: str, source: str) -> str:
        """The column of scores of a kind of calibration."""
        return f"{kind}-{source}-{self.parts}.{self.repeat}"


def divisions(image_ids: Iterable[int], parts: Mapping[int, int] = ORACLE_PARTS) -> list[Division]:
    """Divide images at random, the same way for every run and every seed of training.

    Args:
        image_ids: Ids of all images.
        parts: {number of parts: number of divisions}; parts of a single image are left out.
    """
    ids = sorted(image_ids)
    out = []
    for k, repeat in ((k, repeat) for k, number in parts.items() for repeat in range(number)):
        if 2 * k <= len(ids):
            shuffled = random.Random(f"{k}.{repeat}").sample(ids, len(ids))
            part_of = {image: i * k // len(ids) for i, image in enumerate(shuffled)}
            out.append(Division(k, repeat, part_of))
    return out


def oracle(study: Study, run: str, seed: int, images_per_shard: int = IMAGES_PER_SHARD) -> dict:
    """Score a run on val, calibrated with statistics of the same and of other images.

    Args:
        study: The study.
        run: Experiment.
        seed: Seed of the training.
        images_per_shard: Images of one file of detections.

    Returns:
        The content of `study.paths.oracle(run, seed)`, which it also writes, see `compare`.

    Raises:
        UserError: As for `pcb.inference.infer.infer`.
    """
    torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    record = trained(study, run, seed)
    detector = SplitDetector(study, run, "val", record)
    of_val = divisions(detector.index)
    columns = ["plain", *(d.column(*k) for d in of_val for k in product(KINDS, d.sources))]
    shards = plan_shards(detector.index, images_per_shard)

    sums = count_parts(detector, of_val, shards)
    path = study.paths.oracle(run, seed)
    job = study.eval_job(run, seed) | {"checkpoint": weights_of(record), "columns": columns}
    writer = ShardWriter(path.with_suffix(""), fingerprint(job), columns)
    select = calibrated(detector, of_val, sums)
    counts = {part: of_part.counts for part, of_part in sums.items()}
    del sums  # a C x C matrix for each part, which the calibrations replace
    with progress_bar(f"{run}, own and other statistics", shards) as bar:
        for ids in shards:
            if not writer.has(ids):
                batches = watched(detector.batches(ids), bar)
                writer.write(ids, shard_columns(detector, batches, columns, select))
    detector.save_cache()
    dataset = study.experiments[run].dataset
    out = {
        "run": run,
        "seed": seed,
        "scale": study.scale["name"],
        "dataset": dataset,
        "fingerprint": study.fingerprint(run, seed),
        "evaluation": study.evaluation(run, seed),
        "checkpoint": weights_of(record),
        "parts_of_val": {str(parts): number for parts, number in ORACLE_PARTS.items()},
        "images": len(detector.index),
    }
    gt = GroundTruth.of(study, dataset, "val")
    detections = Shards(writer.folder, writer.finish(shards))
    out |= compare(gt, detections, of_val, counts, study.scale["test"])
    write_record(path, out)
    shutil.rmtree(writer.folder)
    return out


def count_parts(
    detector: SplitDetector, of_val: Sequence[Division], shards: Sequence[Sequence[int]]
) -> dict[Part, ConfusionSums]:
    """The sums behind the confusion matrix of every part, in one pass."""
    sums = {part: ConfusionSums(detector.classes) for d in of_val for part in d.all}
    with progress_bar(f"{detector.run}, confusion matrices of parts of val", shards) as bar:
        for ids in shards:
            for images in watched(detector.batches(ids, keep=True), bar):
                for image in images:
                    labels, probabilities = detector.matched(image)
                    for d in of_val:
                        part = d.all[d.part_of[image.meta["img_id"]]]
                        sums[part].add(labels, probabilities)
    for d in of_val:
        for part in d.all if "rest" in d.sources else ():
            # A sum, not all minus the part: a class without a sample must have exactly zero.
            others = [sums[other] for other in d.all if other != part]
            sums[d.source(part, "rest")] = rest = ConfusionSums(detector.classes)
            rest.sums = np.sum([other.sums for other in others], axis=0)
            rest.counts = np.sum([other.counts for other in others], axis=0)
    return sums


def calibrated(
    detector: SplitDetector, of_val: Sequence[Division], sums: Mapping[Part, ConfusionSums]
) -> Callable[[Image], Selection]:
    """A function that detects on an image with all columns of scores."""
    model = detector.model
    plain = score_functions(model, ["plain"])
    calibrations = {
        part: score_functions(model, list(KINDS.values()), {"val": torch.from_numpy(s.matrix)})
        for part, s in sums.items()
    }

    def select(image: Image) -> Selection:
        functions: dict[str, ScoreFunction] = dict(plain)
        for d in of_val:
            part = d.all[d.part_of[image.meta["img_id"]]]
            for kind, source in product(KINDS, d.sources):
                function = calibrations[d.source(part, source)][KINDS[kind]]
                functions[d.column(kind, source)] = function
        selection = detect(model, image, functions)
        # Nothing is shown, so masks are needed only where the image has an object of the class.
        return replace(selection, scored=torch.zeros_like(selection.scored))

    return select


def compare(
    gt: GroundTruth,
    detections: Shards,
    of_val: Sequence[Division],
    counts: Mapping[Part, np.ndarray],
    limits: Mapping[str, float],
) -> dict:
    """Score every part by itself, and the cross-fit on all images.

    Args:
        gt: The ground truth of all images.
        detections: Their detections with the columns of all divisions.
        of_val: The divisions, the first of which is into one part: all images.
        counts: (C,) matched proposals of each class, for each part.
        limits: `score_thr` and `max_per_image` of the scale's `test`.

    Returns:
        `parts`: one entry for each part, all of val first: `of` how many, the number of its
        `images` and of `proposals` (the median over the classes that val shows of those matched to
        a class). `crossfit`: one entry for each division into halves and for that into `FOLDS`. In
        an entry, `all` holds AP in points over the classes with ground truth, {column: {"AP",
        "APr", …, "APb", "APbr", …}}; `known` over those of them of which all statistics of the
        entry have a sample. Columns are `plain` and, in `parts`, `ms-own`, `cm-own`, `ms-other`,
        `cm-other`; in `crossfit` `ms` and `cm`.
    """
    has_sample = {part: of_part > 0 for part, of_part in counts.items()}
    everything = of_val[0].all[0]
    [plain] = class_ap(gt, detections, ["plain"], of_val, limits).values()
    out: dict[str, list[dict]] = {"parts": [], "crossfit": []}
    for d in of_val:
        names = [d.column(*of) for of in product(KINDS, d.sources)]
        ap = class_ap(gt, detections, names, [of_val[0], d], limits)
        of_part = d.sources[:2]  # own and other
        for part in d.all:
            columns = {"plain": plain[part]} | {
                f"{kind}-{source}": ap[d.column(kind, source)][part]
                for kind, source in product(KINDS, of_part)
            }
            known = np.logical_and.reduce([has_sample[d.source(part, s)] for s in of_part])
            size = {
                "of": d.parts,
                "images": len(d.images(part)),
                "proposals": float(np.median(counts[part][has_sample[everything]])),
            }
            out["parts"].append(size | entry(columns, known, gt))
        if rest := {2: "other", FOLDS: "rest"}.get(d.parts):
            columns = {"plain": plain[everything]}
            columns |= {kind: ap[d.column(kind, rest)][everything] for kind in KINDS}
            known = np.logical_and.reduce([has_sample[d.source(part, rest)] for part in d.all])
            out["crossfit"].append({"of": d.parts} | entry(columns, known, gt))
    return out


ClassAP = dict[str, np.ndarray]  # IoU type -> (C,) AP in points, nan without ground truth


def class_ap(
    gt: GroundTruth,
    detections: Shards,
    columns: Sequence[str],
    of_val: Sequence[Division],
    limits: Mapping[str, float],
) -> dict[str, dict[Part, ClassAP]]:
    """AP of each class of some columns, over each part of some divisions by itself."""
    parts = {part: np.isin(gt.image_ids, [*d.images(part)]) for d in of_val for part in d.all}
    out: dict[str, dict[Part, ClassAP]] = {c: {part: {} for part in parts} for c in columns}
    matched = match_columns(gt, detections, columns, list(METRICS))
    for (column, iou_type), matches in matched.items():
        ap = matches.average_precision(
            weights=np.array([*parts.values()]),
            per_image=int(limits["max_per_image"]),
            score_thr=limits["score_thr"],
        )
        for part, of_part in zip(parts, ap, strict=True):
            out[column][part][iou_type] = of_part
    return out


def entry(columns: Mapping[str, ClassAP], known: np.ndarray, gt: GroundTruth) -> dict:
    """Means over `all` classes and over the `known` (C,) ones, see `compare`."""
    groups = "".join(c["frequency"] for c in gt.categories)
    out: dict[str, dict[str, dict[str, float | None]]] = {"all": {}, "known": {}}
    for column, ap in columns.items():
        for among, chosen in (("all", np.ones_like(known)), ("known", known)):
            means = {
                names[key]: mean
                for iou_type, names in METRICS.items()
                for key, mean in group_means(np.where(chosen, ap[iou_type], np.nan), groups).items()
            }
            out[among][column] = {k: None if np.isnan(v) else float(v) for k, v in means.items()}
    return out
