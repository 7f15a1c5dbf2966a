"""LVISIndex: one annotation file of LVIS v0.5, v1.0 or emoji-LVIS, checked, counted, every image file found.

    index = LVISIndex("lvis_v1_train.json", "data/coco", cache="results/lvis/index")
    index.classes, index.image_count, index.frequency(), index.labels, index.missing, index.objects(0)

With `cache` the file is read once, by whoever comes first, into an Arrow file that every process maps into memory: all ranks and all
workers of a machine share the same pages. Without it the same arrays are in this process's own memory.
Class `k` (0..C-1) is the category with id `k + 1` everywhere in this package. Needs neither `lvis` nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pcb.data.lvis.annotations import ROWS, SCHEMA, Content, batches, read
from pcb.files import atomic, locked
from pcb.frequency import THRESHOLDS, group

OFFICIAL = {1230: "v0.5", 1203: "v1.0"}  # class counts that only an LVIS release has
SUBFOLDERS = ("train2017", "val2017", "", "train2014", "val2014")
FORMAT = 1  # of the cache; another number makes it anew
ABOUT = b"pcb"  # the cache's own metadata


class Objects(NamedTuple):
    """The n annotations of one image, in the file's order: views of the index, read-only, not copies.

    id, category_id, area, usable, iscrowd: (n,). bbox: (n, 4) x, y, width, height in pixels.
    usable: whether MMDetection trains on it. segmentation: per annotation its polygons, each (2k,) x0, y0, x1, …, or an RLE dict.
    """

    id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    usable: np.ndarray
    iscrowd: np.ndarray
    segmentation: list[list[np.ndarray] | dict]


class LVISIndex:
    """A checked annotation file.

    categories: dicts sorted by id, so that place = id - 1 = label.   annotation_count: all of them, usable or not.
    image_count, instance_count: per class, of usable annotations.     labels: per image, its sorted distinct labels.
    ids, sizes: per image its id, and (height, width); images are in the file's order.   sha256: of the file.
    `images`, `annotations` and `by_image` are dicts as in the file, made when asked for: gigabytes for LVIS train.
    Raises `UserError` that lists what is wrong: file missing or damaged, keys missing, references to nothing.
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
        about, self._batches = (
            in_memory(self.path) if self.cache is None else mapped(self.path, self.cache)
        )
        self._views: dict[int, Views] = {}
        self.info: dict = about["info"]
        self.categories: list[dict] = about["categories"]
        self.annotation_count: int = about["annotation_count"]
        self.image_count: list[int] = about["image_count"]
        self.instance_count: list[int] = about["instance_count"]
        self.sha256: str = about["sha256"]

    def __reduce__(self):
        return LVISIndex, (
            self.path,
            self.folder,
            self.cache,
        )  # another process maps the file itself

    def __len__(self) -> int:
        return len(self.ids)

    def _column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array(
            [batch.column(name) for batch in self._batches], SCHEMA.field(name).type
        )

    @cached_property
    def ids(self) -> np.ndarray:
        return self._column("id").to_numpy()

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.stack([self._column("height").to_numpy(), self._column("width").to_numpy()], 1)

    @property
    def shown(self) -> np.ndarray:
        """(images,) bool: whether an image has a usable annotation."""
        return (
            np.concatenate(
                [np.zeros(0), *(np.diff(batch.column("labels").offsets) for batch in self._batches)]
            )
            > 0
        )

    @cached_property
    def labels(self) -> list[tuple[int, ...]]:
        return list(map(tuple, self._column("labels").to_pylist()))

    def labels_of(self, row: int) -> list[int]:
        """The sorted distinct labels of image number `row`."""
        return self.views(row).labels(row % ROWS).tolist()

    def objects(self, row: int) -> Objects:
        """All annotations of image number `row`."""
        return self.views(row).objects(row % ROWS)

    def views(self, row: int) -> Views:
        number = row // ROWS
        if number not in self._views:
            self._views[number] = Views(self._batches[number])
        return self._views[number]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(c["name"] for c in self.categories)

    @cached_property
    def version(self) -> str:
        """'v0.5' or 'v1.0', from the number of classes, else from whether images name a file or only an address."""
        named = self._column("file_name").null_count < len(self)
        return OFFICIAL.get(len(self.categories), "v0.5" if named else "v1.0")

    @property
    def absent(self) -> list[int]:
        """Classes without a usable annotation."""
        return [label for label, count in enumerate(self.image_count) if not count]

    def frequency(self, thresholds: tuple[int, int] = THRESHOLDS) -> list[str]:
        """'r', 'c' or 'f' of each class: the file's `frequency`, else from its (train) image count and `thresholds`."""
        counts = [
            c.get("image_count", n) for c, n in zip(self.categories, self.image_count, strict=True)
        ]
        computed = [group(n, thresholds) for n in counts]
        return [c.get("frequency", own) for c, own in zip(self.categories, computed, strict=True)]

    @cached_property
    def images(self) -> list[dict]:
        """The file's entries, as far as LVIS defines them: id, size, name or address, the two lists of federated labels."""
        names = [name for name in SCHEMA.names if name not in ("labels", "annotations")]
        rows = zip(*(self._column(name).to_pylist() for name in names), strict=True)
        return [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in rows
        ]

    @cached_property
    def annotations(self) -> list[dict]:
        """All annotations as in the file, image by image."""
        return [annotation for row in range(len(self)) for annotation in self._dicts(row)]

    @cached_property
    def by_image(self) -> dict[int, list[dict]]:
        """Image id -> its usable annotations."""
        kept = ((row, self.objects(row).usable) for row in range(len(self)))
        return {
            int(self.ids[row]): [
                a for a, good in zip(self._dicts(row), usable, strict=True) if good
            ]
            for row, usable in kept
        }

    def _dicts(self, row: int) -> Iterator[dict]:
        found, image = self.objects(row), int(self.ids[row])
        plain = (
            found.id.tolist(),
            found.category_id.tolist(),
            found.bbox.tolist(),
            found.area.tolist(),
            found.iscrowd.tolist(),
        )
        for number, category, box, area, crowd, outline in zip(
            *plain, found.segmentation, strict=True
        ):
            polygons = (
                outline if isinstance(outline, dict) else [polygon.tolist() for polygon in outline]
            )
            yield {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": area,
                "segmentation": polygons,
                **({"iscrowd": 1} if crowd else {}),
            }

    @property
    def image_paths(self) -> dict[int, Path]:
        """Image id -> file, in whichever known layout it lies; where there is none, the place where it should be."""
        return self._files[0]

    @property
    def missing(self) -> list[Path]:
        """Every image file that is not there."""
        return self._files[1]

    @cached_property
    def _files(self) -> tuple[dict[int, Path], list[Path]]:
        root = self.folder or Path()
        there = {
            sub: {entry.name for entry in os.scandir(root / sub)}
            if (root / sub).is_dir()
            else set()
            for sub in SUBFOLDERS
        }
        paths, missing = {}, []
        names, addresses = (
            self._column("file_name").to_pylist(),
            self._column("coco_url").to_pylist(),
        )
        for number, name, address in zip(self.ids.tolist(), names, addresses, strict=True):
            places = candidates(name, address)
            found = next(((sub, file) for sub, file in places if file in there.get(sub, ())), None)
            if found is None and name and (root / name).is_file():
                found = ("", name)
            expected = next(
                (place for place in places if there.get(place[0])), places[0]
            )  # in a folder that holds anything
            paths[number] = root / Path(*(found or expected))
            if found is None:
                missing.append(paths[number])
        return paths, missing


def candidates(file_name: str | None, coco_url: str | None) -> list[tuple[str, str]]:
    """(subfolder, file) where an image may lie, likeliest first.

    v1.0 names it by the last two parts of `coco_url` (some val images lie in train2017); v0.5 by the last 16 characters
    of `file_name`, which may carry a COCO 2014 prefix. Both are also found in one flat folder.
    """
    out = []
    if coco_url:
        sub, name = coco_url.split("/")[-2:]
        out += [(sub, name), ("", name)]
    if file_name:
        name = file_name.split("/")[-1]
        out += [(sub, short) for short in (name[-16:], name) for sub in SUBFOLDERS]
    return out


class Views:
    """numpy views of a record batch's nested lists, by image within the batch."""

    def __init__(self, batch: pa.RecordBatch):
        each = batch.column("annotations")
        flat = {field.name: each.values.field(field.name) for field in each.values.type}
        self.of_image = each.offsets.to_numpy()
        self.plain = [
            flat[k].to_numpy(zero_copy_only=False)
            for k in ("id", "category_id", "area", "usable", "iscrowd")
        ]
        self.bbox = flat["bbox"].values.to_numpy().reshape(-1, 4)
        self.of_annotation = flat["polygons"].offsets.to_numpy()
        self.of_polygon = flat["polygons"].values.offsets.to_numpy()
        self.coordinates = flat["polygons"].values.values.to_numpy()
        self.rle = flat["rle"] if flat["rle"].null_count < len(flat["rle"]) else None
        self.label_offsets, self.label_values = (
            batch.column("labels").offsets.to_numpy(),
            batch.column("labels").values.to_numpy(),
        )

    def labels(self, image: int) -> np.ndarray:
        return self.label_values[self.label_offsets[image] : self.label_offsets[image + 1]]

    def objects(self, image: int) -> Objects:
        part = slice(*self.of_image[image : image + 2].tolist())
        number, category, area, usable, crowd = (column[part] for column in self.plain)
        outlines = [self.segmentation(k) for k in range(part.start, part.stop)]
        return Objects(
            number,
            category,
            self.bbox[part],
            area,
            usable.astype(bool),
            crowd.astype(bool),
            outlines,
        )

    def segmentation(self, annotation: int) -> list[np.ndarray] | dict:
        if self.rle is not None and self.rle[annotation].is_valid:
            return json.loads(self.rle[annotation].as_py())
        first, last = self.of_annotation[annotation : annotation + 2].tolist()
        ends = self.of_polygon[first : last + 1].tolist()
        return [self.coordinates[a:b] for a, b in pairwise(ends)]


# Reading, and the file that keeps what was read ------------------------------------------------------------------------


def in_memory(path: Path) -> tuple[dict, list[pa.RecordBatch]]:
    content = read(path)
    return describe(content), list(batches(path, content))


def mapped(path: Path, folder: Path) -> tuple[dict, list[pa.RecordBatch]]:
    """What was read of `path`, mapped from a file in `folder`, which is made where it is missing, torn or older than `path`.

    One process makes it; others that come meanwhile wait for it.
    """
    cached = (
        folder
        / f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}.arrow"
    )
    source = identity(path)
    if (found := load(cached, source)) is None:
        with locked(folder / f".{cached.stem}.lock", f"the index of {path.name}", wait=True):
            if (found := load(cached, source)) is None:
                write(path, cached, source)
                found = load(cached, source)
    return found


def identity(path: Path) -> dict:
    try:
        stat = path.stat()
    except OSError:
        return {}
    return {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "format": FORMAT,
    }


def load(cached: Path, source: dict) -> tuple[dict, list[pa.RecordBatch]] | None:
    """The cached file's content; None where it is missing, torn, or not of `source`."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(cached)))
        about = json.loads(reader.schema.metadata[ABOUT])
        if about["source"] != source:
            return None
        return about, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def write(path: Path, cached: Path, source: dict) -> None:
    content = read(path)
    schema = SCHEMA.with_metadata({ABOUT: json.dumps({**describe(content), "source": source})})
    with (
        atomic(cached) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        tqdm(
            total=len(content.images),
            desc=f"index of {path.name}",
            unit="image",
            delay=3,
            mininterval=2,
        ) as progress,
    ):
        for batch in batches(path, content):
            writer.write_batch(batch)
            progress.update(len(batch))


def describe(content: Content) -> dict:
    """What is said of the file as a whole. The counts are of usable annotations."""
    kept = [a for a in content.annotations if not a.ignore]
    pairs = {(a.image_id, a.category_id) for a in kept}
    count = {
        "instance_count": [a.category_id for a in kept],
        "image_count": [category for _, category in pairs],
    }
    classes = len(content.categories)
    counts = {
        key: np.bincount(np.array(found, int), minlength=classes + 1)[1:].tolist()
        for key, found in count.items()
    }
    return {
        "info": content.info or {},
        "categories": content.categories,
        "annotation_count": len(content.annotations),
        "sha256": content.sha256,
        **counts,
    }
