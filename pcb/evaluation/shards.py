"""Detections on disk: one Parquet file per so many images, one row per kept (box, class) of the union over variants.

    writer = ShardWriter(folder, fingerprint, variants)
    for part in plan(image_ids):                 # image ids, one list per shard
        if not writer.has(part):
            writer.write(part, columns)          # atomic; an interrupted pass continues with the missing shards
    manifest = writer.finish(parts)              # list of {file, images, rows}
    for rows in Shards(folder, manifest).read("plain", masks=True): ...

Columns: image_id, category_id, x, y, w, h (pixels of the original image), height, width of the image, rle (COCO compressed
counts of the mask) and `score:<variant>`, null where that variant did not keep the row. A shard carries in its own
metadata the fingerprint of what made it and the images it covers, those without detections too, so it can be trusted alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pcb.errors import UserError
from pcb.files import atomic

IMAGES_PER_SHARD = 256  # at 300 detections an image about 15 MB a shard
SCORE = "score:"
FIELDS = [
    ("image_id", pa.int64()),
    ("category_id", pa.int32()),
    ("x", pa.float32()),
    ("y", pa.float32()),
    ("w", pa.float32()),
    ("h", pa.float32()),
    ("rle", pa.binary()),
    ("height", pa.int32()),
    ("width", pa.int32()),
]
BOX = ["x", "y", "w", "h"]


@dataclass(frozen=True)
class Rows:
    """Detections of one variant on a few images, as columns of equal length n.

    images: ids of all images covered, also those without a detection. box: (n, 4) x, y, w, h in pixels.
    score: (n,) float32. size: (n, 2) height, width of the image. rle: n compressed COCO counts, or None where not asked for;
    they stay in Arrow, since a Python object for each of millions costs more than scoring them.
    """

    images: list[int]
    image_id: np.ndarray
    category_id: np.ndarray
    box: np.ndarray
    score: np.ndarray
    size: np.ndarray
    rle: pa.Array | pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.score)

    def where(self, mask: np.ndarray) -> Rows:
        """The rows where the (n,) mask is true; the images covered stay the same."""
        rle = None if self.rle is None else self.rle.filter(pa.array(mask))
        return Rows(
            self.images,
            self.image_id[mask],
            self.category_id[mask],
            self.box[mask],
            self.score[mask],
            self.size[mask],
            rle,
        )


def schema(variants: Sequence[str], metadata: dict[str, str] | None = None) -> pa.Schema:
    return pa.schema([*FIELDS, *[(SCORE + v, pa.float32()) for v in variants]], metadata=metadata)


def plan(image_ids: Sequence[int], per_shard: int = IMAGES_PER_SHARD) -> list[list[int]]:
    """Image ids in order, cut into shards: the same cut for every pass over the same images."""
    ids = [int(i) for i in image_ids]
    return [ids[i : i + per_shard] for i in range(0, len(ids), per_shard)]


class ShardWriter:
    """Writes shards into `folder`; `has` says which of an earlier, interrupted pass with the same `fingerprint` still stand."""

    def __init__(self, folder: str | Path, fingerprint: str, variants: Sequence[str]):
        self.folder, self.fingerprint, self.variants = Path(folder), fingerprint, list(variants)

    def path(self, part: Sequence[int], suffix: str = "parquet") -> Path:
        """A shard is named by its first image. `suffix` serves files kept beside the shard."""
        return self.folder / f"images-{part[0]:012d}.{suffix}"

    def has(self, part: Sequence[int]) -> bool:
        """True where a whole shard of exactly these images, variants and fingerprint is on disk."""
        try:
            found = pq.read_schema(self.path(part))
        except (OSError, pa.ArrowInvalid):
            return False
        return found.equals(schema(self.variants)) and found.metadata == _encoded(
            self._metadata(part)
        )

    def write(self, part: Sequence[int], columns: dict[str, np.ndarray | list]) -> Path:
        """Write the rows of the images in `part`; a score that is not a number means 'not kept by that variant'."""
        known = schema(self.variants, self._metadata(part))
        arrays = [
            pa.array(columns[f.name], type=f.type, from_pandas=f.name.startswith(SCORE))
            for f in known
        ]
        with atomic(self.path(part)) as temporary:
            pq.write_table(
                pa.Table.from_arrays(arrays, schema=known), temporary, compression="zstd"
            )
        return self.path(part)

    def finish(self, parts: Sequence[Sequence[int]]) -> list[dict]:
        """Describe the shards in order, for the manifest; files that belong to no shard (an older pass) are removed."""
        names = {self.path(part).stem for part in parts}
        for path in self.folder.iterdir():
            if path.stem not in names:
                path.unlink()
        return [
            {
                "file": self.path(p).name,
                "images": len(p),
                "rows": pq.read_metadata(self.path(p)).num_rows,
            }
            for p in parts
        ]

    def _metadata(self, part: Sequence[int]) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "images": json.dumps(list(part))}


class Shards:
    """Reader of the shards that a manifest lists. Memory is that of one shard."""

    def __init__(self, folder: str | Path, manifest: Sequence[dict]):
        self.paths = [Path(folder) / entry["file"] for entry in manifest]

    @property
    def variants(self) -> list[str]:
        with _opened(self.paths[0]) as file:
            return [
                name.removeprefix(SCORE)
                for name in file.schema_arrow.names
                if name.startswith(SCORE)
            ]

    def read(self, variant: str, masks: bool = False) -> Iterator[Rows]:
        """The detections that `variant` kept, one `Rows` per shard; `masks` reads the RLE column too. Raises `UserError`."""
        wanted = ["image_id", "category_id", *BOX, "height", "width", SCORE + variant]
        for path in self.paths:
            with _opened(path) as file:
                if SCORE + variant not in file.schema_arrow.names:
                    raise UserError(
                        f"{path} holds no variant {variant!r}, only {', '.join(self.variants)}",
                        "run the inference of this run again",
                    )
                images = json.loads(file.schema_arrow.metadata[b"images"])
                table = file.read(columns=[*wanted, "rle"] if masks else wanted)
            if table[SCORE + variant].null_count:
                table = table.filter(pc.is_valid(table[SCORE + variant]))
            column = {name: table[name].to_numpy() for name in wanted}
            yield Rows(
                images,
                column["image_id"],
                column["category_id"],
                np.stack([column[k] for k in BOX], 1),
                column[SCORE + variant],
                np.stack([column["height"], column["width"]], 1),
                table["rle"] if masks else None,
            )


def _encoded(metadata: dict[str, str]) -> dict[bytes, bytes]:
    return {k.encode(): v.encode() for k, v in metadata.items()}


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path} cannot be read: {error}",
            "delete the manifest beside its folder (detections.json) and run the inference again",
        ) from error
