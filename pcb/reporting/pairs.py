"""The confusion matrices behind a page, and their most one-sided pairs as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pcb.evaluation.confusion_metrics import Confusion, read_confusion

if TYPE_CHECKING:
    from pcb.reporting.album import Album
    from pcb.reporting.tables import Gathered
    from pcb.study import Study

GROUPS = ["rare", "common", "frequent"]


def one_sided(confusion: Confusion, count: int = 10) -> pd.DataFrame:
    """The pairs of classes with the most one-sided confusion, most one-sided first."""
    matrix = confusion.matrix
    return pd.DataFrame(
        [
            {
                "class i": label(confusion, i),
                "class j": label(confusion, j),
                "i taken for j": matrix[i, j],
                "j taken for i": matrix[j, i],
                "difference": matrix[i, j] - matrix[j, i],
            }
            for i, j in confusion.most_one_sided(count)
        ]
    )


def label(confusion: Confusion, i: int) -> str:
    """A class with its group and number of training images."""
    images = confusion.train_images[i]
    plural = "s" if images != 1 else ""
    return f"{confusion.names[i]} ({confusion.frequency[i]}, {images} train image{plural})"


def load(page: Gathered | Album, run: str | None = None) -> Confusion | None:
    """The matrix of a run, or of the page's first measured one; None where it was not run."""
    for entry in page.about["confusion"]:
        if run in (None, entry["run"]):
            return read_confusion(page.path.parent / entry["path"], entry["classes"])
    return None


def of_run(study: Study, run: str, seed: int, metrics: dict) -> Confusion | None:
    """The matrix behind a run's metrics."""
    path = study.paths.confusion(run, seed)
    return read_confusion(path, metrics["classes"]["plain"]) if path.exists() else None
