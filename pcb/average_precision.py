"""The metrics of LVIS from an accumulated evaluation of hotcoco, shared by scorer and plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcb.frequency import GROUPS

MAX_DETECTIONS = 300  # an image, in lvis-api
BEYOND = 1e12  # an area above every range of areas


def summarize(evaluation: Any, categories: Sequence[dict]) -> dict:
    """Compute the 13 metrics of lvis-api, and AP of each class.

    Args:
        evaluation: hotcoco's `COCOeval`, after `accumulate`.
        categories: The categories, with `id` and `frequency`.

    Returns:
        Points (0-100), None where a group has no class with ground truth: AP, AP50, AP75; APs, APm,
        APl; APr, APc, APf; AR@300, or at another limit, and its three sizes; and `classes`:
        {category id: AP}.
    """
    # (IoU, recall, class, area) and (IoU, class, area) under the loosest limit of detections; -1
    # where there is no ground truth.
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    recall = np.asarray(evaluation.eval["recall"])[..., -1]
    order = {category: k for k, category in enumerate(evaluation.params.cat_ids)}
    iou = np.round(evaluation.params.iou_thrs, 2)
    group = {f: [order[c["id"]] for c in categories if c["frequency"] == f] for f in GROUPS}
    all_areas = precision[..., 0]
    out: dict = {
        "AP": points(all_areas),
        "AP50": points(all_areas[iou == 0.5]),
        "AP75": points(all_areas[iou == 0.75]),
    }
    out.update({f"AP{size}": points(precision[..., k]) for k, size in enumerate("sml", 1)})
    out.update({f"AP{f}": points(all_areas[:, :, group[f]]) for f in GROUPS})
    out.update(
        {
            f"AR{size}@{evaluation.params.max_dets[-1]}": points(recall[..., k])
            for k, size in enumerate(["", "s", "m", "l"])
        }
    )
    out["classes"] = {c["id"]: points(all_areas[:, :, order[c["id"]]]) for c in categories}
    return out


def scored(annotation: dict) -> dict:
    """Return an annotation for hotcoco, which does not know `ignore`.

    lvis-api ignores such objects and those whose area is outside the range in the same way.
    """
    return {**annotation, "area": BEYOND} if annotation.get("ignore") else annotation


def points(values: np.ndarray) -> float | None:
    """Mean of the entries > -1 of an array of any shape, in points; None where there are none."""
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else None
