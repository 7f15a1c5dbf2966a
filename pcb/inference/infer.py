"""A trained detector over a split: one pass yields all evaluation variants, as shards of detections, and the confusion matrix.

    infer(study, run, seed)  ->  detections/*.parquet, confusion.npz and, last, detections.json below results/<scale>/runs/<run>/

Everything that costs is done once an image: features, proposals, logits, masks (pcb.inference.forward). An interrupted pass continues
with the shards that are missing; it yields the same bytes as an uninterrupted one.

Calibration by the split's own confusion matrix needs the whole split counted before the first score. Up to `KEEP` bytes, what the
network said of an image is kept in memory meanwhile; on a larger split the network runs twice, for the two runs of the paper that ask.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from torch.utils.data import DataLoader, Dataset, Subset

from pcb.errors import UserError
from pcb.evaluation.shards import BOX, IMAGES_PER_SHARD, SCORE, ShardWriter, plan
from pcb.files import write_json
from pcb.inference.calibrations import Rule, rules
from pcb.inference.forward import Image, by_shape, detect, forward, segment
from pcb.inference.proposal_confusion import Sums, Tally, foreground, match, write_confusion
from pcb.study import Study
from pcb.study.records import require_record
from pcb.study.study import fingerprint
from pcb.study.variants import TRAIN_PART, choice, columns, file_of, sources, train_part
from pcb.training import build, checkpoint

IMAGES_AT_ONCE = 8  # of one shape; mmdet tests with one at a time
KEEP = 2**30


def infer(
    study: Study,
    run: str,
    seed: int,
    split: str = "val",
    images_per_shard: int = IMAGES_PER_SHARD,
    variants: Sequence[str] | None = None,
) -> dict:
    """Detect on `split` with every variant that some table asks of this run, or with those given. Returns the manifest it wrote.

    Where NorCal is among them, the split of `pcb.study.variants.choice` is detected on too: the scorer chooses γ there as well.
    Raises `UserError` where the run is not trained, its checkpoint is missing, damaged or of another class count, or predicts NaN.
    """
    started = time.monotonic()
    torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    record = trained(study, run, seed)
    job = study.eval_job(run, seed) | {"split": split, "checkpoint": record["sha256"]}
    job["variants"] = names = list(variants or job["variants"])
    if split == "val" and "norcal" in names:
        infer(
            study,
            run,
            seed,
            choice(study.scale["datasets"][study.experiments[run].dataset]),
            images_per_shard,
            ["plain", "norcal"],
        )

    network = Network(study, run, split, record)
    parts = plan(network.places, images_per_shard)
    manifest_path = study.paths.detections(run, seed, split)
    writer = ShardWriter(manifest_path.with_suffix(""), fingerprint(job), columns(names))
    matrix_path = study.paths.confusion(run, seed, split)
    tally = network.tally(matrix_path.with_suffix(""))
    missing = [part for part in parts if not (writer.has(part) and tally.has(part))]
    if missing:
        matrices = {}
        if "val" in sources(names):
            matrices["val"] = torch.from_numpy(network.counted(tally, parts, keep=True).matrix)
        if "train" in sources(names):
            path = study.paths.confusion(run, seed, "train")
            training = Network(study, run, "train", record, network.model)
            total = training.counted(
                training.tally(path.with_suffix("")), plan(training.places, images_per_shard)
            )
            write_confusion(path, total)
            training.save_cache()
            matrices["train"] = torch.from_numpy(total.matrix)
        counts = build.index(
            *build.dataset_files(study, study.experiments[run].dataset, "train"),
            study.paths.indices,
        ).image_count
        by_column = rules(network.model, writer.variants, matrices, counts)
        progress = Progress(f"{run} on {split}", sum(map(len, missing)))
        for part in missing:
            sums = None if tally.has(part) else Sums(tally.classes)
            rows = detect_all(network, progress.watch(network.batches(part)), by_column, sums)
            if sums:
                tally.save(part, sums)
            writer.write(part, rows)
        network.save_cache()
    write_confusion(matrix_path, tally.total(parts))
    manifest = {
        "run": run,
        "seed": seed,
        "split": split,
        "fingerprint": study.fingerprint(run, seed),
        "evaluation": writer.fingerprint,
        "variants": names,
        "columns": writer.variants,
        "images": len(network.places),
        "folder": writer.folder.name,
        "shards": writer.finish(parts),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(manifest_path, manifest)
    return manifest


class Network:
    """A trained detector and the images of a split: what it says about each of them."""

    def __init__(
        self, study: Study, run: str, split: str, record: dict, model: torch.nn.Module | None = None
    ):
        self.study, self.run, self.split, self.record = study, run, split, record
        self.data = test_set(study, run, split)
        self.places = {
            self.data.get_data_info(i)["img_id"]: i for i in range(len(self.data))
        }  # image id -> place in the data set
        if split == TRAIN_PART:
            self.places = {i: self.places[i] for i in train_part(self.places)}
        self.kept: dict[int, list[list[Image]]] = {}
        self.kept_bytes = 0
        if model is not None:
            self.model = model

    @cached_property
    def model(self) -> torch.nn.Module:
        model = build.detector(self.study, self.run, self.record["checkpoint"])
        classes, ours = len(self.data.metainfo["classes"]), model.roi_head.bbox_head.num_classes
        if classes != ours:
            raise UserError(
                f"{self.data.ann_file} has {classes} categories, the checkpoint {ours} classes",
                "use the annotation file of the data set that the run was trained on",
            )
        return model

    def batches(self, part: Sequence[int], keep: bool = False) -> Iterator[list[Image]]:
        """The images of a part, in order. With `keep` they stay in memory, if they fit, for the next time that they are asked for."""
        if part[0] in self.kept:
            yield from self.kept.pop(part[0])
            return
        found: list[list[Image]] = []
        items = DataLoader(
            Subset(self.data, [self.places[i] for i in part]),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.study.scale["hardware"]["workers"],
        )
        for batch in by_shape(items, IMAGES_AT_ONCE):
            images = forward(self.model, batch, self.split)
            self.kept_bytes += sum(image.nbytes for image in images) if keep else 0
            found += [images] if keep and self.kept_bytes <= KEEP else []
            yield images
        if sum(map(len, found)) == len(part):
            self.kept[part[0]] = found

    def save_cache(self) -> None:
        """Save the frozen-backbone feature cache for later runs, if the detector has one."""
        save_cache = getattr(self.model, "save_cache", None)
        if save_cache is not None:
            save_cache(self.split)

    def tally(self, folder: Path) -> Tally:
        """Where this network's confusions on this split are counted: they depend on weights and images, not on test settings."""
        dataset = self.study.experiments[self.run].dataset
        made_by = {
            "checkpoint": self.record["sha256"],
            "data": build.dataset_files(self.study, dataset, file_of(self.split)),
        }
        return Tally(folder, fingerprint(made_by), len(self.data.metainfo["classes"]))

    def counted(self, tally: Tally, parts: Sequence[Sequence[int]], keep: bool = False) -> Sums:
        """The confusions of the whole split, counting the parts that are not counted yet."""
        missing = [part for part in parts if not tally.has(part)]
        progress = Progress(f"{self.run}, confusion matrix of {self.split}", sum(map(len, missing)))
        for part in missing:
            sums = Sums(tally.classes)
            for images in progress.watch(self.batches(part, keep)):
                self.count(sums, images)
            tally.save(part, sums)
        return tally.total(parts)

    def count(self, sums: Sums, images: Sequence[Image]) -> None:
        """Add the proposals of images to the sums of the confusion matrix."""
        for image in images:
            instances = self.data.get_data_info(self.places[image.meta["img_id"]])[
                "instances"
            ]  # in pixels of the original image
            if not instances or not image.logits:
                continue
            scale = image.proposals.new_tensor(image.meta["scale_factor"]).repeat(2)
            truth = image.proposals.new_tensor([i["bbox"] for i in instances]) * scale
            labels = torch.tensor([i["bbox_label"] for i in instances], device=truth.device)
            rows, labels = match(image.proposals, truth, labels)
            sums.add(labels, foreground(self.model.roi_head.bbox_head, image.logits[-1][rows]))


def trained(study: Study, run: str, seed: int) -> dict:
    """The record of a finished training, its checkpoint verified.

    Raises:
        UserError: The record is missing or of another configuration, or its checkpoint is missing
            or damaged.
    """
    path, command = study.paths.train(run, seed), f"pcb train {run} --seed {seed}"
    record = require_record(path, study.fingerprint(run, seed), command)
    if not Path(record["checkpoint"]).exists():
        raise UserError(
            f"{record['checkpoint']}, the checkpoint that {path} names, does not exist",
            f"delete {path}, then run `{command}`",
        )
    if checkpoint.sha256(record["checkpoint"]) != record["sha256"]:
        raise checkpoint.damaged(record["checkpoint"])
    return record


def test_set(study: Study, run: str, split: str) -> Dataset:
    """The images of a split through mmdet's test pipeline, with the annotations at hand by `get_data_info`."""
    experiment, split = study.experiments[run], file_of(split)
    if split not in study.scale["datasets"][experiment.dataset]:
        raise UserError(
            f"the scale {study.scale['name']!r} names no split {split!r} for {experiment.dataset}",
            "name one in its YAML",
        )
    annotations, images = build.dataset_files(study, experiment.dataset, split)
    pipeline = build.base(study, experiment.backbone).test_pipeline
    return DATASETS.build(
        {
            "type": "PCBLVISDataset",
            "ann_file": annotations,
            "data_prefix": {"img": images},
            "test_mode": True,
            "pipeline": pipeline,
            "index_cache": str(study.paths.indices),
        }
    )


def _as_it_is(item):
    return item


def detect_all(
    network: Network,
    batches: Iterable[list[Image]],
    rules: dict[str, Rule],
    sums: Sums | None = None,
) -> dict:
    """The columns of one shard; the images are also counted into `sums` if given."""
    found: dict[str, list] = {
        name: []
        for name in (
            "image_id",
            "category_id",
            "box",
            "height",
            "width",
            *(SCORE + c for c in rules),
        )
    }
    rles = []
    for images in batches:
        if sums:
            network.count(sums, images)
        kept = [detect(network.model, image, rules) for image in images]
        for image, mine, (boxes, masks) in zip(
            images, kept, segment(network.model, images, kept), strict=True
        ):
            rles += masks
            found["box"].append(to_xywh(boxes))
            found["category_id"].append(
                mine.labels.cpu().numpy() + 1
            )  # ids are 1..C, labels 0..C-1
            for name, value in zip(
                ("image_id", "height", "width"),
                (image.meta["img_id"], *image.meta["ori_shape"][:2]),
                strict=True,
            ):
                found[name].append(np.full(len(boxes), value))
            for column, scores in mine.scores.items():
                found[SCORE + column].append(scores.cpu().numpy())
    table = {name: np.concatenate(parts) for name, parts in found.items()}
    return table | dict(zip(BOX, table.pop("box").T, strict=True)) | {"rle": rles}


def to_xywh(boxes: torch.Tensor) -> np.ndarray:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).cpu().numpy()


class Progress:
    """A line every few seconds: images done, of how many, and the time left."""

    def __init__(self, title: str, total: int, every: float = 10.0):
        self.title, self.total, self.every, self.done = title, total, every, 0
        self.started = self.said = time.monotonic()

    def watch(self, batches: Iterable[list[Image]]) -> Iterator[list[Image]]:
        for batch in batches:
            yield batch
            self.done += len(batch)
            now = time.monotonic()
            if now - self.said > self.every or self.done == self.total:
                self.said, left = now, (now - self.started) / self.done * (self.total - self.done)
                print(
                    f"{self.title}: {self.done} of {self.total} images, {left:.0f} s left",
                    flush=True,
                )
