"""The number of images that a training and an evaluation process."""

from __future__ import annotations

from pcb.data.lvis.releases import RELEASES
from pcb.errors import UserError
from pcb.study.experiment import Experiment
from pcb.study.records import read_record
from pcb.study.study import Study
from pcb.study.variants import (
    TRAIN_SUBSET,
    TRAIN_SUBSET_IMAGES,
    annotation_split,
    confusion_splits,
    detected_splits,
)


def images_in(study: Study, dataset: str, split: str) -> int | None:
    """Images of a split; None where they are not known.

    The count is from the report of `pcb check-data`, else from the recipe of generated data, else
    from the LVIS release. Of other data it is not known before the check.
    """
    count = _report(study, dataset).get("splits", {}).get(split, {}).get("images")
    if count is not None:
        return count
    if study.contents.is_generated(dataset):
        return study.scale["synthetic"][f"{split}_images"]
    release = RELEASES.get(study.scale["datasets"][dataset].get("version", ""))
    return release.sizes.get(split, (None,))[0] if release else None


def images_per_epoch(study: Study, experiment: Experiment) -> tuple[int | None, bool]:
    """Images of a training's epoch.

    Returns:
        The count (None: not known), and whether it is exact. How often repeat factor sampling
        repeats images is only known after `pcb check-data`; before, each is counted once.
    """
    rfs = experiment.sampler == "rfs"
    factors = _report(study, experiment.dataset).get("repeat_factors", {})
    if count := factors.get("epoch" if rfs else "images"):
        return count, True
    return images_in(study, experiment.dataset, "train"), not rfs


def evaluated_images(study: Study, run: str) -> int | None:
    """Images that pass through the detector in all jobs of an evaluation; None where not known."""
    splits, dataset = detection_splits(study, run), study.experiments[run].dataset
    if "train" in confusion_splits(study.variants(run)):
        splits.append("train")
    total = 0
    for split in splits:
        count = images_in(study, dataset, annotation_split(split))
        if count is None:
            return None
        total += min(TRAIN_SUBSET_IMAGES, count) if split == TRAIN_SUBSET else count
    return total


def detection_splits(study: Study, run: str) -> list[str]:
    """The splits that the detector of a run passes over to detect.

    Val comes twice where a calibration needs its confusion matrix first; a small val stays in
    memory meanwhile.
    """
    splits = detected_splits(study, run)
    if "val" in confusion_splits(study.variants(run)) and "synthetic" not in study.scale:
        splits.append("val")
    return splits


def _report(study: Study, dataset: str) -> dict:
    """The report of `pcb check-data`; {} where there is none."""
    try:
        return read_record(study.paths.data_check(dataset)) or {}
    except UserError:
        return {}
