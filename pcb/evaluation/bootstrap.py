"""Metrics on resamples of the validation images, for intervals: written by `score` per run.

A resample draws as many images as there are, with replacement. All runs of a data set see the same
resamples, so a difference between two runs on one resample is paired: what an image contributes to
both cancels. Detections are not matched again; an image that is drawn twice counts twice
(`pcb.evaluation.matches`), which equals scoring a copy of the image.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pcb.errors import UserError
from pcb.files import atomic

RESAMPLES = 400
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


def write_bootstrap(path: Path, fingerprint: str, bootstrap: Bootstrap) -> None:
    """Write the metrics of a run on resamples as npz, float32.

    Args:
        path: The file.
        fingerprint: Fingerprint of the training.
        bootstrap: Metrics by protocol and variant.
    """
    arrays: dict[str, Any] = {
        f"{protocol}/{variant}/{metric}": values.astype(np.float32)
        for (protocol, variant), metrics in bootstrap.items()
        for metric, values in metrics.items()
    }
    with atomic(path) as temporary:
        np.savez_compressed(temporary, fingerprint=np.array(fingerprint), **arrays)


def read_bootstrap(path: Path, fingerprint: str) -> Bootstrap:
    """Read what `write_bootstrap` wrote.

    Returns:
        Metrics by protocol and variant, float64; empty where there is no file, or where it is of
        another training.

    Raises:
        UserError: The file is broken.
    """
    out: Bootstrap = {}
    try:
        with np.load(path) as file:
            if str(file["fingerprint"]) != fingerprint:
                return {}
            for key in file.files:
                if key != "fingerprint":
                    protocol, variant, metric = key.split("/")
                    out.setdefault((protocol, variant), {})[metric] = file[key].astype(float)
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}", "score this run again") from error
    return out
