"""Detections on disk: Parquet files (shards) with a row for each (box, class) that a variant keeps.

    writer = ShardWriter(folder, fingerprint, columns)
    shards = plan_shards(image_ids)              # image ids of each shard
    for ids in shards:
        if not writer.has(ids):
            writer.write(ids, rows)              # atomic; an interrupted pass resumes here
    manifest = writer.finish(shards)             # list of {file, images, rows}
    for rows in Shards(folder, manifest).read("plain", masks=True): ...

Columns are image_id, category_id, x, y, w, h (pixels of the original image), height and width of
the image, rle (COCO's compressed counts of the mask; null for a detection beyond the scored limits
whose class has no object in the image, so that its mask decides nothing) and `score:<column>` for
each column of scores, null where that variant does not keep the row. A shard's metadata holds the
fingerprint of what made it and all images that it covers, those without detections too, and its
name a digest of its content, which every reader verifies: a shard can be trusted alone.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pcb.errors import UserError
from pcb.files import intact_files, is_intact, save_hashed

IMAGES_PER_SHARD = 256  # with 300 detections an image about 15 MB a shard
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

    Attributes:
        images: Ids of all images covered, also those without a detection.
        image_id: (n,) int64.
        category_id: (n,) int32.
        box: (n, 4) float32 x, y, width, height in pixels.
        score: (n,) float32, or (V, n) of several columns, nan where a variant does not keep a row.
        size: (n, 2) int32 height and width of the image.
        rle: n compressed COCO counts, or None where they were not asked for. They stay in Arrow: a
            Python object for each of millions would take longer than scoring them.
    """

    images: list[int]
    image_id: np.ndarray
    category_id: np.ndarray
    box: np.ndarray
    score: np.ndarray
    size: np.ndarray
    rle: pa.Array | pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.image_id)

    def where(self, mask: np.ndarray) -> Rows:
        """The rows where the (n,) mask is true; the images covered stay the same."""
        rle = None if self.rle is None else self.rle.filter(pa.array(mask))
        return Rows(
            self.images,
            self.image_id[mask],
            self.category_id[mask],
            self.box[mask],
            self.score[..., mask],
            self.size[mask],
            rle,
        )


def rank_in_image(image: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) the place of each detection among those of its image, by score; of equals the first."""
    best = np.lexsort((-score, image))
    rank = np.empty(len(image), np.int64)
    rank[best] = np.arange(len(image)) - np.searchsorted(image[best], image[best])
    return rank


def schema(columns: Sequence[str], metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a shard with these columns of scores."""
    scores = [(SCORE + column, pa.float32()) for column in columns]
    return pa.schema([*FIELDS, *scores], metadata=metadata)


def plan_shards(
    image_ids: Mapping[int, int] | Sequence[int], per_shard: int = IMAGES_PER_SHARD
) -> list[list[int]]:
    """Split image ids, in their order, into the shards of every pass over these images."""
    ids = [int(i) for i in image_ids]
    return [ids[i : i + per_shard] for i in range(0, len(ids), per_shard)]


class ShardWriter:
    """Writes shards into a folder; finds those of an interrupted pass with the same fingerprint.

    Attributes:
        folder: Folder of the shards.
        fingerprint: Fingerprint of all that determines the detections.
        columns: Columns of scores (`pcb.study.variants.score_columns`).
    """

    def __init__(self, folder: str | Path, fingerprint: str, columns: Sequence[str]):
        self.folder, self.fingerprint, self.columns = Path(folder), fingerprint, list(columns)
        self._verified: dict[int, Path] = {}  # first image of a shard -> its file

    def path(self, image_ids: Sequence[int]) -> Path:
        """The file of a shard, named by its first image, without the digest."""
        return self.folder / f"images-{image_ids[0]:012d}.parquet"

    def has(self, image_ids: Sequence[int]) -> bool:
        """Whether an intact shard of exactly these images, columns and fingerprint is on disk."""
        metadata = {k.encode(): v.encode() for k, v in self._metadata(image_ids).items()}
        for path in intact_files(self.path(image_ids)):
            stored = pq.read_schema(path)
            if stored.equals(schema(self.columns)) and stored.metadata == metadata:
                self._verified[image_ids[0]] = path
                return True
        return False

    def write(self, image_ids: Sequence[int], rows: Mapping[str, np.ndarray | list]) -> Path:
        """Write the shard of these images.

        Args:
            image_ids: Ids of all images covered.
            rows: Column -> n values. NaN as a score means that the variant does not keep the row.

        Returns:
            The path of the shard.
        """
        fields = schema(self.columns, self._metadata(image_ids))
        arrays = [
            pa.array(rows[f.name], type=f.type, from_pandas=f.name.startswith(SCORE))
            for f in fields
        ]
        table = pa.Table.from_arrays(arrays, schema=fields)
        path = save_hashed(
            self.path(image_ids), lambda file: pq.write_table(table, file, compression="zstd")
        )
        self._verified[image_ids[0]] = path
        return path

    def finish(self, shards: Sequence[Sequence[int]]) -> list[dict]:
        """Describe the shards in order, for the manifest, and remove all other files.

        Every shard was found by `has`, or written by `write` here or by another process.
        """
        for ids in shards:
            assert ids[0] in self._verified or self.has(ids), f"{self.path(ids)} was just written"
        paths = [self._verified[ids[0]] for ids in shards]
        for path in set(self.folder.iterdir()) - set(paths):
            path.unlink()
        return [
            {"file": path.name, "images": len(ids), "rows": pq.read_metadata(path).num_rows}
            for ids, path in zip(shards, paths, strict=True)
        ]

    def _metadata(self, image_ids: Sequence[int]) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "images": json.dumps(list(image_ids))}


class Shards:
    """Reads the shards that a manifest lists. Memory is that of one shard.

    The first reading of a shard verifies its digest. Inference may keep more detections than are
    scored; `read` yields those within the scored limits, `read_columns` all.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Sequence[dict],
        fix: str = "run the inference of this run again",
        limits: Mapping[str, float] | None = None,
    ):
        """Open the shards; nothing is read yet.

        Args:
            folder: Folder of the shards.
            manifest: The entries of its manifest.
            fix: What the user can do about a broken shard.
            limits: `score_thr` and `per_image` of the detections that are scored; None: all.
        """
        self.paths = [Path(folder) / entry["file"] for entry in manifest]
        self.fix, self.limits = fix, limits
        self._verified: set[Path] = set()

    @property
    def columns(self) -> list[str]:
        """The columns of scores."""
        with self._opened(self.paths[0]) as file:
            names = file.schema_arrow.names
        return [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]

    def read(self, column: str, masks: bool = False) -> Iterator[Rows]:
        """Read the scored detections of one column.

        Args:
            column: Column of scores.
            masks: Read the RLE column too.

        Yields:
            The rows of each shard.

        Raises:
            UserError: A shard is missing or broken, or has no such column.
        """
        for rows in self.read_columns([column], masks):
            rows = replace(rows, score=rows.score[0])
            if self.limits:
                within = rank_in_image(rows.image_id, rows.score) < self.limits["per_image"]
                rows = rows.where(within & (rows.score > self.limits["score_thr"]))
            yield rows

    def read_columns(self, columns: Sequence[str], masks: bool = False) -> Iterator[Rows]:
        """Read all detections with a score in any of several columns.

        Args:
            columns: V columns of scores.
            masks: Read the RLE column too.

        Yields:
            The rows of each shard, with (V, n) scores.

        Raises:
            UserError: A shard is missing or broken, or lacks a column.
        """
        names = [SCORE + column for column in columns]
        wanted = ["image_id", "category_id", *BOX, "height", "width", *names]
        for path in self.paths:
            with self._opened(path) as file:
                for column, name in zip(columns, names, strict=True):
                    if name not in file.schema_arrow.names:
                        raise UserError(
                            f"{path} holds no variant {column!r}, only {', '.join(self.columns)}",
                            self.fix,
                        )
                images = json.loads(file.schema_arrow.metadata[b"images"])
                table = file.read(columns=[*wanted, "rle"] if masks else wanted)
            # Arrow's null becomes nan.
            scores = np.stack([table[name].to_numpy() for name in names])
            rows = Rows(
                images,
                table["image_id"].to_numpy(),
                table["category_id"].to_numpy(),
                np.stack([table[key].to_numpy() for key in BOX], 1),
                scores,
                np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1),
                table["rle"] if masks else None,
            )
            kept = (~np.isnan(scores)).sum(0) > 0
            yield rows if kept.all() else rows.where(kept)

    @contextmanager
    def _opened(self, path: Path) -> Generator[pq.ParquetFile]:
        try:
            if path not in self._verified:
                if not is_intact(path):
                    raise UserError(
                        f"{path} is missing or damaged: its content is not as its name records",
                        self.fix,
                    )
                self._verified.add(path)
            with pq.ParquetFile(path) as file:
                yield file
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path} cannot be read: {error}", self.fix) from error
