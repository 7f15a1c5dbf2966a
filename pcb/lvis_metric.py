"""`type="PCBLVISMetric"`: LVIS's AP in MMDetection, on hotcoco instead of lvis-api.

MMDetection's `LVISMetric` fails with numpy 1.24 or newer, after a whole training, and keeps every
detection of the validation set as Python objects. This one checks what it needs when it is built,
matches each batch at once, and keeps matches only. Several ranks each match their own images;
MMEngine gathers what they kept.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_text
from mmengine.logging import MMLogger

from pcb.average_precision import MAX_DETECTIONS, scored, summarize
from pcb.errors import UserError, require_choice
from pcb.formatting import counted
from pcb.frequency import GROUPS, group

MMDET_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class PCBLVISMetric(BaseMetric):
    """AP by LVIS's rules, equal to lvis-api's.

    The metrics have MMDetection's names and range: `lvis/segm_AP`, `lvis/bbox_APr`, 0 to 1, and -1
    where a group has no class with ground truth. Images of the annotation file that were not
    detected on are left out, with a warning.

    Args:
        ann_file: Annotation file in LVIS's format.
        metric: `bbox`, `segm` or both.
        classwise: Return and log the AP of each class too, as `segm_AP/<class>`.
        collect_device: See MMEngine's `BaseMetric`.
        prefix: See MMEngine's `BaseMetric`; default `lvis`.
        backend_args: Of MMEngine's file backend, from which `ann_file` is read.

    Raises:
        UserError: `metric` names none or another one, hotcoco is missing, the file is missing or
            not in LVIS's format, or its classes are not those of the data set.
    """

    default_prefix = "lvis"

    def __init__(
        self,
        ann_file: str,
        metric: str | Sequence[str] = "bbox",
        classwise: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
        backend_args: dict | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.kinds = [metric] if isinstance(metric, str) else list(metric)
        for kind in self.kinds:
            require_choice("metric", kind, ("bbox", "segm"))
        if not self.kinds:
            raise UserError(
                f"metric={metric!r} asks for no metric", "choose 'bbox', 'segm' or both in a list"
            )
        self.ann_file, self.classwise = str(ann_file), classwise
        self.streaming_eval = _streaming_eval()
        self.all_categories, self.images, self.annotations = read_lvis(
            self.ann_file, "segm" in self.kinds, backend_args
        )
        self.categories = self.all_categories
        # hotcoco takes ids as floats, which not every id fits into. Their order decides between
        # equal scores, in lvis-api too.
        self.number = {image_id: k for k, image_id in enumerate(sorted(self.images))}
        self.streams: dict[str, Any] = {}
        self.seen: set[int] = set()

    @property
    def dataset_meta(self) -> dict | None:
        """Meta information of the data set, with its `classes`; set before the training."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict | None) -> None:
        self._dataset_meta = meta
        self.categories = of_dataset(self.all_categories, meta, self.ann_file)

    def start(self) -> None:
        """Begin a pass over the images: one stream of matches for boxes, one for masks."""
        self.category_ids = np.array([c["id"] for c in self.categories])
        self.known = set(self.category_ids.tolist())
        self.streams = {
            kind: self.streaming_eval(self.categories, kind, lvis_style=True) for kind in self.kinds
        }
        self.seen = set()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Match the detections of a batch with the ground truth.

        Args:
            data_batch: Not used.
            data_samples: Each has `img_id` and `pred_instances` with `bboxes` (n, 4: x1, y1, x2,
                y2), `scores` (n,), `labels` (n,) and, for masks, `masks` (n, height, width) or n
                RLEs, all in the original image; `mask_scores` (n,) replaces `scores` for masks.
        """
        if not self.streams:
            self.start()
        for sample in data_samples:
            image_id = int(sample["img_id"])
            if image_id not in self.images:
                raise UserError(
                    f"{self.ann_file} has no image {image_id}, which was detected on",
                    "give the evaluator and the data set of the dataloader the same ann_file",
                )
            self.seen.add(image_id)
            for kind, stream in self.streams.items():
                self.update(stream, kind, image_id, sample["pred_instances"])

    def update(self, stream: Any, kind: str, image_id: int, found: dict) -> None:
        """Match one image's detections by boxes or by masks."""
        image = self.images[image_id]
        number = self.number[image_id]
        annotations = [
            {**a, "image_id": number}
            for a in self.annotations[image_id]
            if a["category_id"] in self.known
        ]
        image = {
            **image,
            "id": number,
            "neg_category_ids": [c for c in image["neg_category_ids"] if c in self.known],
        }
        use_mask_scores = kind == "segm" and "mask_scores" in found
        scores = as_array(found["mask_scores" if use_mask_scores else "scores"])
        categories = self.category_ids[as_array(found["labels"]).astype(int)]
        # LVIS counts the best 300 of an image, and of these the ones of a class that it has or is
        # known not to have. The others change nothing; their masks need not be encoded.
        best = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
        judged = {a["category_id"] for a in annotations}.union(image["neg_category_ids"])
        rows = np.sort(best[np.isin(categories[best], list(judged))])
        boxes = as_array(found["bboxes"])[rows].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        ids = np.full(len(rows), number)
        table = np.column_stack([ids, boxes, scores[rows], categories[rows]]).astype(np.float64)
        masks = rle(found["masks"], rows) if kind == "segm" else None
        stream.update([image], annotations, table, segmentation=masks)

    def evaluate(self, size: int) -> dict:
        """Gather the matches of all ranks and compute the metrics; a collective.

        Args:
            size: Images of the data set; not used, since an image that two ranks saw counts once.

        Returns:
            The metrics, each with the prefix.
        """
        if not self.streams:  # a rank without an image
            self.start()
        self.results = [(self.streams, self.seen)]
        self.streams = {}
        return super().evaluate(size=get_world_size())

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics from what each rank kept; see `BaseMetric.compute_metrics`."""
        logger: MMLogger = MMLogger.get_current_instance()
        seen = set().union(*(images for _, images in results))
        if missing := len(self.images) - len(seen):
            logger.warning(
                f"{missing} of {len(self.images)} images of {self.ann_file} were not detected on; "
                "the metrics are of the others"
            )
        out: dict[str, float] = {}
        for kind in self.kinds:
            streams = [of_rank[kind] for of_rank, _ in results]
            stream = streams[0] if len(streams) == 1 else self.streaming_eval.merge(streams)
            evaluation = stream.finalize()
            evaluation.accumulate()
            metrics = summarize(evaluation, self.categories)
            per_class = metrics.pop("classes")
            out.update({f"{kind}_{name}": fraction(metrics[name]) for name in MMDET_METRICS})
            if self.classwise:
                by_class = {c["name"]: fraction(per_class[c["id"]]) for c in self.categories}
                out.update({f"{kind}_AP/{name}": ap for name, ap in by_class.items()})
                lines = (f"{name}: {ap:.3f}" for name, ap in by_class.items())
                logger.info(f"{kind} AP of each class: {', '.join(lines)}")
            logger.info(self.summary(kind, metrics, per_class))
        return out

    def summary(self, kind: str, metrics: dict, per_class: dict[int, float | None]) -> str:
        """Describe the metrics of boxes or masks in a line, with the classes of each group."""
        with_truth = [c["frequency"] for c in self.categories if per_class[c["id"]] is not None]
        groups = (
            f"AP{g} {fraction(metrics[f'AP{g}']):.3f} "
            f"({counted(with_truth.count(g), 'class', 'classes')})"
            for g in GROUPS
        )
        return f"{kind} AP {fraction(metrics['AP']):.3f}, {', '.join(groups)}"


def _streaming_eval() -> Any:
    """Return hotcoco's `StreamingEval`."""
    fix = "install it: pip install 'hotcoco>=1.3'"
    try:
        import hotcoco
    except ImportError as error:
        raise UserError("PCBLVISMetric needs hotcoco, which is not installed", fix) from error
    if not hasattr(getattr(hotcoco, "StreamingEval", None), "merge"):
        raise UserError(f"PCBLVISMetric needs hotcoco 1.3 or newer, not {hotcoco.__version__}", fix)
    return hotcoco.StreamingEval


def read_lvis(
    path: str, masks: bool, backend_args: dict | None = None
) -> tuple[list[dict], dict[int, dict], dict[int, list[dict]]]:
    """Read an annotation file in LVIS's format.

    Args:
        path: The file.
        masks: Whether masks are needed; without, they are left out to save memory.
        backend_args: Of MMEngine's file backend.

    Returns:
        Categories, each with `frequency`, in the order of the file, which is that of MMDetection's
        labels; images by id; annotations by image id.

    Raises:
        UserError: The file is missing or not in LVIS's format.
    """
    fix = "give ann_file LVIS's annotation file of the split that is validated on"
    try:
        text = get_text(path, backend_args=backend_args)
        content = json.loads(text, parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}", fix) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise UserError(f"{path} lacks one of the lists {', '.join(keys)}", fix)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if lacking := [image.get("id") for image in content["images"] if key not in image]:
            raise UserError(
                f"{path} is not in LVIS's format: image {lacking[0]} has no {key}",
                f"{fix}; files in COCO's format are evaluated by MMDetection's CocoMetric",
            )
    # lvis-api takes a crowd as an object like others, hotcoco by COCO's rule.
    left_out = {"iscrowd"} if masks else {"iscrowd", "segmentation"}
    annotations: dict[int, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        if masks and not annotation.get("segmentation"):
            raise UserError(
                f"{path}: annotation {annotation.get('id')} has no mask", "use metric='bbox'"
            )
        kept = {k: v for k, v in annotation.items() if k not in left_out}
        annotations[annotation["image_id"]].append(scored(kept))
    categories = [{**c, "frequency": frequency(c, path)} for c in content["categories"]]
    return categories, {image["id"]: image for image in content["images"]}, annotations


def _refuse_constant(word: str) -> None:
    """Refuse NaN and Infinity, with which AP would be computed, of nothing that overlaps."""
    raise ValueError(f"not valid JSON: it holds {word}")


def frequency(category: dict, path: str) -> str:
    """Return the group of a category: its `frequency`, else from its `image_count`."""
    if category.get("frequency") in tuple(GROUPS):
        return category["frequency"]
    if isinstance(category.get("image_count"), int):
        return group(category["image_count"])
    raise UserError(
        f"{path}: category {category.get('name')!r} has no frequency r, c or f, and no image_count",
        "add one of them to each category: APr, APc and APf are means over these groups",
    )


def of_dataset(categories: list[dict], dataset_meta: dict | None, path: str) -> list[dict]:
    """Return the categories of the data set's classes, in the order of labels.

    Raises:
        UserError: The data set has classes that the file lacks.
    """
    classes = (dataset_meta or {}).get("classes")
    if not classes or len(classes) == len(categories):
        return categories  # MMDetection's labels are places in the file, under any names
    chosen = [c for c in categories if c["name"] in set(classes)]
    if len(chosen) != len(classes):
        raise UserError(
            f"the data set has {counted(len(classes), 'class', 'classes')}, of which {path} has "
            f"{len(chosen)}",
            "give metainfo=dict(classes=...) of the dataloader's data set names of the file",
        )
    return chosen


def rle(masks: Any, rows: np.ndarray) -> list[dict]:
    """Return the masks of some rows as COCO's RLEs."""
    if isinstance(masks, (list, tuple)):
        return [masks[row] for row in rows]
    return encode_mask_results(as_array(masks[rows])) if len(rows) else []


def as_array(values: Any) -> np.ndarray:
    """Return a tensor or an array as an array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def fraction(points: float | None) -> float:
    """Return points (0-100) as lvis-api has them: 0 to 1, -1 for none."""
    return -1.0 if points is None else points / 100
