"""`LVISIndex`: one annotation file in LVIS's or COCO's format, checked and counted.

    index = LVISIndex("lvis_v1_train.json", "data/coco", cache="results/lvis/data/index")
    index.classes, index.image_count, index.labels, index.missing_images, index.objects(0)

With `cache`, the first process reads the file into an Arrow file that every process maps into
memory: all ranks and workers of a machine share the same pages. A record beside it holds its digest
and that of the annotations; a file that does not match is made again. Without `cache`, the same
arrays are in the memory of this process.

Label `k` (0..C-1) is the category with id `k + 1` everywhere in this package; the file's ids are
`original_ids`. A *row* is an image's position in the file. Needs neither `lvis` nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pcb.data.lvis.annotations import (
    BATCH_IMAGES,
    CROWD,
    EXPECTED,
    IGNORED,
    IMAGE_FIELDS,
    MASKS_FIX,
    SCHEMA,
    AnnotationFile,
    read_annotation_file,
    record_batches,
)
from pcb.data.lvis.releases import RELEASES, version_by_classes
from pcb.data.lvis.segmentation import NO_POLYGON, NO_SEGMENTATION
from pcb.errors import UserError
from pcb.files import atomic, locked, sha256
from pcb.formatting import examples
from pcb.frequency import THRESHOLDS, group
from pcb.study.records import read_record, write_record

SUBFOLDERS = ("train2017", "val2017", "", "train2014", "val2014")
# COCO's own file names, whose number is that of the picture in every folder and release of COCO.
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)2014_)?(\d{12}\.jpg)")
CACHE_FORMAT = 5  # caches of another format are remade
METADATA_KEY = b"pcb"  # of the Arrow schema


class Objects(NamedTuple):
    """The n annotations of one image, in the file's order: read-only views of the index.

    Attributes:
        id: (n,) int64.
        category_id: (n,) int32, 1..C.
        bbox: (n, 4) float64: x, y, width, height in pixels.
        area: (n,) float64, in pixels.
        usable: (n,) bool: whether training uses it, where it uses the image.
        iscrowd: (n,) bool.
        ignore: (n,) bool.
        segmentation: For each annotation its polygons, (2k,) float64 x0, y0, x1, … each, or a
            run-length encoding.
    """

    id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    usable: np.ndarray
    iscrowd: np.ndarray
    ignore: np.ndarray
    segmentation: list[list[np.ndarray] | dict]


class LVISIndex:
    """A checked annotation file.

    Args:
        annotations: The annotation file.
        images: Image folder, flat or with COCO's subfolders.
        cache: Folder for the Arrow file that processes share; None: keep everything in memory.

    Attributes:
        categories: Entries of the file, sorted by id, with the ids 1..C: position = id - 1 = label.
        original_ids: The ids that they have in the file.
        annotation_count: Number of annotations, usable or not.
        image_count: For each class, number of images with a usable annotation.
        instance_count: For each class, number of usable annotations.
        info: The file's `info`.
        sha256: Digest of the file.
        unusable: Annotations that training cannot use: reason -> their number and the ids of the
            first few.

    Raises:
        UserError: The file is missing or damaged, lacks keys, or has impossible values or dangling
            references.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        cache: str | Path | None = None,
    ):
        self.path = Path(annotations)
        self.folder = Path(images) if images is not None else None
        self.cache = Path(cache) if cache is not None else None
        if self.cache is None:
            content = read_annotation_file(self.path)
            summary, batches = _summary(content), list(record_batches(content))
        else:
            summary, batches = _open_cached(self.path, self.cache)
        self._batches: list[pa.RecordBatch] = batches
        self._views: dict[int, _BatchView] = {}
        self.info: dict = summary["info"]
        self.categories: list[dict] = summary["categories"]
        self.original_ids: list[int] = summary["original_ids"]
        self.annotation_count: int = summary["annotation_count"]
        self.image_count: list[int] = summary["image_count"]
        self.instance_count: list[int] = summary["instance_count"]
        self.sha256: str = summary["sha256"]
        self.unusable: dict[str, list[int]] = summary["unusable"]

    def __reduce__(self):
        # Another process maps the cache itself.
        return LVISIndex, (self.path, self.folder, self.cache)

    def __len__(self) -> int:
        return len(self.ids)

    def _column(self, name: str) -> pa.ChunkedArray:
        chunks = [batch.column(name) for batch in self._batches]
        return pa.chunked_array(chunks, SCHEMA.field(name).type)

    @cached_property
    def ids(self) -> np.ndarray:
        """(images,) int64 image ids, in the file's order."""
        return self._column("id").to_numpy()

    @cached_property
    def sizes(self) -> np.ndarray:
        """(images, 2) int32 height and width of every image, in pixels."""
        return np.stack([self._column("height").to_numpy(), self._column("width").to_numpy()], 1)

    @property
    def has_usable(self) -> np.ndarray:
        """(images,) bool: whether an image has a usable annotation."""
        counts = [np.diff(batch.column("labels").offsets) for batch in self._batches]
        return np.concatenate([np.zeros(0), *counts]) > 0

    @cached_property
    def labels(self) -> list[tuple[int, ...]]:
        """Sorted distinct labels of every image's usable annotations."""
        return list(map(tuple, self._column("labels").to_pylist()))

    def listed_categories(self, key: str) -> list[list[int]]:
        """Return a list of category ids of every image.

        Args:
            key: `neg_category_ids` or `not_exhaustive_category_ids`.
        """
        return [ids or [] for ids in self._column(key).to_pylist()]

    def labels_of(self, row: int) -> list[int]:
        """Return the sorted distinct labels of one image."""
        return self._view(row).labels(row % BATCH_IMAGES).tolist()

    def objects(self, row: int) -> Objects:
        """Return all annotations of one image."""
        return self._view(row).objects(row % BATCH_IMAGES)

    def boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all n annotations of the file, image by image.

        Returns:
            (n, 4) float64 x, y, width and height; (n,) int64 ids; (n, 2) int32 width and height of
            the image of each.
        """
        views = [_BatchView(batch) for batch in self._batches]
        counts = [np.diff(view.image_offsets) for view in views]
        return (
            np.concatenate([np.zeros((0, 4)), *(view.bbox for view in views)]),
            np.concatenate([np.zeros(0, np.int64), *(view.scalars[0] for view in views)]),
            np.repeat(self.sizes[:, ::-1], np.concatenate([np.zeros(0, int), *counts]), axis=0),
        )

    def _view(self, row: int) -> _BatchView:
        number = row // BATCH_IMAGES
        if number not in self._views:
            self._views[number] = _BatchView(self._batches[number])
        return self._views[number]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return tuple(category["name"] for category in self.categories)

    @cached_property
    def version(self) -> str:
        """'v0.5' or 'v1.0': by the number of classes, else by whether images have file names."""
        has_names = self._column("file_name").null_count < len(self)
        return version_by_classes(len(self.categories)) or ("v0.5" if has_names else "v1.0")

    @property
    def is_released(self) -> bool:
        """Whether classes, images and annotations are as many as in a file of an LVIS release."""
        version = version_by_classes(len(self.categories))
        sizes = RELEASES[version].sizes.values() if version else ()
        return (len(self), self.annotation_count) in sizes

    @property
    def absent_classes(self) -> list[int]:
        """Labels of the classes without a usable annotation."""
        return [label for label, count in enumerate(self.image_count) if not count]

    def frequency(self, thresholds: Sequence[int] | None = None) -> list[str]:
        """Return the group of each class: 'r', 'c' or 'f', which is that of the training split.

        Args:
            thresholds: Largest number of images of a rare and of a common class. With them the
                images of this file count; None: the `frequency` of the categories where all have
                one, else their `image_count` (of the training split) where all have one, else the
                images of this file, by LVIS's thresholds.
        """
        for key in ("frequency", "image_count"):
            if thresholds is None and all(key in category for category in self.categories):
                values = [category[key] for category in self.categories]
                return values if key == "frequency" else [group(count) for count in values]
        return [group(count, thresholds or THRESHOLDS) for count in self.image_count]

    def images_without(self, key: str) -> int:
        """Return the number of images that lack a key, such as `neg_category_ids`."""
        return self._column(key).null_count

    def missing_keys(self) -> list[str]:
        """Return the keys of LVIS's federated labels that some image lacks, as COCO's files do."""
        keys = ("neg_category_ids", "not_exhaustive_category_ids")
        return [key for key in keys if self.images_without(key)]

    @property
    def faulty(self) -> int:
        """Number of unusable annotations that scoring cannot use either."""
        return sum(count for reason, (count, *_) in self.unusable.items() if reason not in EXPECTED)

    @property
    def scored_count(self) -> int:
        """Number of annotations that scoring does not ignore."""
        ignored = (self.unusable.get(reason, [0])[0] for reason in (CROWD, IGNORED))
        return self.annotation_count - sum(ignored)

    def faulty_text(self) -> str:
        """Return a sentence on the annotations that neither training nor scoring can use."""
        reasons = (
            f"{reason} ({count} in all, such as {', '.join(map(str, ids))})"
            for reason, (count, *ids) in self.unusable.items()
            if reason not in EXPECTED
        )
        return f"{self.path}: annotations that cannot be used: {'; '.join(reasons)}"

    def faulty_error(self) -> UserError:
        """Return the error for these annotations."""
        boxes_only = self.unusable.keys() <= {NO_POLYGON, NO_SEGMENTATION}
        if boxes_only and self.faulty == self.annotation_count:
            return UserError(
                f"{self.path}: none of the {self.faulty} annotations has a mask",
                f"{MASKS_FIX}; or give each its box as polygon, [[x, y, x+w, y, x+w, y+h, x, "
                "y+h]]: then only box AP has a meaning",
            )
        return UserError(
            self.faulty_text(),
            "correct these annotations, or delete them: in a scored split they would count as "
            "missed",
        )

    @cached_property
    def images(self) -> list[dict]:
        """Entries of the file, with the keys that LVIS defines. Gigabytes for LVIS train."""
        names = [name for name, _ in IMAGE_FIELDS]
        rows = zip(*(self._column(name).to_pylist() for name in names), strict=True)
        return [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in rows
        ]

    @cached_property
    def annotations(self) -> list[dict]:
        """Entries of the file, image by image. Gigabytes for LVIS train."""
        return [annotation for row in range(len(self)) for annotation in self._entries(row)]

    @cached_property
    def by_image(self) -> dict[int, list[dict]]:
        """Usable annotations of each image id. Gigabytes for LVIS train."""
        return {
            int(self.ids[row]): [
                annotation
                for annotation, usable in zip(
                    self._entries(row), self.objects(row).usable, strict=True
                )
                if usable
            ]
            for row in range(len(self))
        }

    def _entries(self, row: int) -> Iterator[dict]:
        objects, image_id = self.objects(row), int(self.ids[row])
        for number, category, box, area, crowd, ignore, segmentation in zip(
            objects.id.tolist(),
            objects.category_id.tolist(),
            objects.bbox.tolist(),
            objects.area.tolist(),
            objects.iscrowd.tolist(),
            objects.ignore.tolist(),
            objects.segmentation,
            strict=True,
        ):
            if not isinstance(segmentation, dict):
                segmentation = [polygon.tolist() for polygon in segmentation]
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": area,
                "segmentation": segmentation,
                **({"iscrowd": 1} if crowd else {}),
                **({"ignore": 1} if ignore else {}),
            }

    @property
    def image_paths(self) -> dict[int, Path]:
        """File of each image id, in any known layout; a missing file's expected path.

        Raises:
            UserError: A name is that of several files.
        """
        if self.ambiguous_images:
            raise self.ambiguity()
        return self._files.paths

    @property
    def missing_images(self) -> list[Path]:
        """Expected paths of the image files that do not exist."""
        return self._files.missing

    @property
    def ambiguous_images(self) -> dict[str, list[str]]:
        """Names that are in several subfolders: name -> these subfolders."""
        return self._files.ambiguous

    def ambiguity(self) -> UserError:
        """Return the error for names that are in several subfolders."""
        name, folders = next(iter(self.ambiguous_images.items()))
        return UserError(
            f"{self.path}: names that are in several folders of {self.folder}: "
            f"{examples(self.ambiguous_images)}; {name} is in {' and '.join(folders)}",
            f"write the folder into every `file_name`, such as {folders[0]}/{name}",
        )

    @cached_property
    def _files(self) -> _Files:
        root = self.folder or Path()
        existing = {
            sub: {entry.name for entry in os.scandir(root / sub)}
            if (root / sub).is_dir()
            else set()
            for sub in SUBFOLDERS
        }
        files = _Files({}, [], {})
        names = self._column("file_name").to_pylist()
        urls = self._column("coco_url").to_pylist()
        for number, name, url in zip(self.ids.tolist(), names, urls, strict=True):
            literal = name and (name in existing[""] or ("/" in name and (root / name).is_file()))
            if literal:
                files.paths[number] = root / name
                continue
            locations = candidate_locations(name, url)
            found = [at for at in locations if at[1] in existing.get(at[0], ())]
            if found:
                folders = [sub for sub, file in found if file == found[0][1]]
                if len(folders) > 1 and not url and not COCO_NAME.fullmatch(found[0][1]):
                    files.ambiguous[found[0][1]] = folders
                location = found[0]
            else:  # expected in the first candidate folder that holds anything
                location = next((at for at in locations if existing.get(at[0])), locations[0])
                files.missing.append(root / Path(*location))
            files.paths[number] = root / Path(*location)
        return files


class _Files(NamedTuple):
    """What `LVISIndex` finds in its image folder."""

    paths: dict[int, Path]
    missing: list[Path]
    ambiguous: dict[str, list[str]]


def candidate_locations(file_name: str | None, coco_url: str | None) -> list[tuple[str, str]]:
    """Return where an image may be, as (subfolder, file), likeliest first.

    A `file_name` with a folder is only there. v1.0 names an image by the last two parts of
    `coco_url` (some val images are in train2017), v0.5 by a `file_name` with a prefix of COCO 2014;
    either may also be in one flat folder.
    """
    locations = []
    if coco_url:
        subfolder, name = coco_url.split("/")[-2:]
        locations += [(subfolder, name), ("", name)]
    if file_name and "/" in file_name:
        folder, name = file_name.rsplit("/", 1)
        locations.append((folder, name))
    elif file_name:
        of_coco = COCO_NAME.fullmatch(file_name)
        names = [of_coco[1], file_name] if of_coco else [file_name]
        locations += [(sub, name) for name in dict.fromkeys(names) for sub in SUBFOLDERS]
    return locations


class _BatchView:
    """numpy views of a record batch's nested lists; `row` is a row of the batch."""

    def __init__(self, batch: pa.RecordBatch):
        annotations, labels = batch.column("annotations"), batch.column("labels")
        values = annotations.values
        columns = {field.name: values.field(field.name) for field in values.type}
        self.image_offsets = annotations.offsets.to_numpy()
        self.scalars = [
            columns[name].to_numpy(zero_copy_only=False)
            for name in ("id", "category_id", "area", "usable", "iscrowd", "ignore")
        ]
        self.bbox = columns["bbox"].values.to_numpy().reshape(-1, 4)
        polygons = columns["polygons"]
        self.annotation_offsets = polygons.offsets.to_numpy()
        self.polygon_offsets = polygons.values.offsets.to_numpy()
        self.coordinates = polygons.values.values.to_numpy()
        rle = columns["rle"]
        self.rle = rle if rle.null_count < len(rle) else None
        self.label_offsets, self.label_values = labels.offsets.to_numpy(), labels.values.to_numpy()

    def labels(self, row: int) -> np.ndarray:
        """Return the sorted distinct labels (k,) int32 of one image."""
        return self.label_values[self.label_offsets[row] : self.label_offsets[row + 1]]

    def objects(self, row: int) -> Objects:
        """Return all annotations of one image."""
        span = slice(*self.image_offsets[row : row + 2].tolist())
        number, category, area, usable, crowd, ignore = (column[span] for column in self.scalars)
        return Objects(
            number,
            category,
            self.bbox[span],
            area,
            usable.astype(bool),
            crowd.astype(bool),
            ignore.astype(bool),
            [self.segmentation(k) for k in range(span.start, span.stop)],
        )

    def segmentation(self, annotation: int) -> list[np.ndarray] | dict:
        """Return an annotation's polygons, (2k,) float64 each, or its run-length encoding."""
        if self.rle is not None and self.rle[annotation].is_valid:
            return json.loads(self.rle[annotation].as_py())
        first, last = self.annotation_offsets[annotation : annotation + 2].tolist()
        ends = self.polygon_offsets[first : last + 1].tolist()
        return [self.coordinates[start:end] for start, end in pairwise(ends)]


# The file that processes share -------------------------------------------------------------------


def _open_cached(path: Path, folder: Path) -> tuple[dict, list[pa.RecordBatch]]:
    """The summary and mapped batches of `path`, from a cache in `folder`.

    The cache is made if it is missing, damaged or not of the present file: by one process, while
    others wait.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    cache = folder / f"{path.stem}-{digest}.arrow"
    if not _is_valid(path, cache):
        with locked(folder / f".{cache.stem}.lock", f"the index of {path.name}", wait=True):
            if not _is_valid(path, cache):
                _write_cache(path, cache)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(cache)))
        summary = json.loads(reader.schema.metadata[METADATA_KEY])
        return summary, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{cache} cannot be read: {error}", "run the command again") from error


def _is_valid(path: Path, cache: Path) -> bool:
    """Whether a cache is intact and of the present annotation file.

    Its record holds the digest of both. They are computed again only where size, times or inode of
    a file are not those at the last check: every job opens the index, and LVIS's has 0.7 GB.
    """
    try:
        record = read_record(_record_of(cache))
    except UserError:
        return False
    files = {"annotations": path, "index": cache}
    if record is None or record.get("format") != CACHE_FORMAT or not cache.exists():
        return False
    if not path.exists():
        return False  # reading it will raise the error for the user
    found = {name: _identity(file) for name, file in files.items()}  # before they are read
    changed = [name for name in files if record[name]["stat"] != found[name]]
    for name in changed:
        if sha256(files[name]) != record[name]["sha256"]:
            if name == "index":
                print(f"{cache} is damaged: it is made again", flush=True)
            return False
    if changed:
        with suppress(UserError):  # in a folder that may only be read, it is checked every time
            _write_record(cache, {name: (record[name]["sha256"], found[name]) for name in files})
    return True


def _record_of(cache: Path) -> Path:
    return cache.with_suffix(".json")


def _write_record(cache: Path, files: dict[str, tuple[str, list[int]]]) -> None:
    entries = {name: {"sha256": digest, "stat": stat} for name, (digest, stat) in files.items()}
    write_record(_record_of(cache), {"format": CACHE_FORMAT, **entries})


def _identity(path: Path) -> list[int]:
    """What changes with a file's content: unlike its other times, ctime cannot be set back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _write_cache(path: Path, cache: Path) -> None:
    before = _identity(path) if path.exists() else []
    content = read_annotation_file(path)
    metadata = {METADATA_KEY: json.dumps(_summary(content))}
    with (
        atomic(cache) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA.with_metadata(metadata)) as writer,
        tqdm(
            total=len(content.images),
            desc=f"index of {path.name}",
            unit="image",
            delay=3,
            mininterval=2,
        ) as progress,
    ):
        for batch in record_batches(content):
            writer.write_batch(batch)
            progress.update(len(batch))
    index = sha256(cache), _identity(cache)
    _write_record(cache, {"annotations": (content.sha256, before), "index": index})


def _summary(content: AnnotationFile) -> dict:
    """Facts of the file as a whole. The counts by class are of usable annotations."""
    usable = [
        (a.image_id, a.category_id) for a in content.annotations if a.id not in content.unusable
    ]
    reasons: dict[str, list[int]] = {}
    for number, reason in content.unusable.items():
        reasons.setdefault(reason, []).append(number)
    classes = len(content.categories)

    def count_by_class(pairs: list[tuple[int, int]] | set[tuple[int, int]]) -> list[int]:
        ids = np.array([category for _, category in pairs], int)
        return np.bincount(ids, minlength=classes + 1)[1:].tolist()

    return {
        "info": content.info or {},
        "categories": content.categories,
        "original_ids": content.original_ids,
        "annotation_count": len(content.annotations),
        "sha256": content.sha256,
        "unusable": {reason: [len(ids), *ids[:5]] for reason, ids in reasons.items()},
        "instance_count": count_by_class(usable),
        "image_count": count_by_class(set(usable)),
    }
