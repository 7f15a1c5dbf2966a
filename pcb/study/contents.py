"""What the files of a study hold, as digests: the part of an identity that no YAML file spells.

    study.contents.of_file("data/lvis_v1/lvis_v1_train.json")
    study.contents.images("v1", "val")

Paths and times are no part of it, so files may be moved, copied or linked. A file is read again
only if its size, times or inode differ from those at the last reading. Of a user's image files, of
which there are 100,000, the size, the beginning and the end are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT, located, sha256, write_text
from pcb.study.detector_config import read_detector_config
from pcb.study.paths import Paths
from pcb.study.records import read_record

ASSETS = ROOT / "pcb/synthetic/assets"
SAMPLE = 16 * 1024  # bytes at the beginning and at the end of an image file
NOT_TRAINING = {"test_pipeline"}  # entries of a detector config that training does not read
READERS = 8  # threads that read image files

Stat = tuple[int, int, int, int]


def stat_of(path: str | Path) -> Stat | None:
    """Size, modification and change time in ns, and inode of a file; None where it is missing.

    No tool can restore the change time, so an edit is noticed even where its time was put back.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def sampled(path: str | Path) -> str:
    """A digest of a file's size, beginning and end; of all of it where it is small."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}\n".encode())
            digest.update(file.read(SAMPLE))
            if size > SAMPLE:
                file.seek(max(SAMPLE, size - SAMPLE))
                digest.update(file.read(SAMPLE))
    except OSError:
        return "missing"
    return digest.hexdigest()


def in_full(path: str | Path) -> str:
    """SHA-256 of a file, `missing` where it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return "missing"


class Contents:
    """Digests of the files that a study reads.

    Attributes:
        looks_at_images: Whether `images` compares every image file with the last check; else it
            repeats what the check found.
    """

    def __init__(self, scale: dict, paths: Paths):
        self.scale, self.paths = scale, paths
        self.looks_at_images = False
        self._digests_of: dict[Path, tuple[Stat, str]] = {}
        self._unsaved: set[Path] = set()
        self._images: dict[str, dict[str, str]] = {}
        self._checks: dict[str, dict | None] = {}

    # Files -----------------------------------------------------------------------------------

    def of_file(self, path: str | Path) -> str | None:
        """SHA-256 of a file of the study; None where it is missing.

        Raises:
            UserError: It is a folder, or may not be read.
        """
        source = located(path).absolute()
        if (stat := stat_of(source)) is None:
            return None
        if source not in self._digests_of or self._digests_of[source][0] != stat:
            saved = self._saved(source, stat)
            try:
                digest = saved or sha256(source)
            except OSError as error:
                raise UserError(
                    f"{source} cannot be read: {error.strerror}",
                    "make it a readable file, or correct its path in the scale's YAML file",
                ) from error
            self._digests_of[source] = stat, digest
            if saved is None:
                self._unsaved.add(source)
        return self._digests_of[source][1]

    def save(self) -> None:
        """Save the digests of this process, so that the next one need not read the files."""
        for source in self._unsaved:
            stat, digest = self._digests_of[source]
            entry = {"path": str(source), "stat": stat, "sha256": digest}
            write_text(self._memory(source), json.dumps(entry) + "\n")
        self._unsaved.clear()

    def _saved(self, source: Path, stat: Stat) -> str | None:
        """The digest that `save` wrote of the file that has this `stat`."""
        try:
            saved = json.loads(self._memory(source).read_text(encoding="utf-8"))
            same = saved["path"] == str(source) and tuple(saved["stat"]) == stat
            return str(saved["sha256"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _memory(self, source: Path) -> Path:
        name = hashlib.sha256(str(source).encode()).hexdigest()[:16]
        return self.paths.digests / f"{name}.json"

    # Data sets -------------------------------------------------------------------------------

    def annotations(self, dataset: str, split: str) -> str | None:
        """SHA-256 of the annotation file of a split; None where it is missing."""
        return self.of_file(self.scale["datasets"][dataset][split])

    def is_generated(self, dataset: str) -> bool:
        """Whether this pipeline draws a data set: its files are where the generator writes them.

        `pretrain`, the data set of the pretraining, always is.
        """
        if dataset == "pretrain":
            return True
        train = Path(self.scale["datasets"][dataset]["train"])
        return "synthetic" in self.scale and train.parent == self.paths.data(dataset)

    def images(self, dataset: str, split: str) -> str | None:
        """Digest of the images of a split, by id; None before `pcb check-data` has listed them."""
        if self.looks_at_images:
            if dataset not in self._images:
                self._images[dataset] = self._look(dataset)
            return self._images[dataset].get(split)
        found = (self.check(dataset) or {}).get("splits", {}).get(split, {})
        return found.get("image_digest")

    def check(self, dataset: str) -> dict | None:
        """The report of `pcb check-data`; None where there is none that can be read."""
        if dataset not in self._checks:
            try:
                self._checks[dataset] = read_record(self.paths.data_check(dataset))
            except UserError:
                self._checks[dataset] = None
        return self._checks[dataset]

    def list_images(
        self, dataset: str, files: Mapping[str, Mapping[int, Path]], again: bool = False
    ) -> dict[str, str]:
        """Digest the images of a data set and list them with their times, for the next time.

        Args:
            dataset: `v05` or `v1`.
            files: Split -> image id -> file.
            again: Read every file, also those whose size and times have not changed.

        Returns:
            Split -> digest of its images.
        """
        known = {} if again else self._known_images(dataset)
        out: dict[str, dict] = {}
        for split, by_id in files.items():
            paths = list(by_id.values())
            stats = [stat_of(path) for path in paths]
            out[split] = {
                "id": list(by_id),
                "file": [os.path.relpath(path, self._image_folder(dataset)) for path in paths],
                "stat": [list(stat or ()) for stat in stats],
                "digest": self._digests(dataset, paths, stats, known),
            }
        write_text(self.paths.image_list(dataset), json.dumps(out, separators=(",", ":")) + "\n")
        self._images.pop(dataset, None)
        self._checks.pop(dataset, None)
        return {split: _digest_of(entry["id"], entry["digest"]) for split, entry in out.items()}

    def _look(self, dataset: str) -> dict[str, str]:
        """Split -> digest of its images as they are now."""
        folder = str(self._image_folder(dataset))
        out = {}
        for split, entry in self._listing(dataset).items():
            paths = [f"{folder}/{name}" for name in entry["file"]]
            digests = list(entry["digest"])
            stats = [stat_of(path) for path in paths]  # 100,000 of them take a fraction of a second
            changed = [
                position
                for position, (stat, known) in enumerate(zip(stats, entry["stat"], strict=True))
                if stat is None or list(stat) != known
            ]
            read = in_full if self.is_generated(dataset) else sampled
            with ThreadPoolExecutor(READERS) as pool:
                found = pool.map(read, [paths[position] for position in changed])
                for position, digest in zip(changed, found, strict=True):
                    digests[position] = digest
            out[split] = _digest_of(entry["id"], digests)
        return out

    def _digests(
        self,
        dataset: str,
        paths: Sequence[Path],
        stats: Sequence[Stat | None],
        known: Mapping[tuple[str, tuple], str],
    ) -> list[str]:
        """The digest of each image: the known one where path, size and times are the known ones."""
        read = in_full if self.is_generated(dataset) else sampled
        out = [known.get((str(path), stat or ())) for path, stat in zip(paths, stats, strict=True)]
        changed = [position for position, digest in enumerate(out) if digest is None]
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(read, [paths[position] for position in changed])
            for position, digest in zip(changed, found, strict=True):
                out[position] = digest
        return [digest or "missing" for digest in out]

    def _known_images(self, dataset: str) -> dict[tuple[str, tuple], str]:
        """(path, stat) -> digest of the images at the last check."""
        folder = self._image_folder(dataset)
        return {
            (str(folder / name), tuple(stat)): digest
            for entry in self._listing(dataset).values()
            for name, stat, digest in zip(
                entry["file"], entry["stat"], entry["digest"], strict=True
            )
            if stat
        }

    def _image_folder(self, dataset: str) -> Path:
        if dataset in self.scale["datasets"]:
            return Path(self.scale["datasets"][dataset]["images"])
        return self.paths.data(dataset) / "images"

    def _listing(self, dataset: str) -> dict[str, dict]:
        try:
            listing = json.loads(self.paths.image_list(dataset).read_text(encoding="utf-8"))
            return {split: entry for split, entry in listing.items() if entry["id"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    # Generated data --------------------------------------------------------------------------

    def assets(self, classes: int) -> str:
        """Digest of the generator's assets that a number of classes needs."""
        names = ["classes.yaml", "sprites.json", "sprites.webp"]
        if classes == 180:
            names.append("classes_180.yaml")
        return _digest_of(names, [self.of_file(ASSETS / name) or "missing" for name in names])

    def damaged_files(self, dataset: str) -> list[str]:
        """Files of a generated data set that do not have the digest of its manifest."""
        try:
            manifest = read_record(self.paths.data_manifest(dataset)) or {}
        except UserError:
            manifest = {}
        folder, expected = self.paths.data(dataset), manifest.get("files", {})
        paths = [folder / name for name in expected]
        found = self._digests(
            dataset, paths, list(map(stat_of, paths)), self._known_images(dataset)
        )
        return [
            name
            for (name, digest), actual in zip(expected.items(), found, strict=True)
            if digest != actual
        ]

    # Detectors -------------------------------------------------------------------------------

    def weights(self, backbone: str) -> str | None:
        """SHA-256 of a backbone's file of weights; None where it is missing."""
        return self.of_file(self.scale["backbones"][backbone]["weights"])

    def detector(self, backbone: str, training: bool) -> str:
        """Digest of a backbone's detector config with all that it inherits.

        Args:
            backbone: `r50` or `r101`.
            training: Without the entries that only an evaluation reads.

        Raises:
            UserError: The config is missing or not valid.
        """
        return config_digest(self.scale["backbones"][backbone]["config"], training)


@lru_cache(maxsize=8)
def config_digest(path: str, training: bool) -> str:
    """Digest of a detector config with all that it inherits."""
    config = read_detector_config(path)
    if training:
        config = {key: value for key, value in config.items() if key not in NOT_TRAINING}
    text = json.dumps(config, sort_keys=True, default=_name)
    return hashlib.sha256(text.replace(f"{ROOT}/", "").encode()).hexdigest()


def _name(value: object) -> str:
    """A name for what JSON cannot hold: the class or function itself, or the type of an object."""
    own = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return str(own or type(value).__qualname__)


def _digest_of(names: Iterable[object], digests: Iterable[str]) -> str:
    lines = sorted(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
