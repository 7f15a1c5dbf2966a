"""The sentence on the oracle in §3.2, read in several ways, on finished trainings.

    python benchmarks/oracle_readings.py results/mini/study.json

"For post-hoc evaluation which enables partial labels for upper bound examination, predicted class
labels of the proposals are replaced by the actual categories (through matching using IoU between
proposals and ground-truth boxes)." The pipeline reads it as: the rows of M belong to the actual
classes. This script scores the other readings too, for the plain softmax runs of Table 1 at the
study's first seed, prints the table of docs/methods.md and writes
results/benchmarks/experiments/oracle-readings.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pcb.calibration import ConfusionMatrixCalibration, MeanScoreCalibration
from pcb.cluster.instructions import use_same_instructions
from pcb.confusion import posterior
from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import group_means, match_columns
from pcb.evaluation.shards import Shards, ShardWriter, plan_shards
from pcb.files import ROOT, write_json
from pcb.inference.forward import Image, Selection, detect
from pcb.inference.infer import SplitDetector, shard_columns, trained
from pcb.inference.proposal_confusion import ConfusionSums, foreground, match
from pcb.study import Study, load_study
from pcb.study.variants import oracle_runs

OUT = ROOT / "results/benchmarks/experiments/oracle-readings.json"
READINGS = {
    "plain": "no calibration",
    "ms": "MS: Eq. 7, 8",
    "cm": "CM: M of p̂ over all proposals (Eq. 3); implemented",
    "votes": "M of votes for the largest p̂ (Eq. 2)",
    "final": "M of the proposals behind final detections only",
    "posterior": "matched proposals: p̃ = column y of M̂, the prediction replaced by the class",
    "label": "matched proposals: score 1 - p_bg for the actual class, 0 for the others",
}


def matched(detector: SplitDetector, image: Image) -> tuple[Tensor, Tensor]:
    """Proposals (k,) that match an object, and their classes (k,)."""
    info = detector.dataset.get_data_info(detector.index[image.meta["img_id"]])["instances"]
    if not info or not image.logits:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    scale = image.proposals.new_tensor(image.meta["scale_factor"]).repeat(2)
    boxes = image.proposals.new_tensor([i["bbox"] for i in info]) * scale
    labels = torch.tensor([i["bbox_label"] for i in info], device=boxes.device)
    return match(image.proposals, boxes, labels)


def kept_proposals(detector: SplitDetector, image: Image) -> Tensor:
    """Proposals of which some class survives thresholds and suppression, as (n,) bool."""
    selection = detect(detector.model, image, {"plain": lambda steps: steps[-1]})
    out = torch.zeros(len(image.proposals), dtype=torch.bool, device=image.boxes.device)
    for box, label in zip(selection.boxes, selection.labels, strict=True):
        of_class = image.boxes[:, int(label) if image.boxes.shape[1] > 1 else 0]
        out |= (of_class == box).all(dim=1)
    return out


def matrices(detector: SplitDetector, batches: list[list[Image]]) -> dict[str, Tensor]:
    """M (C, C) float64 by three of the readings."""
    sums = {name: ConfusionSums(detector.classes) for name in ("cm", "votes", "final")}
    for images in batches:
        for image in images:
            rows, labels = matched(detector, image)
            if not len(rows):
                continue
            p = foreground(detector.model.roi_head.bbox_head, image.logits[-1][rows])
            kept = kept_proposals(detector, image)[rows]
            sums["cm"].add(labels, p)
            sums["votes"].add(labels, torch.nn.functional.one_hot(p.argmax(1), p.shape[1]))
            sums["final"].add(labels[kept], p[kept])
    return {name: torch.from_numpy(s.matrix) for name, s in sums.items()}


def selector(detector: SplitDetector, m: Mapping[str, Tensor]) -> Callable[[Image], Selection]:
    """How an image is detected by every reading."""
    calibrations = {name: ConfusionMatrixCalibration(matrix) for name, matrix in m.items()}
    calibrations["ms"] = MeanScoreCalibration(m["cm"].diagonal())
    columns = posterior(m["cm"]).T

    def select(image: Image) -> Selection:
        functions = {"plain": lambda steps: steps[-1]}
        for name, calibrate in calibrations.items():
            functions[name] = lambda steps, calibrate=calibrate: calibrate(steps[-1])
        rows, labels = matched(detector, image)
        for name, target in (("posterior", columns), ("label", torch.eye(len(columns)))):

            def replaced(steps: list[Tensor], target: Tensor = target) -> Tensor:
                scores = steps[-1].clone()
                foreground_sum = scores[rows, :-1].sum(1, keepdim=True)
                scores[rows, :-1] = target.to(scores)[labels] * foreground_sum
                return scores

            functions[name] = replaced
        return detect(detector.model, image, functions)

    return select


def read(study: Study, run: str, seed: int) -> dict[str, dict[str, float]]:
    """AP of boxes and masks by reading."""
    detector = SplitDetector(study, run, "val", trained(study, run, seed))
    ids = list(detector.index)
    batches = list(detector.batches(ids))
    m = matrices(detector, batches)
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(folder, "readings", list(READINGS))
        columns = shard_columns(detector, batches, list(READINGS), selector(detector, m))
        [shard] = plan_shards(ids, len(ids))
        writer.write(shard, columns)
        dataset = study.experiments[run].dataset
        gt = GroundTruth(study.scale["datasets"][dataset]["val"], study.paths.indices)
        shards = Shards(Path(folder), writer.finish([shard]))
        out: dict[str, dict[str, float]] = {name: {} for name in READINGS}
        groups = "".join(c["frequency"] for c in gt.categories)
        matches = match_columns(gt, shards, list(READINGS), ["segm", "bbox"])
        for (name, iou_type), of in matches.items():
            ap = of.average_precision(
                per_image=study.scale["test"]["max_per_image"],
                score_thr=study.scale["test"]["score_thr"],
            )
            mark = "b" if iou_type == "bbox" else ""
            for metric, value in group_means(ap, groups).items():
                out[name][f"AP{mark}{metric[2:]}"] = round(float(value), 2)
    return out


def main() -> None:
    """Score every reading, print the table and write the figures."""
    use_same_instructions()
    study = load_study(sys.argv[1])
    seed = study.seeds[0]
    runs = {run: read(study, run, seed) for run in oracle_runs(study)}
    write_json(OUT, {"seed": seed, "scale": study.scale["name"], "runs": runs})
    for name, title in READINGS.items():
        cells = (
            " / ".join(f"{values[name][metric]:.1f}" for metric in ("AP", "APr", "APc", "APf"))
            for values in runs.values()
        )
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
