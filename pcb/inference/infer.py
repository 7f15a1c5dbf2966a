"""Inference: a trained detector over a split, one pass for all evaluation variants.

    infer(study, run, seed)            detections/*.parquet, confusion.npz, on val
                                       confusion-images.npz, then detections.json
    train_confusion(study, run, seed)  confusion-train.npz

Features, proposals, logits and masks are computed once an image (pcb.inference.forward). An
interrupted pass resumes with the shards that are missing and yields the same bytes.

Calibration by the split's own confusion matrix needs the whole split counted before the first
score. Meanwhile the network's outputs stay in memory, up to `CACHE_BYTES`; on a larger split the
network runs twice.

Several ranks share out the missing shards; the first one writes the rest. The files are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import DATASETS
from mmengine.dist import barrier, get_dist_info, get_world_size, is_main_process
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from pcb.data.lvis.dataset import PCBLVISDataset
from pcb.errors import UserError
from pcb.evaluation.ahead import discard, files_of, splits_ahead
from pcb.evaluation.shards import BOX, IMAGES_PER_SHARD, SCORE, ShardWriter, plan_shards
from pcb.inference.calibrations import ScoreFunction, score_functions
from pcb.inference.forward import (
    Image,
    Selection,
    by_shape,
    detect,
    forward,
    original_boxes,
    segment,
)
from pcb.inference.multi_variant_nms import Limits
from pcb.inference.proposal_confusion import (
    ConfusionShards,
    ConfusionSums,
    foreground,
    load_matrix,
    match,
    write_confusion,
    write_confusion_images,
)
from pcb.study import Study
from pcb.study.current import checkpoint_of, weights_of
from pcb.study.records import require_record, write_record
from pcb.study.study import fingerprint
from pcb.study.variants import (
    TRAIN_SUBSET,
    annotation_split,
    confusion_splits,
    detected_variants,
    score_columns,
    train_subset,
)
from pcb.training import build, checkpoint
from pcb.training.runner import release_memory

BATCH = 8  # images of one shape; mmdet tests with one at a time
CACHE_BYTES = 2**30


def infer(
    study: Study,
    run: str,
    seed: int,
    split: str = "val",
    images_per_shard: int = IMAGES_PER_SHARD,
    variants: Sequence[str] | None = None,
    ahead: bool = False,
) -> dict:
    """Detect on a split with several evaluation variants.

    Args:
        study: The study.
        run: Experiment.
        seed: Seed of the training.
        split: `val`, `dev` or `train-subset`.
        images_per_shard: Images of one file of detections.
        variants: Default: all that the tables need of this run; on the second split on which
            NorCal's γ is chosen, `plain` and `norcal`.
        ahead: Leave the results for the job of this detection (`pcb.evaluation.ahead`).

    Returns:
        The manifest, which it also writes to `study.paths.detections(run, seed, split)`; {} on a
        rank other than the first.

    Raises:
        UserError: The run is not trained, its checkpoint is missing, damaged, of another number of
            classes or diverged; or the confusion matrix that `cm-train` needs is missing.
    """
    started = time.monotonic()
    set_threads(study)
    record = trained(study, run, seed)
    names = list(variants or detected_variants(study, run, split))
    job = study.eval_job(run, seed, split)
    job |= {"checkpoint": weights_of(record), "variants": names}

    detector = SplitDetector(study, run, split, record)
    shards = plan_shards(detector.index, images_per_shard)
    manifest_path = study.paths.detections(run, seed, split)
    writer = ShardWriter(manifest_path.with_suffix(""), fingerprint(job), score_columns(names))
    confusion_path = study.paths.confusion(run, seed, split)
    confusions = detector.confusion_shards(confusion_path.with_suffix(""))
    test = study.scale["test"]
    keep = Limits(test["keep_score_thr"], test["keep_per_image"]) if split == "val" else None
    missing = [ids for ids in shards if not (writer.has(ids) and confusions.has(ids))]
    barrier()  # no rank may find what another has just written
    if missing:
        matrices = {}
        if "train" in confusion_splits(names):
            matrices["train"] = train_matrix(study, run, seed, record)
        if "val" in confusion_splits(names):
            total = detector.count_split(confusions, shards, keep=True)
            matrices["val"] = torch.from_numpy(total.matrix)
        train_files = build.dataset_files(study, study.experiments[run].dataset, "train")
        train_images = build.index(*train_files, study.paths.indices).image_count
        functions = score_functions(detector.model, writer.columns, matrices, train_images)
        mine = share(missing)
        with progress_bar(f"{run} on {split}", mine) as bar:
            for ids in mine:
                sums = None if confusions.has(ids) else ConfusionSums(confusions.classes)
                batches = watched(detector.batches(ids), bar)
                columns = detect_shard(detector, batches, functions, sums, keep)
                if sums:
                    confusions.save(ids, sums)
                writer.write(ids, columns)
        detector.save_cache()
    barrier()
    if not is_main_process():
        return {}
    if not missing and not ahead:
        print(f"kept: {run} was detected before on {split}, in {writer.folder}", flush=True)
    total = confusions.total(shards)
    written = files_of(study, run, seed, split)
    if ahead:
        written = [study.paths.ahead(path) for path in written]
    manifest = {
        "run": run,
        "seed": seed,
        "split": split,
        "fingerprint": study.fingerprint(run, seed),
        "evaluation": study.evaluation(run, seed, split),
        "checkpoint": weights_of(record),
        "variants": names,
        "columns": writer.columns,
        "limits": {"score_thr": test["score_thr"], "per_image": test["max_per_image"]},
        "images": len(detector.index),
        "folder": writer.folder.name,
        "shards": writer.finish(shards),
        "confusion": write_confusion(written[1], total, weights_of(record)),
        "confusion_images": write_confusion_images(written[2], total) if split == "val" else None,
        "seconds": round(time.monotonic() - started, 1),
        "processes": get_world_size(),
    }
    write_record(written[0], manifest)
    if not ahead:
        discard(study, run, seed, split)
    return manifest


def infer_ahead(study: Study, run: str, seed: int) -> None:
    """Detect what a training's tables need, in the training's process (`pcb.evaluation.ahead`).

    Not on a GPU, where a training takes hours and the start of a process seconds. An error is
    printed only: the training is done, and the job of the detection meets the error again.
    """
    if study.scale["hardware"]["device"] != "cpu" or get_world_size() > 1:
        return
    release_memory()
    try:
        for split in splits_ahead(study, run, seed):
            infer(study, run, seed, split, ahead=True)
    except Exception as error:
        reason = error.what if isinstance(error, UserError) else repr(error)
        print(f"not detected, which is left to `pcb infer {run} --seed {seed}`: {reason}")


def train_confusion(
    study: Study, run: str, seed: int, images_per_shard: int = IMAGES_PER_SHARD
) -> Path:
    """Measure the confusion matrix of the training images in test mode, for `cm-train`.

    Returns:
        `study.paths.confusion(run, seed, "train")`, which it writes, in float64: a calibration
        computes with it.

    Raises:
        UserError: As for `infer`.
    """
    set_threads(study)
    record = trained(study, run, seed)
    path = study.paths.confusion(run, seed, "train")
    detector = SplitDetector(study, run, "train", record)
    shards = plan_shards(detector.index, images_per_shard)
    total = detector.count_split(detector.confusion_shards(path.with_suffix("")), shards)
    if is_main_process():
        written = {
            "fingerprint": study.fingerprint(run, seed),
            "evaluation": study.evaluation(run, seed, "train"),
            "checkpoint": weights_of(record),
            "sha256": write_confusion(path, total, weights_of(record), np.float64),
        }
        write_record(study.paths.train_confusion_record(run, seed), written)
    detector.save_cache()
    return path


def set_threads(study: Study) -> None:
    """Let torch use this process's share of the job's threads."""
    threads = study.scale["hardware"]["threads_per_job"]
    torch.set_num_threads(max(1, threads // get_world_size()))


def share(shards: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """The shards of this rank among those that all ranks list alike."""
    rank, world = get_dist_info()
    return shards[rank::world]


def train_matrix(study: Study, run: str, seed: int, record: dict) -> torch.Tensor:
    """(C, C) float64, what `train_confusion` measured of the training in `record`."""
    path, command = study.paths.confusion(run, seed, "train"), f"pcb confusion {run} --seed {seed}"
    written = study.paths.train_confusion_record(run, seed)
    measured = require_record(written, study.fingerprint(run, seed), command)
    if measured["evaluation"] != study.evaluation(run, seed, "train"):
        raise UserError(f"{path} is of another evaluation", f"run `{command}` again")
    return load_matrix(path, weights_of(record), command, measured.get("sha256"))


class SplitDetector:
    """A trained detector and the images of a split.

    Attributes:
        dataset: The images through mmdet's test pipeline, with annotations by `get_data_info`.
        index: Image id -> position in `dataset`, of the images of the split.
        model: The detector, built when it is first used.
    """

    def __init__(
        self,
        study: Study,
        run: str,
        split: str,
        record: dict,
        model: TwoStageDetector | None = None,
    ):
        """`record` is the training's run.json; `model` its detector, if that exists already."""
        self.study, self.run, self.split, self.record = study, run, split, record
        self.dataset = test_set(study, run, split)
        ids = (self.dataset.get_data_info(i)["img_id"] for i in range(len(self.dataset)))
        self.index: dict[int, int] = {image: i for i, image in enumerate(ids)}
        if split == TRAIN_SUBSET:
            self.index = {image: self.index[image] for image in train_subset(self.index)}
        self._cache: dict[int, list[list[Image]]] = {}  # first image of a shard -> its batches
        self._cached_bytes = 0
        if model is not None:
            self.model = model

    @cached_property
    def model(self) -> TwoStageDetector:
        """The detector with its final weights. Raises `UserError` for another number of classes."""
        model = build.detector(self.study, self.run, self.record["checkpoint"])
        assert isinstance(model, TwoStageDetector)
        classes, predicted = self.classes, model.roi_head.bbox_head.num_classes
        if classes != predicted:
            raise UserError(
                f"{self.dataset.ann_file} has {classes} categories, the checkpoint {predicted}",
                "use the annotation file of the data set that the run was trained on",
            )
        return model

    @property
    def classes(self) -> int:
        """C, the number of classes of the data set."""
        return len(self.dataset.metainfo["classes"])

    def batches(self, image_ids: Sequence[int], keep: bool = False) -> Iterator[list[Image]]:
        """Run the network over the images of a shard, in order.

        Args:
            image_ids: Ids of the shard's images.
            keep: Keep the outputs in memory, if they fit, for the next call with this shard.
        """
        if image_ids[0] in self._cache:
            yield from self._cache.pop(image_ids[0])
            return
        cached: list[list[Image]] = []
        items = DataLoader(
            Subset(self.dataset, [self.index[i] for i in image_ids]),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.study.scale["hardware"]["workers"],
        )
        for batch in by_shape(items, BATCH):
            images = forward(self.model, batch, self.split)
            if keep:
                self._cached_bytes += sum(image.nbytes for image in images)
                if self._cached_bytes <= CACHE_BYTES:
                    cached.append(images)
            yield images
        if sum(map(len, cached)) == len(image_ids):
            self._cache[image_ids[0]] = cached

    def save_cache(self) -> None:
        """Save the frozen-backbone feature cache for later runs, if the detector has one."""
        save_cache = getattr(self.model, "save_cache", None)
        if save_cache is not None and is_main_process():
            save_cache(self.split)

    def confusion_shards(self, folder: Path) -> ConfusionShards:
        """The sums in `folder`, which depend on weights and images, not on test settings."""
        experiment = self.study.experiments[self.run]
        source = {
            "checkpoint": weights_of(self.record),
            "data": self.study.split_job(experiment.dataset, annotation_split(self.split)),
            "detector": self.study.contents.detector(experiment.backbone, training=False),
        }
        if self.split == "val":
            source["by_image"] = True
        return ConfusionShards(folder, fingerprint(source), self.classes)

    def count_split(
        self, confusions: ConfusionShards, shards: Sequence[Sequence[int]], keep: bool = False
    ) -> ConfusionSums:
        """Sum the confusions of the whole split, and count the shards that are not counted yet.

        A collective: every rank must call it, and counts its share.
        """
        missing = [ids for ids in shards if not confusions.has(ids)]
        barrier()
        mine = share(missing)
        with progress_bar(f"{self.run}, confusion matrix of {self.split}", mine) as bar:
            for ids in mine:
                sums = ConfusionSums(confusions.classes)
                for images in watched(self.batches(ids, keep), bar):
                    self.count(sums, images)
                confusions.save(ids, sums)
        barrier()
        return confusions.total(shards)

    def count(self, sums: ConfusionSums, images: Sequence[Image]) -> None:
        """Add the proposals of images to the sums of the confusion matrix."""
        for image in images:
            sums.add(*self.matched(image), image.meta["img_id"] if self.split == "val" else None)

    def masks(self, images: list[Image], selections: list[Selection]) -> list[list[bytes | None]]:
        """The masks of what is selected of each image, as compressed COCO counts.

        A detection beyond the scored limits gets a mask only where the image has an object of its
        class: any other matches nothing, so its mask decides nothing. That keeps looser limits
        cheap. Masks within the limits are computed first, in the batches they would have alone.
        """
        beyond = []
        for image, selection in zip(images, selections, strict=True):
            present = self.dataset.all_labels_of(self.index[image.meta["img_id"]])
            labels = selection.labels
            beyond.append(~selection.scored & torch.isin(labels, labels.new_tensor(present)))
        rles: list[list[bytes | None]] = [[None] * len(s.labels) for s in selections]
        for wanted in ([s.scored for s in selections], beyond):
            if not any(mask.any() for mask in wanted):
                continue
            chosen = [s.where(mask) for s, mask in zip(selections, wanted, strict=True)]
            of_chosen = segment(self.model, images, chosen)
            for of_image, mask, (_, counts) in zip(rles, wanted, of_chosen, strict=True):
                for row, rle in zip(mask.nonzero().flatten().tolist(), counts, strict=True):
                    of_image[row] = rle
        return rles

    def matched(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """The n proposals of an image that match an object: classes (n,) and p̂ (n, C) float64."""
        info = self.dataset.get_data_info(self.index[image.meta["img_id"]])
        instances = info["instances"]  # boxes in pixels of the original image
        if not instances or not image.logits:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.classes)
        scale = image.proposals.new_tensor(image.meta["scale_factor"]).repeat(2)
        boxes = image.proposals.new_tensor([i["bbox"] for i in instances]) * scale
        labels = torch.tensor([i["bbox_label"] for i in instances], device=boxes.device)
        rows, labels = match(image.proposals, boxes, labels)
        return labels, foreground(self.model.roi_head.bbox_head, image.logits[-1][rows])


def trained(study: Study, run: str, seed: int) -> dict:
    """The record of a finished training, its checkpoint verified.

    Raises:
        UserError: The record is missing or of another configuration, or its checkpoint is missing
            or damaged.
    """
    path, command = study.paths.train(run, seed), f"pcb train {run} --seed {seed}"
    record = require_record(path, study.fingerprint(run, seed), command)
    record["checkpoint"] = str(checkpoint_of(study, record))
    if not Path(record["checkpoint"]).exists():
        raise UserError(
            f"{record['checkpoint']}, the checkpoint that {path} names, does not exist",
            f"run `{command}` again",
        )
    if checkpoint.sha256(record["checkpoint"]) != record["sha256"]:
        fix = f"run `{command}` again: it repeats what led to that checkpoint"
        raise checkpoint.damaged(record["checkpoint"], fix)
    return record


def test_set(study: Study, run: str, split: str) -> PCBLVISDataset:
    """The images behind a split as mmdet's data set, with its test pipeline."""
    experiment, name = study.experiments[run], annotation_split(split)
    if name not in study.scale["datasets"][experiment.dataset]:
        raise UserError(
            f"the scale {study.scale['name']!r} has no split {name!r} of {experiment.dataset}",
            "name its annotation file in the scale's YAML file",
        )
    annotations, images = build.dataset_files(study, experiment.dataset, name)
    dataset = DATASETS.build(
        {
            "type": "PCBLVISDataset",
            "ann_file": annotations,
            "data_prefix": {"img": images},
            "test_mode": True,
            "pipeline": build.base_config(study, experiment.backbone).test_pipeline,
            "index_cache": str(study.paths.indices),
        }
    )
    assert isinstance(dataset, PCBLVISDataset)
    return dataset


def _unchanged(item):
    return item


def detect_shard(
    detector: SplitDetector,
    batches: Iterable[list[Image]],
    functions: Mapping[str, ScoreFunction],
    sums: ConfusionSums | None = None,
    keep: Limits | None = None,
) -> dict[str, np.ndarray | list]:
    """Detect on the images of one shard.

    Args:
        detector: The detector.
        batches: The network's outputs for the images.
        functions: The score function of each column.
        sums: Sums to which the images are added for the confusion matrix, if any.
        keep: Limits of the detections that are kept; None: those that are scored.

    Returns:
        The columns of the shard (`pcb.evaluation.shards`), one row for each detection.
    """

    def select(image: Image) -> Selection:
        if sums:
            detector.count(sums, [image])
        return detect(detector.model, image, functions, keep)

    return shard_columns(detector, batches, list(functions), select)


def shard_columns(
    detector: SplitDetector,
    batches: Iterable[list[Image]],
    scores: Iterable[str],
    select: Callable[[Image], Selection],
) -> dict[str, np.ndarray | list]:
    """The columns of a shard of what `select` selects of each image.

    Args:
        detector: The detector.
        batches: The network's outputs for the images.
        scores: The columns of scores of every selection.
        select: Detects on one image.
    """
    names = ("image_id", "category_id", "box", "height", "width", *(SCORE + c for c in scores))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    rles: list[bytes | None] = []
    for images in batches:
        selections = [select(image) for image in images]
        masks = detector.masks(images, selections)
        for image, selection, counts in zip(images, selections, masks, strict=True):
            rles += counts
            boxes = original_boxes(image, selection)
            height, width = image.meta["ori_shape"][:2]
            parts["image_id"].append(np.full(len(boxes), image.meta["img_id"]))
            parts["height"].append(np.full(len(boxes), height))
            parts["width"].append(np.full(len(boxes), width))
            parts["box"].append(to_xywh(boxes))
            # Category ids are 1 … C, labels 0 … C-1.
            parts["category_id"].append(selection.labels.cpu().numpy() + 1)
            for column, values in selection.scores.items():
                parts[SCORE + column].append(values.cpu().numpy())
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    boxes = columns.pop("box")
    return columns | dict(zip(BOX, boxes.T, strict=True)) | {"rle": rles}


def to_xywh(boxes: torch.Tensor) -> np.ndarray:
    """(k, 4) boxes x1, y1, x2, y2 -> (k, 4) x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).cpu().numpy()


def progress_bar(title: str, shards: Iterable[Sequence[int]]) -> tqdm:
    """Progress over the images of shards: a line every ten seconds, also in a log file.

    tqdm ends an update with a carriage return, which text files read as the end of a line, so the
    last line of a log is the last update (`pcb status` prints it).
    """
    total = sum(map(len, shards))
    return tqdm(
        total=total,
        desc=title,
        disable=not total,
        mininterval=10,
        bar_format="{desc}: {n_fmt} of {total_fmt} images, {remaining} left",
    )


def watched(batches: Iterable[list[Image]], bar: tqdm) -> Iterator[list[Image]]:
    """The same batches; the bar advances when one has been used."""
    for batch in batches:
        yield batch
        bar.update(len(batch))
