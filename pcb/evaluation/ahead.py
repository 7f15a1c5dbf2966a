"""Detections that a training on a CPU made in its own process: that spares the start of another.

    splits_ahead(study, run, seed)     on which `pcb train RUN --detect` detects after its training
    take(study, run, seed, split)      in `pcb infer`: puts what it left in place
    discard(study, run, seed, split)   what nobody will take

A training leaves the shards where they belong, and the manifest and the confusion matrix in a
folder `ahead` beside their places, which belong to another job of the workflow.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pcb.errors import UserError
from pcb.files import is_intact, sha256
from pcb.study.current import current_detections, current_training, is_evaluation, lacking
from pcb.study.records import read_record
from pcb.study.study import Study
from pcb.study.variants import (
    confusion_splits,
    detected_splits,
    detected_variants,
    score_columns,
)


def files_of(study: Study, run: str, seed: int, split: str) -> list[Path]:
    """The files of a detection beside its shards: the manifest, then those whose digests it has."""
    paths = study.paths
    files = [paths.detections(run, seed, split), paths.confusion(run, seed, split)]
    return [*files, paths.confusion_images(run, seed)] if split == "val" else files


def splits_ahead(study: Study, run: str, seed: int) -> list[str]:
    """The splits on which the tables need a trained run's detections, and have none.

    None of a run whose calibration needs the confusion matrix of train, which is another job's.
    """
    if "train" in confusion_splits(study.variants(run)):
        return []
    splits = detected_splits(study, run)
    return [split for split in splits if not _is_detected(study, run, seed, split)]


def _is_detected(study: Study, run: str, seed: int, split: str) -> bool:
    try:
        manifest = current_detections(study, run, seed, split)
    except UserError:  # a damaged record, which is to be made again
        return False
    return manifest is not None and not lacking(study, manifest, run, split)


def take(study: Study, run: str, seed: int, split: str) -> bool:
    """Put in place what a training left of a detection, if it is complete, intact and current.

    Returns:
        Whether it was; otherwise the detection has yet to be made, or completed.
    """
    files = files_of(study, run, seed, split)
    left = [study.paths.ahead(path) for path in files]
    try:
        manifest = read_record(left[0])
        is_of_study = current_training(study, run, seed) is not None
        is_of_study = is_of_study and is_evaluation(study, manifest, run, seed, split)
    except UserError:  # a damaged record: the detection writes it anew
        return False
    if not manifest or not is_of_study:
        return False
    variants = detected_variants(study, run, split)
    if manifest["variants"] != variants or manifest["columns"] != score_columns(variants):
        return False
    digests = [manifest["confusion"], manifest.get("confusion_images")]
    for path, digest in zip(left[1:], digests, strict=False):
        if not path.is_file() or sha256(path) != digest:
            return False
    shards = files[0].with_suffix("")
    if not all(is_intact(shards / shard["file"]) for shard in manifest["shards"]):
        return False
    for path, place in reversed(list(zip(left, files, strict=True))):  # the manifest last
        os.replace(path, place)
    discard(study, run, seed, split)
    return True


def discard(study: Study, run: str, seed: int, split: str) -> None:
    """Delete what a training left of a detection, if it left anything."""
    left = [study.paths.ahead(path) for path in files_of(study, run, seed, split)]
    for path in left:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it does not exist, or holds what is left of another split
        left[0].parent.rmdir()
