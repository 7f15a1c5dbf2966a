"""Metrics on resamples of the validation images, for intervals: written by `score` per run.

A resample draws as many images as there are, with replacement. All runs of a data set see the same
resamples, so a difference between two runs on one resample is paired: what an image contributes to
both cancels. Detections are not matched again; an image that is drawn twice counts twice
(`pcb.evaluation.matches`), which equals scoring a copy of the image.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcb.errors import UserError
from pcb.files import atomic, sha256

if TYPE_CHECKING:
    from pcb.evaluation.matches import Matches

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


def write_bootstrap(path: Path, bootstrap: Bootstrap) -> str:
    """Write the metrics of a run on resamples as npz, float32.

    Args:
        path: The file.
        bootstrap: Metrics by protocol and variant.

    Returns:
        SHA-256 of the file, for metrics.json.
    """
    arrays: dict[str, Any] = {
        f"{protocol}/{variant}/{metric}": values.astype(np.float32)
        for (protocol, variant), metrics in bootstrap.items()
        for metric, values in metrics.items()
    }
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return sha256(path)


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
    try:
        if sha256(path) != digest:
            raise UserError(f"{path} is not the file that its metrics.json names", fix)
        with np.load(path) as file:
            for key in file.files:
                protocol, variant, metric = key.split("/")
                out.setdefault((protocol, variant), {})[metric] = file[key].astype(float)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}", fix) from error
    return out
