"""The same detections scored under several protocols; `score` writes the result to metrics.json.

    lvis      LVIS's rule with the scale's limit of detections an image: the scored numbers; for
              data in COCO's format that rule is COCO's
    verified  every class that is absent from an image counts as verified to be absent
    fixed     AP-Fixed: a limit of detections per class over the data set, none per image
    loose     LVIS's rule with every detection that inference keeps

`verified` needs the whole truth, which only generated data have; by COCO's rule every absent class
counts anyway. A class with an unlabelled object
in an image stays not exhaustively annotated there under every protocol. Between `lvis` and
`verified` lies the density of verified negatives, from none to all.

Source of `fixed`: Dave, Dollár, Ramanan, Kirillov and Girshick, Evaluating Large-Vocabulary Object
Detectors: The Devil is in the Details, arXiv 2102.01066; github.com/achalddave/large-vocab-devil.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import Matches, group_means

FIXED_PER_CLASS = 10_000  # of AP-Fixed, on the validation set of LVIS v1.0, which has
FIXED_IMAGES = 19_809
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of absent pairs that are verified
DRAWS = 5
SEED = 210201066

# Arguments of `Matches.average_precision` that make a protocol.
Rule = dict[str, Any]


def rules(gt: GroundTruth, test: Mapping[str, float], whole_truth: bool) -> dict[str, Rule]:
    """The protocols under which a split can be scored.

    Args:
        gt: The ground truth of the split.
        test: `test` of the scale.
        whole_truth: Whether the annotations name every class of an image, as those of generated
            data do.
    """
    images, classes = len(gt.image_ids), len(gt.categories)
    limits = {"per_image": test["max_per_image"], "score_thr": test["score_thr"]}
    out: dict[str, Rule] = {"lvis": limits}
    if whole_truth and not gt.exhaustive:
        out["verified"] = limits | {"known": np.ones((images, classes), bool)}
    out["fixed"] = {"per_class": fixed_limit(images, whole_truth or gt.exhaustive)}
    out["loose"] = {"per_image": test["keep_per_image"], "score_thr": test["keep_score_thr"]}
    return out


def fixed_limit(images: int, whole_truth: bool) -> int:
    """AP-Fixed's limit of detections per class: that of LVIS; by images where truth is whole."""
    limit = max(1, round(FIXED_PER_CLASS * images / FIXED_IMAGES))
    return limit if whole_truth else FIXED_PER_CLASS


def means(masks: Matches, boxes: Matches, rule: Rule) -> dict[str, float | None]:
    """AP, APr, APc, APf and those of boxes, in points; None without a class with ground truth."""
    out = {}
    for prefix, matches in (("AP", masks), ("APb", boxes)):
        for name, value in group_means(matches.average_precision(**rule), matches.groups).items():
            out[prefix + name[2:]] = None if np.isnan(value) else float(value)
    return out


def short_classes(matches: Matches, per_class: int) -> int:
    """Classes of which inference keeps fewer detections than the limit per class."""
    kept = np.bincount(matches.label, minlength=len(matches.groups))
    return int((kept < per_class).sum())


class Density:
    """Random sets of verified negatives, from none to all; the same for all runs of a data set.

    Attributes:
        own: The share of absent pairs of image and class that the annotations list as verified.
        shares: Ascending shares at which AP is measured, `own` among them.
    """

    def __init__(self, gt: GroundTruth):
        shape = len(gt.image_ids), len(gt.categories)
        listed = sum(len(image["neg_category_ids"]) for image in gt.images.values())
        present = sum(len({a["category_id"] for a in found}) for found in gt.by_image.values())
        self.own = listed / (shape[0] * shape[1] - present)
        self.shares = sorted({*SHARES, self.own})
        # A pair that is verified at one share is verified at every higher one.
        chance = np.random.default_rng([SEED, *shape]).random((DRAWS, *shape), np.float32)
        self._known = np.concatenate([chance < share for share in self.shares])

    def curves(self, matches: Matches, limits: Rule) -> dict[str, list[float | None]]:
        """AP, APr, APc and APf at each share, in points, the mean over the draws.

        Args:
            matches: Detections of one column.
            limits: The rule of the protocol `lvis`.
        """
        ap = matches.average_precision(known=self._known, **limits)
        return {
            name: [
                None if np.isnan(value) else round(float(value), 2)
                for value in values.reshape(-1, DRAWS).mean(1)
            ]
            for name, values in group_means(ap, matches.groups).items()
        }
