"""A trained detector over a split: one pass yields all evaluation variants, as shards of detections, and the confusion matrix.

    infer(study, run, seed)  ->  detections/*.parquet, confusion.npz and, last, detections.json below results/<scale>/runs/<run>/

Everything that costs is done once an image: features, proposals, logits, masks (pcb.engine.predict). An interrupted pass continues
with the shards that are missing; it yields the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from torch.utils.data import DataLoader, Dataset, Subset

from pcb.engine import build, checkpoint
from pcb.engine.matrix import Sums, foreground, match, write_confusion
from pcb.engine.predict import Image, batches, detect, forward, rules, segment
from pcb.engine.score import of_split
from pcb.engine.shards import BOX, IMAGES_PER_SHARD, SCORE, ShardWriter, plan
from pcb.errors import UserError
from pcb.files import write_json
from pcb.study import Study
from pcb.study.load import read_json
from pcb.study.study import fingerprint

IMAGES_AT_ONCE = 8  # of one shape; mmdet tests with one at a time


def infer(study: Study, run: str, seed: int, split: str = "val", images_per_shard: int = IMAGES_PER_SHARD) -> dict:
    """Detect on `split` with every built variant that some table asks of this run. Returns the manifest it wrote.

    Raises `UserError` where the run is not trained, its checkpoint is missing, damaged or of another class count, or predicts NaN.
    """
    started = time.monotonic()
    torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    record = trained(study, run, seed)
    data = test_set(study, run, split)
    job = {**study.eval_job(run, seed), "split": split, "checkpoint": record["sha256"]}
    manifest_path = of_split(study.paths.detections(run, seed), split)
    writer = ShardWriter(manifest_path.with_suffix(""), fingerprint(job), job["variants"])
    index = {data.get_data_info(i)["img_id"]: i for i in range(len(data))}
    parts = plan(list(index), images_per_shard)
    missing = [part for part in parts if not (writer.has(part) and writer.path(part, "npz").exists())]
    if missing:
        model = build.detector(study, run, record["checkpoint"])
        items = iter(loader(data, [index[i] for part in missing for i in part], study.scale["hardware"]["workers"]))
        progress = Progress(f"{run} on {split}", sum(map(len, missing)))
        for part in missing:
            rows, sums = detect_all(model, data, index, progress.watch(islice(items, len(part))), job["variants"])
            sums.save(writer.path(part, "npz"))
            writer.write(part, rows)
    total = Sums(len(data.metainfo["classes"]))
    for part in parts:
        total.load(writer.path(part, "npz"))
    write_confusion(of_split(study.paths.confusion(run, seed), split), total)
    manifest = {"run": run, "seed": seed, "split": split, "fingerprint": study.fingerprint(run, seed), "evaluation": writer.fingerprint,
                "variants": job["variants"], "images": len(index), "folder": writer.folder.name, "shards": writer.finish(parts),
                "seconds": round(time.monotonic() - started, 1)}
    write_json(manifest_path, manifest)
    return manifest


def trained(study: Study, run: str, seed: int) -> dict:
    """The record of a finished training, its checkpoint verified. Raises `UserError` where it is missing, of another study, or damaged."""
    path = study.paths.train(run, seed)
    again = f"pcb train {run} --seed {seed}"
    if not path.exists():
        raise UserError(f"{path} does not exist: this run is not trained", f"train it: {again}")
    record = read_json(path)
    if record["fingerprint"] != study.fingerprint(run, seed):
        raise UserError(f"{path} is of another study: fingerprint {record['fingerprint']}, not {study.fingerprint(run, seed)}",
                        f"train it again: {again}")
    if not Path(record["checkpoint"]).exists():
        raise UserError(f"{record['checkpoint']}, the checkpoint that {path} names, does not exist", f"delete {path}, then {again}")
    if checkpoint.sha256(record["checkpoint"]) != record["sha256"]:
        raise checkpoint.damaged(record["checkpoint"])
    return record


def test_set(study: Study, run: str, split: str) -> Dataset:
    """The images of a split through mmdet's test pipeline, with the annotations at hand by `get_data_info`."""
    experiment = study.experiments[run]
    if split not in study.scale["datasets"][experiment.dataset]:
        raise UserError(f"the scale {study.scale['name']!r} names no split {split!r} for {experiment.dataset}", "name one in its YAML")
    annotations, images = build.dataset_files(study, experiment.dataset, split)
    pipeline = build.base(study, experiment.backbone).test_pipeline
    return DATASETS.build({"type": "PCBLVISDataset", "ann_file": annotations, "data_prefix": {"img": images}, "test_mode": True,
                           "pipeline": pipeline})


def loader(data: Dataset, indices: list[int], workers: int) -> DataLoader:
    return DataLoader(Subset(data, indices), batch_size=None, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(item):
    return item


def detect_all(model: torch.nn.Module, data: Dataset, index: dict[int, int], items: Iterator[dict],
               variants: list[str]) -> tuple[dict, Sums]:
    """One shard's images -> its columns, and its part of the confusion matrix."""
    head, by_name = model.roi_head.bbox_head, rules(model, variants)
    classes = len(data.metainfo["classes"])
    if classes != head.num_classes:
        raise UserError(f"{data.ann_file} has {classes} categories, the checkpoint {head.num_classes} classes",
                        "use the annotation file of the data set that the run was trained on")
    found: dict[str, list] = {name: [] for name in ("image_id", "category_id", "box", "height", "width", *(SCORE + v for v in variants))}
    rles, sums = [], Sums(classes)
    for batch in batches(items, IMAGES_AT_ONCE):
        for image in forward(model, batch):
            count(sums, head, image, data.get_data_info(index[image.meta["img_id"]])["instances"])
            kept = detect(model, image, by_name)
            boxes, masks = segment(model, image, kept)
            rles += masks
            found["box"].append(to_xywh(boxes))
            found["category_id"].append(kept.labels.cpu().numpy() + 1)  # ids are 1..C, labels 0..C-1
            for name, value in zip(("image_id", "height", "width"), (image.meta["img_id"], *image.meta["ori_shape"][:2]), strict=True):
                found[name].append(np.full(len(boxes), value))
            for variant, scores in kept.scores.items():
                found[SCORE + variant].append(scores.cpu().numpy())
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    return columns | dict(zip(BOX, columns.pop("box").T, strict=True)) | {"rle": rles}, sums


def count(sums: Sums, head: torch.nn.Module, image: Image, instances: list[dict]) -> None:
    """Add an image's proposals to the confusion matrix. `instances` in pixels of the original image, as the data set gives them."""
    if not instances or not image.logits:
        return
    scale = image.proposals.new_tensor(image.meta["scale_factor"]).repeat(2)
    truth = image.proposals.new_tensor([i["bbox"] for i in instances]) * scale
    labels = torch.tensor([i["bbox_label"] for i in instances], device=truth.device)
    rows, labels = match(image.proposals, truth, labels)
    sums.add(labels, foreground(head, image.logits[-1][rows]))


def to_xywh(boxes: torch.Tensor) -> np.ndarray:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).cpu().numpy()


class Progress:
    """A line every few seconds: images done, of how many, and the time left."""

    def __init__(self, title: str, total: int, every: float = 10.0):
        self.title, self.total, self.every, self.done = title, total, every, 0
        self.started = self.said = time.monotonic()

    def watch(self, items: Iterator[dict]) -> Iterator[dict]:
        for item in items:
            yield item
            self.done += 1
            now = time.monotonic()
            if now - self.said > self.every or self.done == self.total:
                self.said, left = now, (now - self.started) / self.done * (self.total - self.done)
                print(f"{self.title}: {self.done} of {self.total} images, {left:.0f} s left", flush=True)
