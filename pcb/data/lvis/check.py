"""`pcb check-data`: everything about a data set that could fail a training, found before one starts.

`check(study, "v05")` reads train, val and dev, lists all faults and all missing images at once, and writes a report.
It never replaces one LVIS version by the other: v0.5 and v1.0 have different classes and different images.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pcb.data.download import how_to_get
from pcb.data.lvis.annotations import some
from pcb.data.lvis.index import OFFICIAL, LVISIndex
from pcb.data.lvis.sampling import repeat_factors
from pcb.errors import UserError
from pcb.files import write_json, write_text
from pcb.frequency import THRESHOLDS
from pcb.study import Study

# Rare, common and frequent classes of the releases.
GROUPS = {"v0.5": {"r": 454, "c": 461, "f": 315}, "v1.0": {"r": 337, "c": 461, "f": 405}}
# Images and annotations of the released files; fewer may be meant (a subset), so it is a warning.
RELEASED = {
    ("v0.5", "train"): (57_263, 693_958),
    ("v0.5", "val"): (5_000, 50_763),
    ("v1.0", "train"): (100_170, 1_270_141),
    ("v1.0", "val"): (19_809, 244_707),
}


def check(study: Study, dataset: str) -> dict:
    """Check the data set `dataset` ('v05', 'v1') of a study and write the report to `study.paths.data_check(dataset)`.

    Raises `UserError` with every fault; where images are missing, their full list lies beside the report.
    """
    rfs = any(e.dataset == dataset and e.sampler == "rfs" for e in study.experiments.values())
    report = study.paths.data_check(dataset)
    out = check_files(
        study.scale["datasets"][dataset],
        report,
        study.scale["train"]["rfs_threshold"] if rfs else None,
        bool(study.scale.get("allow_absent_classes")),
        study.paths.indices,
    )
    write_json(report, {"dataset": dataset, **out})
    return {"dataset": dataset, **out}


def check_files(
    entry: dict,
    report: Path,
    rfs_threshold: float | None = None,
    allow_absent: bool = False,
    cache: Path | None = None,
) -> dict:
    """Check the files that `entry` (version, train, val, dev?, images) names; `rfs_threshold` None: no run repeats images.

    The indices that it makes of them stay in the folder `cache` for the trainings.
    """
    faults: list[UserError] = []
    warnings: list[str] = []
    splits: dict[str, LVISIndex] = {}
    for split in ("train", "val", "dev"):
        if split in entry and not Path(entry[split]).exists():
            faults.append(
                UserError(f"{entry[split]}: No such file", how_to_get(Path(entry[split])))
            )
        elif split in entry:
            try:
                splits[split] = LVISIndex(entry[split], entry["images"], cache)
            except UserError as error:
                faults.append(error)
    for split, index in splits.items():
        faults += check_version(index, split, entry["version"], warnings)
    faults += check_images(splits, Path(entry["images"]), report)
    faults += check_agreement(splits)
    factors = None
    if "train" in splits:
        train = splits["train"]
        if train.absent:
            fault = UserError(
                f"{train.path}: no usable annotation of {some([train.classes[c] for c in train.absent])}",
                "use the whole train file; or set `allow_absent_classes: true` in the scale's YAML to train without them",
            )
            if allow_absent:
                warnings.append(fault.what)
            else:
                faults.append(fault)
        factors = repeat_factors(train.labels, rfs_threshold or 0)
        if rfs_threshold is not None and max(factors.classes.values(), default=1) == 1:
            rarest = min((n for n in train.image_count if n), default=0) / max(
                1, len(factors.images)
            )
            faults.append(
                UserError(
                    f"{train.path}: repeat factor sampling changes nothing: all factors are 1 at {rfs_threshold:g}",
                    f"set train.rfs_threshold above {rarest:.2g}, the share of images that show the rarest class",
                )
            )
    if faults:
        raise (
            faults[0]
            if len(faults) == 1
            else UserError(
                f"{len(faults)} faults in the data:\n" + "\n".join(str(fault) for fault in faults),
                "mend them all, then check again",
            )
        )
    return {
        "version": entry["version"],
        "classes": len(splits["train"].classes),
        "absent": train.absent,
        "warnings": warnings,
        "repeat_factors": factors.summary(),
        "splits": {split: describe(index) for split, index in splits.items()},
    }


def check_version(
    index: LVISIndex, split: str, version: str, warnings: list[str]
) -> list[UserError]:
    """The file's version against the scale's, and an official file's groups and size against the release's."""
    if index.version != version:
        return [
            UserError(
                f"{index.path} is LVIS {index.version} ({len(index.classes)} classes), the scale says {version}",
                f"give the {version} file; the two versions cannot stand in for each other",
            )
        ]
    if OFFICIAL.get(len(index.classes)) != version:
        return []
    groups = dict(Counter(index.frequency()))
    if groups != GROUPS[version]:
        return [
            UserError(
                f"{index.path}: rare/common/frequent classes are {groups}, LVIS {version} has {GROUPS[version]}",
                "use the file as LVIS released it",
            )
        ]
    size, released = (len(index), index.annotation_count), RELEASED.get((version, split))
    if released and size != released:
        warnings.append(
            f"{index.path}: {size[0]} images and {size[1]} annotations; LVIS {version} {split} was released with "
            f"{released[0]} and {released[1]}"
        )
    return []


def check_images(splits: dict[str, LVISIndex], folder: Path, report: Path) -> list[UserError]:
    """All image files must be there."""
    if not splits:
        return []
    if not folder.is_dir():
        return [
            UserError(
                f"{folder}: no such image folder",
                "run `pcb download train2017 val2017` with your --scale, or mend `images` under `datasets` in its YAML",
            )
        ]
    missing = list(dict.fromkeys(path for index in splits.values() for path in index.missing))
    if not missing:
        return []
    listing = report.with_suffix(".missing.txt")
    write_text(listing, "".join(f"{path}\n" for path in missing))
    return [
        UserError(
            f"{len(missing)} image files are missing: {some(missing)}; all of them are listed in {listing}",
            "run `pcb download train2017 val2017` with your --scale (LVIS's val images lie in both), or generate the set again",
        )
    ]


def check_agreement(splits: dict[str, LVISIndex]) -> list[UserError]:
    """All splits must have the same classes, and no image in common."""
    faults = []
    names = list(splits)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = splits[one], splits[other]
            if a.classes != b.classes:
                differing = [
                    f"{x} / {y}" for x, y in zip(a.classes, b.classes, strict=False) if x != y
                ]
                counts = f"{len(a.classes)} and {len(b.classes)} classes"
                faults.append(
                    UserError(
                        f"{a.path} and {b.path} differ in their classes: {some(differing) if differing else counts}",
                        "take both files from the same release",
                    )
                )
            shared = np.intersect1d(a.ids, b.ids).tolist()
            if shared:
                faults.append(
                    UserError(
                        f"{a.path} and {b.path} share images: {some(shared)}",
                        "take splits of the same release",
                    )
                )
    return faults


def describe(index: LVISIndex) -> dict:
    """A split in the report. `unusable` annotations are those that MMDetection drops, `empty` the images left without one."""
    used = sum(index.instance_count)
    return {
        "file": str(index.path),
        "sha256": index.sha256,
        "images": len(index),
        "empty": sum(not labels for labels in index.labels),
        "annotations": index.annotation_count,
        "unusable": index.annotation_count - used,
        "groups": {g: index.frequency().count(g) for g in "rcf"},
        "thresholds": index.info.get("thresholds", list(THRESHOLDS)),
        "image_count": index.image_count,
    }
