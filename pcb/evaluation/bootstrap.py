"""Metrics on resamples of the validation images, for intervals: written by `score` per run.

A resample draws as many images as there are, with replacement. All runs of a data set see the same
resamples, so a difference between two runs on one resample is paired: what an image contributes to
both cancels. Detections are not matched again; an image that is drawn twice counts twice
(`pcb.evaluation.matches`), which equals scoring a copy of the image.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcb.evaluation.confusion_metrics import Confusion, bias_metrics
from pcb.files import load_npz, save_npz
from pcb.study.study import BIAS_METRICS

if TYPE_CHECKING:
    from pcb.evaluation.matches import Matches

CHUNK = 2**24  # numbers in the confusion matrices that are held at once
RESAMPLES = 200  # the error of a standard deviation is then 5 %
SEED = 20220615

# (protocol, variant) -> metric -> (B,) values, nan where a resample has nothing to compute it from.
Bootstrap = dict[tuple[str, str], dict[str, np.ndarray]]


def resamples(images: int, count: int = RESAMPLES) -> np.ndarray:
    """Draw how often each image occurs in each resample.

    The draw depends on the number of images alone.

    Returns:
        (B, I) int16, for images by ascending id; rows sum to I.
    """
    rng = np.random.default_rng([SEED, images])
    return rng.multinomial(images, np.full(images, 1 / images), count).astype(np.int16)


def resample_ap(
    masks: Matches, boxes: Matches, weights: np.ndarray, **rule: Any
) -> dict[str, np.ndarray]:
    """AP of one evaluation variant on resamples of the images.

    Args:
        masks: Its detections, matched by masks.
        boxes: The same, matched by boxes.
        weights: (B, I), what `resamples` returned.
        rule: Arguments of `Matches.average_precision` that make the protocol.

    Returns:
        AP, APr, APc, APf and the same of boxes, APb, APbr, APbc and APbf; each (B,). Classes
        without ground truth in a resample are left out of its means.
    """
    # Imported here: tables read bootstraps without hotcoco and pyarrow.
    from pcb.evaluation.matches import group_means

    out = group_means(masks.average_precision(weights=weights, **rule), masks.groups)
    of_boxes = group_means(boxes.average_precision(weights=weights, **rule), boxes.groups)
    return out | {f"APb{name[2:]}": values for name, values in of_boxes.items()}


def resample_bias(
    arrays: dict[str, np.ndarray],
    measured: Confusion,
    image_ids: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """The bias metrics of a confusion matrix on resamples of the images.

    Args:
        arrays: Sums of single images: `image` (K,), `label` (K,) and `image_sums` (K, C).
        measured: The matrix of all images, for its classes.
        image_ids: (I,) ids in ascending order.
        weights: (B, I), what `resamples` returned.

    Returns:
        The metrics of `pcb.study.study.BIAS_METRICS`, each (B,).
    """
    sums, classes = arrays["image_sums"].astype(float), len(measured.names)
    position = np.searchsorted(image_ids, arrays["image"])
    order = np.argsort(arrays["label"], kind="stable")
    bounds = np.searchsorted(arrays["label"][order], np.arange(classes + 1))
    found: list[dict[str, float | None]] = []
    step = max(1, CHUNK // classes**2)
    for start in range(0, len(weights), step):
        part = weights[start : start + step]
        matrices = np.zeros((len(part), classes, classes))
        for label in range(classes):
            rows = order[bounds[label] : bounds[label + 1]]
            matrices[:, label] = part[:, position[rows]] @ sums[rows]
        for matrix in matrices:
            total = matrix.sum(1, keepdims=True)
            matrix /= np.maximum(total, np.finfo(float).tiny)
            of_part = replace(measured, matrix=matrix, seen=total[:, 0] > 0)
            pwb = float(np.linalg.norm(matrix - matrix.T))
            found.append({"PwB": pwb, **bias_metrics(of_part)})
    return {name: np.array([f[name] for f in found], float) for name in BIAS_METRICS}


def write_bootstrap(path: Path, bootstrap: Bootstrap) -> str:
    """Write the metrics of a run on resamples as npz, float32.

    Args:
        path: The file.
        bootstrap: Metrics by protocol and variant.

    Returns:
        SHA-256 of the file, for metrics.json.
    """
    arrays = {
        f"{protocol}/{variant}/{metric}": values.astype(np.float32)
        for (protocol, variant), metrics in bootstrap.items()
        for metric, values in metrics.items()
    }
    return save_npz(path, **arrays)


def read_bootstrap(path: Path, digest: str) -> Bootstrap:
    """Read what `write_bootstrap` wrote.

    Args:
        path: The file.
        digest: SHA-256 of the file, as metrics.json holds it.

    Returns:
        Metrics by protocol and variant, float64.

    Raises:
        UserError: The file is missing, or was changed since the metrics were written.
    """
    out: Bootstrap = {}
    fix = "delete the metrics.json beside it; `snakemake --cores all` scores this run again"
    for key, values in load_npz(path, fix, digest).items():
        protocol, variant, metric = key.split("/")
        out.setdefault((protocol, variant), {})[metric] = values.astype(float)
    return out
