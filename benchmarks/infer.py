"""Inference at the mini scale: 14 evaluation variants in one pass, one variant, mmdet's predict.

CPU milliseconds an image on one thread, images loaded, masks encoded as RLE. mmdet predicts as its
own test loop does, one image at a time, and pycocotools encodes, as in its metrics. The detectors
of this scale have a frozen backbone, whose feature cache they share; the first detection, which
fills it, is measured too. The checkpoint is that of `results/mini` if it is there, else one trained
for the purpose (a minute or two).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported

import time

import numpy as np
import pycocotools.mask as coco_mask
import torch
from harness import Figure, Stopwatch, by_turns, main
from mmengine.dataset import pseudo_collate

from pcb.errors import UserError
from pcb.files import write_json
from pcb.inference.calibrations import score_functions
from pcb.inference.infer import SplitDetector, detect_shard, trained
from pcb.inference.proposal_confusion import ConfusionSums
from pcb.study import Study, load_study
from pcb.study.variants import score_columns
from pcb.training import build

RUN = "v05_r50_rfs_softmax_plain"  # no run of the paper has more variants
SECTIONS = {
    "features and proposals, cached": [("pcb.inference.forward", "", "extract_and_propose")],
    "box head": [("pcb.inference.infer", "", "forward")],
    "scores and suppression of all variants": [("pcb.inference.infer", "", "detect")],
    "mask head": [("mmdet.models.roi_heads", "StandardRoIHead", "_mask_forward")],
    "masks into the image, as RLE": [("pcb.inference.forward", "", "encode_masks")],
}


def measure(quick: bool) -> list[Figure]:
    """Time each way of detecting on the validation images."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        study = finished(Path(folder))
        detector = SplitDetector(study, RUN, "val", trained(study, RUN, 0))
        ids = list(detector.index)[: 40 if quick else None]
        one = score_functions(detector.model, ["plain"])
        columns = score_columns(study.variants(RUN))
        all_variants = score_functions(detector.model, columns, *statistics(detector))
        seconds = by_turns(
            2 if quick else 5,
            clock=time.process_time,
            mmdet=lambda: mmdet(detector, ids),
            one=lambda: detect_shard(detector, detector.batches(ids), one),
            all=lambda: detect_shard(detector, detector.batches(ids), all_variants),
            first=lambda: detect_shard(detector, uncached(detector).batches(ids), all_variants),
        )
        watch, began = Stopwatch(SECTIONS), time.process_time()
        detect_shard(detector, detector.batches(ids), all_variants)
        whole = time.process_time() - began
    per_image = {name: value / len(ids) * 1e3 for name, value in seconds.items()}
    count = len(columns)
    return [
        Figure(
            f"{count} variants in one pass, against mmdet's predict",
            per_image["all"],
            per_image["mmdet"],
            "ms",
            target=1.5,
        ),
        Figure(
            "the same with an empty feature cache",
            per_image["first"],
            per_image["mmdet"],
            "ms",
            target=1.5,
        ),
        Figure("one variant, against mmdet's predict", per_image["one"], per_image["mmdet"], "ms"),
        Figure(
            f"{count} variants in one pass, against our own pass for one",
            per_image["all"],
            per_image["one"],
            "ms",
        ),
        *watch.figures(whole, len(ids), f"{count} variants, with the clocks of the parts"),
    ]


def finished(folder: Path) -> Study:
    """A study in which the run is trained: that of `results/mini`, or one in `folder`."""
    study = load_study("mini")
    try:
        trained(study, RUN, 0)
    except UserError:
        print(f"training {RUN} in a temporary folder", flush=True)
        study = load_study("mini", overrides={"results": str(folder)})
        write_json(folder / "study.json", study.resolved)
        for verb, what in (
            ("make-data", "v05"),
            ("pretrain", "r50"),
            ("trunk", study.experiments[RUN].trunk),
            ("train", RUN),
        ):
            command = [
                sys.executable,
                "-m",
                "pcb",
                verb,
                what,
                "--study",
                str(folder / "study.json"),
            ]
            subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return study


def statistics(detector: SplitDetector) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Confusion matrices of both splits, and training images of each class, for calibrations."""
    matrices = {}
    for split in ("val", "train"):
        other = SplitDetector(detector.study, RUN, split, detector.record, detector.model)
        sums = ConfusionSums(detector.classes)
        for images in other.batches(list(other.index)):
            other.count(sums, images)
        matrices[split] = torch.from_numpy(sums.matrix)
    return matrices, build.index(*build.dataset_files(detector.study, "v05", "train")).image_count


def uncached(detector: SplitDetector) -> SplitDetector:
    """The same detector with an empty feature cache."""
    detector.model.cache = {"val": {}}
    return detector


def mmdet(detector: SplitDetector, ids: list[int]) -> None:
    """Detect by mmdet's own test step and encode the masks by pycocotools."""
    for i in ids:
        batch = pseudo_collate([detector.dataset[detector.index[i]]])
        masks = detector.model.test_step(batch)[0].pred_instances.masks.numpy()
        coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


if __name__ == "__main__":
    main("infer", measure)
