"""Detections to AP by LVIS's or COCO's rules (hotcoco), streaming over the shards, in seconds.

    evaluate("val.json", Shards(...), "plain", "segm")  ->  {"AP": 27.7, "APr": 21.8, …}
    score(study, run, seed)                             ->  writes metrics.json

LVIS's rules: an image counts for a class only where the class is annotated or listed in
`neg_category_ids`; a false positive of a class in `not_exhaustive_category_ids` is ignored; at most
300 detections an image, over all classes together. By COCO's rules, for data sets of that format,
every class counts in every image, with at most 100 detections of it. By both, an object with
`ignore` or `iscrowd` counts as none, and what detects it neither as right nor as wrong. AP is the
mean over IoU .5:.05:.95 and over the classes that have ground truth; AP_r, AP_c and AP_f are the
means over the classes whose category has `frequency` r, c or f. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import hotcoco
import numpy as np

from pcb.average_precision import scored, summarize
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.evaluation.bootstrap import (
    RESAMPLES,
    Bootstrap,
    resample_ap,
    resample_bias,
    resamples,
    write_bootstrap,
)
from pcb.evaluation.confusion_metrics import (
    Confusion,
    bias_metrics,
    read_confusion,
    read_pairwise_bias,
)
from pcb.evaluation.ground_truth import GroundTruth, gc_disabled
from pcb.evaluation.matches import Matched, match_columns
from pcb.evaluation.protocols import Density, Rule, means, rules, short_classes
from pcb.evaluation.shards import Rows, Shards
from pcb.files import load_npz
from pcb.study import Study
from pcb.study.current import require_detections
from pcb.study.records import git, write_record
from pcb.study.study import CURVE_IOU, CURVE_RECALLS
from pcb.study.variants import (
    NORCAL,
    NORCAL_POSITIVE,
    annotation_split,
    gamma_of,
    gamma_split,
    with_gamma,
)

MASK = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APs", "APm", "APl")
BOX = {"AP": "APb", "AP50": "APb50", "AP75": "APb75", "APr": "APbr", "APc": "APbc", "APf": "APbf"}


def prefetch(items: Iterable[Rows]) -> Iterator[Rows]:
    """The same items, each read in a thread during the use of the last one.

    The evaluator releases Python's lock, so reading and evaluating overlap.
    """
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(lambda: next(rest, None))
        while (item := following.result()) is not None:
            following = thread.submit(lambda: next(rest, None))
            yield item


@gc_disabled()
def evaluate(
    gt: str | Path | GroundTruth,
    detections: Shards | Iterable[Rows],
    variant: str = "plain",
    iou_type: str = "segm",
) -> dict:
    """Score one variant's detections against the ground truth.

    Args:
        gt: The ground truth, or the path of its file.
        detections: A `Shards` reader, or the `Rows` themselves. They must cover every image of `gt`
            once.
        variant: The column of scores to read from shards.
        iou_type: `segm` or `bbox`.

    Returns:
        Points (0-100), None where a group has no class with ground truth: AP, AP50, AP75; APs, APm,
        APl (by area: a detection's is that of its box); APr, APc, APf; AR@300 (COCO: AR@100) and
        its three sizes; `classes`: {category id: AP}; and `precision`: {category id: precision at
        IoU `CURVE_IOU` at each of `CURVE_RECALLS`, in tenths of a percent}, [] without ground
        truth.

    Raises:
        UserError: Images and detections do not belong together.
    """
    gt = gt if isinstance(gt, GroundTruth) else GroundTruth(gt)
    masks = iou_type == "segm"
    stream = hotcoco.StreamingEval(gt.categories, iou_type, lvis_style=not gt.exhaustive)
    shards = detections.read(variant, masks) if isinstance(detections, Shards) else detections
    for rows in gt.covered(prefetch(shards)):
        rows = rows.where(gt.relevant(rows))
        # Images by position: float64, in which the evaluator takes them, cannot hold every id.
        columns = [gt.position(rows.image_id), rows.box, rows.score, rows.category_id]
        table = np.column_stack(columns).astype(np.float64)
        rle: list | None = None
        if masks:
            assert rows.rle is not None
            size = {i: [gt.images[i]["height"], gt.images[i]["width"]] for i in rows.images}
            counts = zip(rows.image_id.tolist(), rows.rle.to_pylist(), strict=True)
            rle = [{"size": size[i], "counts": c} for i, c in counts]
        number = dict(zip(rows.images, gt.position(np.array(rows.images)).tolist(), strict=True))
        images = [{**gt.images[i], "id": number[i]} for i in rows.images]
        annotations = [
            {**scored(a), "image_id": number[i]}
            for i in rows.images
            for a in gt.by_image.get(i, ())
        ]
        stream.update(images, annotations, table, segmentation=rle)
    evaluation = stream.finalize()
    evaluation.accumulate()
    return summarize(evaluation, gt.categories) | {"precision": precision_curves(evaluation)}


def precision_curves(evaluation: hotcoco.COCOeval) -> dict[int, list[int]]:
    """Precision of each category id at IoU `CURVE_IOU`, as `evaluate` describes it."""
    assert evaluation.eval is not None
    # Under the loosest limit of detections; -1 where there is no ground truth.
    precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]  # IoU, recall, class
    iou = np.round(evaluation.params.iou_thrs, 2)
    curves = np.rint(1000 * precision[iou == CURVE_IOU][0][list(CURVE_RECALLS)]).astype(int)
    return {
        category: curve.tolist() if curve[0] >= 0 else []
        for category, curve in zip(evaluation.params.cat_ids, curves.T, strict=True)
    }


def score(study: Study, run: str, seed: int, split: str = "val") -> dict:
    """Score every variant that inference detected with.

    NorCal's γ is the one of best mask AP on the split that is scored, as the paper seems to have
    chosen it (it does not state how). On val there is also NorCal with the γ that is best on
    another split: `norcal-dev` where the data set has a split `dev`, else `norcal-train`, with γ
    chosen on a sample of the training images, which are not scored but were trained on. The same
    holds of `norcal-positive`.

    Args:
        study: The study.
        run: Experiment.
        seed: Seed of the training.
        split: `val`, `dev` or `train-subset`.

    Returns:
        The metrics, which it also writes to `study.paths.metrics(run, seed, split)`, on val with
        `study.paths.bootstrap(run, seed)` beside them: all variants, mask and box AP, and of
        `plain` the bias metrics PwB, Mrf, Mfr, Mup and Mcor and, of masks, the precision-recall
        curve of each class.

    Raises:
        UserError: Detections are missing or of another training, or a file is broken.
    """
    detections = SplitDetections(study, run, seed, split)
    manifest, gt = detections.manifest, detections.gt
    dataset = study.experiments[run].dataset
    train = LVISIndex(study.scale["datasets"][dataset]["train"], cache=study.paths.indices)
    out = {
        "run": run,
        "seed": seed,
        "scale": study.scale["name"],
        "dataset": dataset,
        "split": split,
        "fingerprint": manifest["fingerprint"],
        "evaluation": manifest["evaluation"],
        "checkpoint": manifest["checkpoint"],
        "git": git(),
        "images": len(gt.images),
        "variants": {},
        "classes": {},
    }
    tuned = with_gamma(manifest["variants"])
    column = {variant: variant for variant in manifest["variants"] if variant not in tuned}
    other = gamma_split(study, run)
    tuned_on = {split: detections}
    if tuned and split == "val":
        out["gamma_evaluation"] = study.evaluation(run, seed, other)
        tuned_on[annotation_split(other)] = SplitDetections(study, run, seed, other)
    for variant in tuned:
        chosen = {name: on.choose_gamma(variant) for name, on in tuned_on.items()}
        out[variant] = chosen
        for name, of_gamma in chosen.items():
            column[variant if name == split else f"{variant}-{name}"] = of_gamma["column"]
    for variant, name in column.items():
        masks, boxes = detections.evaluate(name, "segm"), detections.evaluate(name, "bbox")
        curves = masks["precision"] if variant == "plain" else None
        out["variants"][variant] = {
            **{k: masks[k] for k in MASK},
            **{k: boxes[key] for key, k in BOX.items()},
        }
        out["classes"][variant] = [
            {
                "id": original,
                "name": c["name"],
                "frequency": c["frequency"],
                "train_images": count,
                "AP": masks["classes"][c["id"]],
                "APb": boxes["classes"][c["id"]],
                **({"precision": curves[c["id"]]} if curves else {}),
            }
            for c, original, count in zip(
                gt.categories, gt.original_ids, train.image_count, strict=True
            )
        ]
    path = study.paths.confusion(run, seed, split)
    out["confusion"] = digest = manifest.get("confusion")
    confusion = read_confusion(path, out["classes"]["plain"], detections.again, digest)
    bias = read_pairwise_bias(path, detections.again, digest) | bias_metrics(confusion)
    out["variants"]["plain"] |= bias
    if split == "val":
        matches = detections.matches(column.values())
        of_data = rules(gt, study.scale["test"], study.contents.is_generated(dataset))
        under = under_protocols(gt, column, matches, of_data)
        for of_variant in under["protocols"].values():
            of_variant["plain"] |= bias
        out |= under
        resampled = detections.resample(column, matches, of_data, confusion)
        digest = write_bootstrap(study.paths.bootstrap(run, seed), resampled)
        out["bootstrap"] = {"resamples": RESAMPLES, "sha256": digest}
    write_record(study.paths.metrics(run, seed, split), out)
    return out


def under_protocols(
    gt: GroundTruth, column: dict[str, str], matches: Matched, of_data: dict[str, Rule]
) -> dict:
    """The part of metrics.json about protocols.

    Args:
        gt: The ground truth.
        column: Variant -> column of scores.
        matches: The matches of these columns.
        of_data: The protocols.

    Returns:
        `protocols`: {protocol: {variant: AP, APr, ... APb, ...}}; `limits`: detections per class of
        `fixed`, and for each variant the classes of which fewer are kept; `density`: the shares of
        verified negatives, the annotations' `own`, and the curves of each variant, where the whole
        truth is known.
    """
    per_class = of_data["fixed"]["per_class"]
    pairs = {variant: (matches[c, "segm"], matches[c, "bbox"]) for variant, c in column.items()}
    out: dict = {
        "protocols": {
            protocol: {variant: means(*pair, rule) for variant, pair in pairs.items()}
            for protocol, rule in of_data.items()
        },
        "limits": {
            "per_class": per_class,
            "short": {v: short_classes(masks, per_class) for v, (masks, _) in pairs.items()},
        },
    }
    if "verified" in of_data:
        density = Density(gt)
        out["density"] = {
            "own": density.own,
            "shares": density.shares,
            "variants": {v: density.curves(m, of_data["lvis"]) for v, (m, _) in pairs.items()},
        }
    return out


class SplitDetections:
    """The detections of a run on one split, with the ground truth; each column is scored once."""

    def __init__(self, study: Study, run: str, seed: int, split: str):
        """Raises `UserError` where they are missing or of another training or evaluation."""
        self.path = path = study.paths.detections(run, seed, split)
        of_split = "" if split == "val" else f" --split {split}"
        self._images_path = study.paths.confusion_images(run, seed)
        self.again = f"run `pcb infer {run} --seed {seed}{of_split}` again"
        self.manifest = require_detections(study, run, seed, split)
        self.shards = Shards(
            path.parent / self.manifest["folder"],
            self.manifest["shards"],
            f"{self.again}: it detects anew where a shard is broken",
            self.manifest["limits"],
        )
        self._study, self._dataset = study, study.experiments[run].dataset
        self._split, self._whole_file = annotation_split(split), annotation_split(split) == split
        self._scored: dict[tuple[str, str], dict] = {}

    @cached_property
    def gt(self) -> GroundTruth:
        """The ground truth of the images of the split."""
        only = None if self._whole_file else self.images
        return GroundTruth.of(self._study, self._dataset, self._split, only)

    @property
    def images(self) -> set[int]:
        """Ids of the images that the detections cover."""
        return {i for rows in self.shards.read("plain") for i in rows.images}

    def evaluate(self, column: str, iou_type: str) -> dict:
        """The metrics of one column of scores, as `evaluate` returns them."""
        if (column, iou_type) not in self._scored:
            self._scored[column, iou_type] = evaluate(self.gt, self.shards, column, iou_type)
        return self._scored[column, iou_type]

    def matches(self, columns: Iterable[str]) -> Matched:
        """The matches of columns of scores by masks and boxes, of all detections that are kept."""
        return match_columns(self.gt, self.shards, list(dict.fromkeys(columns)), ("segm", "bbox"))

    def resample(
        self, column: dict[str, str], matches: Matched, rules: dict[str, Rule], confusion: Confusion
    ) -> Bootstrap:
        """The metrics of variants under each protocol on resamples of the images.

        Args:
            column: Variant -> column of scores.
            matches: What `matches` returned for these columns.
            rules: The protocols.
            confusion: The confusion matrix of all images.

        Raises:
            UserError: The sums of single images are missing or damaged.
        """
        weights = resamples(len(self.gt.images))
        by_column = {
            (protocol, name): resample_ap(
                matches[name, "segm"], matches[name, "bbox"], weights, **rule
            )
            for protocol, rule in rules.items()
            for name in dict.fromkeys(column.values())
        }
        out: Bootstrap = {
            (protocol, variant): by_column[protocol, name]
            for protocol in rules
            for variant, name in column.items()
        }
        path, digest = self._images_path, self.manifest.get("confusion_images")
        arrays = load_npz(path, self.again, digest)
        of_matrix = resample_bias(arrays, confusion, self.gt.image_ids, weights)
        for protocol in rules:  # they concern detections; the matrix is that of proposals
            out[protocol, "plain"] = out[protocol, "plain"] | of_matrix
        return out

    def choose_gamma(self, variant: str = NORCAL) -> dict:
        """Mask AP over NorCal's γ, the best γ (of equals the smallest) and its column.

        Args:
            variant: `norcal`, or `norcal-positive`, for which γ is chosen without 0.

        Raises:
            UserError: These are detections without NorCal.
        """
        if not with_gamma(self.manifest["variants"]):
            raise UserError(f"{self.path} holds no variant {NORCAL!r}", self.again)
        gammas = {c: gamma_of(c) for c in self.manifest["columns"]}
        by_gamma = {gamma: c for c, gamma in gammas.items() if gamma is not None}
        curve = {
            gamma: self.evaluate(column, "segm")["AP"] for gamma, column in sorted(by_gamma.items())
        }
        choices = [gamma for gamma in curve if gamma or variant != NORCAL_POSITIVE]
        best = max(choices, key=lambda gamma: (curve[gamma] or 0, -gamma))
        return {
            "gamma": best,
            "column": by_gamma[best],
            "AP": [[gamma, ap] for gamma, ap in curve.items()],
        }
