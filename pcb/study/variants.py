"""Score columns behind the evaluation variants, and the splits that an evaluation reads.

`plain` are the detector's own scores, `step1` and `step2` those of an earlier step (Table 7); the
others are calibrations of `pcb.registry`. Never imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pcb.registry import CALIBRATIONS

if TYPE_CHECKING:
    from pcb.study.study import Study

NORCAL = "norcal"
NORCAL_POSITIVE = "norcal-positive"
TRAIN_SUBSET = "train-subset"  # a fixed sample of the training images, as a split
TRAIN_SUBSET_IMAGES = 5000
GAMMA_SPLITS = ("dev", TRAIN_SUBSET)
# `pcb oracle` divides val at random into parts of equal size, {parts: number of divisions}, and
# calibrates each with its own statistics and with those of another one; 2 is the cross-fit.
ORACLE_PARTS = {1: 1, 2: 4, 3: 3, 8: 1, 20: 1}


def score_columns(variants: Iterable[str]) -> list[str]:
    """The columns of scores behind evaluation variants: one each, for NorCal one for each γ."""
    columns = []
    for variant in variants:
        gammas = CALIBRATIONS[variant].gammas if variant in CALIBRATIONS else ()
        columns += [f"{NORCAL}-{gamma:g}" for gamma in gammas] or [variant]
    return list(dict.fromkeys(columns))


def with_gamma(variants: Iterable[str]) -> list[str]:
    """The variants whose γ is chosen: NorCal, with and without γ = 0."""
    return [v for v in variants if v in CALIBRATIONS and CALIBRATIONS[v].gammas]


def gamma_of(column: str) -> float | None:
    """γ of a NorCal column, 0 for `plain`, None for any other."""
    if column == "plain":
        return 0.0
    prefix, _, gamma = column.partition("-")
    return float(gamma) if prefix == NORCAL else None


def confusion_splits(variants: Iterable[str]) -> set[str]:
    """The splits whose confusion matrix variants need: `val` (the split itself), `train`."""
    splits = {CALIBRATIONS[v].statistics_of for v in variants if v in CALIBRATIONS}
    return {split for split in splits if split}


def oracle_runs(study: Study) -> list[str]:
    """The runs that some table shows calibrated by a confusion matrix: those of `pcb oracle`."""
    return [run for run in study.runs() if confusion_splits(study.variants(run))]


def gamma_split(study: Study, run: str) -> str:
    """The split beside val on which NorCal's γ is chosen.

    Returns:
        `dev` where the data set has one, else `TRAIN_SUBSET`.
    """
    splits = study.scale["datasets"][study.experiments[run].dataset]
    return "dev" if "dev" in splits else TRAIN_SUBSET


def detected_splits(study: Study, run: str) -> list[str]:
    """The splits on which the tables need a run's detections: val, and that of NorCal's γ."""
    return ["val", *[gamma_split(study, run) for _ in with_gamma(study.variants(run))[:1]]]


def detected_variants(study: Study, run: str, split: str) -> list[str]:
    """The evaluation variants that some table needs of a run on a split."""
    variants = study.variants(run)
    if with_gamma(variants) and split == gamma_split(study, run):
        return ["plain", NORCAL]
    return variants


def train_subset(image_ids: Iterable[int]) -> list[int]:
    """At most `TRAIN_SUBSET_IMAGES` of the training images, the same in every run."""
    ids = sorted(image_ids)
    return sorted(random.Random(0).sample(ids, min(TRAIN_SUBSET_IMAGES, len(ids))))


def annotation_split(split: str) -> str:
    """The scale's name of the split from whose annotation file a split is taken."""
    return "train" if split == TRAIN_SUBSET else split
