"""`pcb check-data`: find everything about a data set that could fail a training before one starts.

`check(study, "v05")` reads train, val and dev, lists all faults and all missing images at once, and
writes a report. LVIS's versions v0.5 and v1.0 never replace each other: they have different classes
and different images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from pcb.data.download import missing_file_fix
from pcb.data.lvis.federated import federated_statistics
from pcb.data.lvis.image_files import look_at, same_pictures
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.releases import RELEASES, matching_release, version_by_classes
from pcb.data.lvis.sampling import RepeatFactors, repeat_factors
from pcb.errors import UserError
from pcb.files import write_text
from pcb.formatting import MAX_EXAMPLES, counted, examples
from pcb.frequency import GROUPS, THRESHOLDS
from pcb.geometry import far_outside, seem_corners
from pcb.study import Study, fingerprint
from pcb.study.records import write_record

# Where a fix is made, in the scale's YAML; `pcb new-scale`, before there is one, names its options.
SET_COCO = "set `format: coco` of the data set in the scale's YAML"
CORRECT_IMAGES = "correct `images` under `datasets` in the scale's YAML"


def check(study: Study, dataset: str, deep: bool = False) -> dict:
    """Check a data set and write the report to `study.paths.data_check(dataset)`.

    Args:
        study: The study whose scale names the files.
        dataset: A data set of the scale.
        deep: Read and decode every image file, also those whose size and times have not changed.

    Returns:
        The report. Its `matches_release` is 'v0.5' or 'v1.0' if all counts of train and val are
        those of the release, else None: only then results are comparable with the paper.

    Raises:
        UserError: The data has faults; all of them are listed. Full lists of image files that are
            missing or faulty are written beside the report.
    """
    experiments = [study.experiments[run] for run in study.runs()]
    rfs = any(e.dataset == dataset and e.sampler == "rfs" for e in experiments)
    path = study.paths.data_check(dataset)
    report = check_files(
        study.scale["datasets"][dataset],
        path,
        study.scale["train"]["rfs_threshold"] if rfs else None,
        bool(study.scale.get("allow_absent_classes")),
        study.paths.indices,
        deep,
    )
    digests = image_digests(study, dataset, deep)
    report |= {
        "dataset": dataset,
        "fingerprint": fingerprint(study.check_job(dataset)),
        "splits": {
            s: {**entry, "image_digest": digests[s]} for s, entry in report["splits"].items()
        },
    }
    write_record(path, report)
    return report


def image_digests(study: Study, dataset: str, again: bool) -> dict[str, str]:
    """Digest the images of each split; compare those of a generated data set with its manifest.

    Raises:
        UserError: A file of a generated data set is not the one that was drawn.
    """
    entry, contents = study.scale["datasets"][dataset], study.contents
    splits = [split for split in ("train", "val", "dev") if split in entry]
    files = {
        split: LVISIndex(entry[split], entry["images"], study.paths.indices).image_paths
        for split in splits
    }
    digests = contents.list_images(dataset, files, again)
    for split in splits:
        contents.annotations(dataset, split)
    contents.save()
    if contents.is_generated(dataset) and (damaged := contents.damaged_files(dataset)):
        manifest = study.paths.data_manifest(dataset)
        raise UserError(
            "files of the generated data set that are not the ones that "
            f"{manifest} lists: {examples(damaged)}",
            f"draw it again: `pcb make-data {dataset}`",
        )
    return digests


def check_files(
    entry: dict,
    report: Path | None,
    rfs_threshold: float | None = None,
    allow_absent: bool = False,
    cache: Path | None = None,
    deep: bool = False,
) -> dict:
    """Check the files of one data set.

    Args:
        entry: The scale's entry under `datasets`.
        report: Path of the report; lists of missing and faulty images are written beside it.
            None: there are no such lists.
        rfs_threshold: Threshold of repeat factor sampling; None: no run uses it.
        allow_absent: Warn of classes that train does not show instead of raising.
        cache: Folder for the indices, which trainings then use.
        deep: Decode every image.

    Raises:
        UserError: The data has faults; all of them are listed.
    """
    faults: list[UserError] = []
    warnings: list[str] = []
    splits: dict[str, LVISIndex] = {}
    for split in ("train", "val", "dev"):
        if split not in entry:
            continue
        path = Path(entry[split])
        if not path.exists():
            faults.append(UserError(f"{path}: No such file", missing_file_fix(path)))
            continue
        try:
            splits[split] = LVISIndex(path, entry["images"], cache)
        except UserError as error:
            faults.append(error)
    for split, index in splits.items():
        if not len(index):
            faults.append(UserError(f"{index.path} has no images", "use the whole file"))
            continue
        if "version" in entry:
            faults += check_version(index, split, entry["version"], warnings)
        faults += check_labels(index, split, entry.get("format", "lvis"), warnings)
        faults += check_boxes(index, warnings)
    of_lvis = "version" in entry
    faults += check_images(splits, Path(entry["images"]), report, warnings, of_lvis, deep)
    faults += check_agreement(splits)
    factors = None
    if "train" in splits:
        factors = repeat_factors(splits["train"].labels, rfs_threshold or 0)
        faults += check_absent_classes(splits["train"], allow_absent, warnings)
        if rfs_threshold is not None:
            faults += check_repeat_factors(splits["train"], factors, warnings)
    if len(faults) > 1:
        listed = "\n".join(map(str, faults))
        raise UserError(f"{len(faults)} faults in the data:\n{listed}", "fix all, check again")
    if faults:
        raise faults[0]
    assert factors is not None  # a missing train file is a fault
    thresholds = entry.get("thresholds")
    groups = splits["train"].frequency(thresholds)
    described = {split: describe(index, groups, thresholds) for split, index in splits.items()}
    version = entry.get("version")
    return {
        "version": version,
        "matches_release": matching_release(version, described) if version else None,
        "classes": len(splits["train"].classes),
        "absent": splits["train"].absent_classes,
        "warnings": warnings,
        "repeat_factors": factors.summary(),
        "splits": described,
    }


def check_version(
    index: LVISIndex, split: str, version: str, warnings: list[str]
) -> list[UserError]:
    """Compare a file's version with the scale's, an official file's counts with the release's.

    A number of images or annotations that differs is only a warning, since a subset may be meant.
    """
    if index.version != version:
        what = (
            f"{index.path} is LVIS {index.version} ({len(index.classes)} classes),"
            f" the scale expects {version}"
        )
        fix = f"use the {version} file; the two versions cannot replace each other"
        return [UserError(what, fix)]
    if version_by_classes(len(index.classes)) != version:
        return []
    release, groups = RELEASES[version], group_sizes(index.frequency())
    if groups != release.groups:
        what = (
            f"{index.path}: rare/common/frequent classes are {groups},"
            f" LVIS {version} has {release.groups}"
        )
        return [UserError(what, "use the file as LVIS released it")]
    images, annotations = release.sizes.get(split, (None, None))
    if images and (len(index), index.annotation_count) != (images, annotations):
        warnings.append(
            f"{index.path}: {len(index)} images and {index.annotation_count} annotations;"
            f" LVIS {version} {split} was released with {images} and {annotations}"
        )
    return []


def check_labels(index: LVISIndex, split: str, rule: str, warnings: list[str]) -> list[UserError]:
    """Check what a rule of scoring, `lvis` or `coco`, needs, masks, and boxes in the image.

    Train only loses faulty annotations; a scored split would count them as missed.
    """
    faults = []
    if rule == "lvis" and split != "train" and (missing := index.missing_keys()):
        faults.append(
            UserError(
                f"{index.path}: images without {' and '.join(missing)}, which LVIS's rule of "
                "scoring needs",
                f"use LVIS's annotation file, or {SET_COCO}",
            )
        )
    if index.faulty:
        if split == "train" and index.faulty < index.annotation_count:
            warnings.append(f"{index.faulty_text()}; they are not trained on")
        else:
            faults.append(index.faulty_error())
    if split != "train" and not index.scored_count:
        faults.append(
            UserError(
                f"{index.path}: no object to score: no annotations, or all are `iscrowd` or "
                "`ignore`",
                "use a file that annotates objects: without any, no class has an AP",
            )
        )
    having = sum("frequency" in category for category in index.categories)
    if split == "train" and 0 < having < len(index.classes):
        warnings.append(
            f"{index.path}: {having} of {len(index.classes)} categories have a `frequency`: groups "
            "follow from image counts"
        )
    return faults


def check_boxes(index: LVISIndex, warnings: list[str]) -> list[UserError]:
    """Check that boxes are x, y, width and height inside their images.

    Boxes that reach a little beyond are only a warning: training cuts them, scoring does not.
    """
    boxes, numbers, sizes = index.boxes()
    ends = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] < sizes).all(1) & (ends > 0).all(1)  # others are faults of their own
    beyond = inside & ((ends > sizes + 1).any(1) | (boxes[:, :2] < -1).any(1))
    if not beyond.any():
        return []
    if seem_corners(boxes, sizes):
        far = far_outside(boxes, sizes)
        return [
            UserError(
                f"{index.path}: bbox seems to be the corners x0, y0, x1, y1: as x, y, width, "
                f"height, boxes end outside their images: {examples(numbers[far].tolist())}",
                "write bbox as x, y, width, height in pixels",
            )
        ]
    warnings.append(
        f"{index.path}: boxes that reach beyond their images by more than 1 pixel, which training "
        f"cuts and scoring does not: {examples(numbers[beyond].tolist())}"
    )
    return []


def check_images(
    splits: dict[str, LVISIndex],
    folder: Path,
    report: Path | None,
    warnings: list[str],
    of_lvis: bool = True,
    deep: bool = False,
) -> list[UserError]:
    """Check that every image file exists, can be read and has the size of its annotation.

    No file may be listed twice, and no picture be in two splits. The lists of missing and of faulty
    files are written beside `report`; `of_lvis` says whether the images can be downloaded.
    """
    if not splits:
        return []
    download = "run `pcb download train2017 val2017`"
    if not folder.is_dir():
        fix = f"{download}, or {CORRECT_IMAGES}" if of_lvis else CORRECT_IMAGES
        return [UserError(f"{folder}: no such image folder", fix)]
    faults = [index.ambiguity() for index in splits.values() if index.ambiguous_images]
    splits = {split: index for split, index in splits.items() if not index.ambiguous_images}
    missing = list(
        dict.fromkeys(path for index in splits.values() for path in index.missing_images)
    )
    sizes: dict[Path, tuple[int, int]] = {}
    for index in splits.values():
        rows = zip(index.ids.tolist(), index.sizes.tolist(), strict=True)
        sizes |= {index.image_paths[i]: (height, width) for i, (height, width) in rows}
        faults += check_entries(index)
    for path in missing:
        sizes.pop(path, None)
    files = look_at(sizes, deep)
    if missing:
        number = counted(len(missing), "image file is missing", "image files are missing")
        listing = written_list(report, ".missing.txt", map(str, missing))
        faults.append(
            UserError(
                f"{number}: {examples(missing)}{listing}",
                f"{download} (LVIS's val images are in both), or generate the data set again"
                if of_lvis
                else f"copy them there, correct `file_name` in the annotation file, or "
                f"{CORRECT_IMAGES}",
            )
        )
    if files.faults:
        lines = {path: f"{path} {fault.what}" for path, fault in files.faults.items()}
        listing = written_list(report, ".faulty.txt", lines.values())
        for fix in dict.fromkeys(fault.fix for fault in files.faults.values()):
            alike = [lines[path] for path, fault in files.faults.items() if fault.fix == fix]
            shown = "; ".join(alike[:MAX_EXAMPLES])
            number = counted(len(alike), "image file is faulty", "image files are faulty")
            faults.append(UserError(f"{number}: {shown}{listing}", fix))
    for one, other in combinations(splits.values(), 2):
        faults += check_leak(one, other, files.marks, warnings)
    return faults


def written_list(report: Path | None, suffix: str, lines: Iterable[str]) -> str:
    """Write lines beside a report, if there is one; returns the end of a sentence that names it."""
    if report is None:
        return ""
    path = report.with_suffix(suffix)
    write_text(path, "".join(f"{line}\n" for line in lines))
    return f"; all of them are listed in {path}"


def check_entries(index: LVISIndex) -> list[UserError]:
    """Check that every entry of `images` has a file of its own."""
    of_file: dict[Path, list[int]] = {}
    for number, path in index.image_paths.items():
        of_file.setdefault(path, []).append(number)
    twice = {path: numbers for path, numbers in of_file.items() if len(numbers) > 1}
    if not twice:
        return []
    path, numbers = next(iter(twice.items()))
    what = (
        f"{index.path}: {counted(len(twice), 'file')} that several entries of `images` name: "
        f"{path} is that of the ids {examples(numbers)}"
    )
    return [UserError(what, "join these entries to one, with the annotations of all")]


def check_leak(
    one: LVISIndex, other: LVISIndex, marks: Mapping[Path, bytes], warnings: list[str]
) -> list[UserError]:
    """Check that two splits share no file; warn of copies, and within an LVIS release."""
    pairs = same_pictures(marks, one.image_paths.values(), other.image_paths.values())
    files = [str(a) for a, b in pairs if a == b]
    copies = [f"{a} = {b}" for a, b in pairs if a != b]
    both = f"{one.path} and {other.path}"
    if copies:
        warnings.append(f"{both} have copies of the same pictures: {examples(copies)}")
    if not files:
        return []
    what = f"{both} show the same pictures: {examples(files)}"
    if one.is_released and other.is_released:
        warnings.append(what)
        return []
    fix = "remove them from one of the two: a detector is not measured on what it was trained on"
    return [UserError(what, fix)]


def check_agreement(splits: dict[str, LVISIndex]) -> list[UserError]:
    """Check that all splits have the same classes."""
    faults = []
    for one, other in combinations(splits.values(), 2):
        both = f"{one.path} and {other.path}"
        if one.classes != other.classes:
            pairs = zip(one.classes, other.classes, strict=False)
            differing = [f"{a} / {b}" for a, b in pairs if a != b]
            counts = f"{len(one.classes)} and {counted(len(other.classes), 'class', 'classes')}"
            what = f"{both} differ in their classes: "
            what += examples(differing) if differing else counts
            faults.append(UserError(what, "use files with the same categories, of one release"))
    return faults


def check_absent_classes(
    train: LVISIndex, allow_absent: bool, warnings: list[str]
) -> list[UserError]:
    """Check that train shows every class; only warn where the scale allows absent classes."""
    if not train.absent_classes:
        return []
    if not any(train.image_count) and train.annotation_count:
        if train.faulty == train.annotation_count:
            return []  # a fault of its own
        reasons = ", ".join(f"{reason} ({n})" for reason, (n, *_) in train.unusable.items())
        what = f"{train.path}: no annotation can be trained on: {reasons}"
        return [UserError(what, "correct these annotations: boxes are in pixels")]
    names = examples([train.classes[label] for label in train.absent_classes])
    what = f"{train.path}: no usable annotation of {names}"
    if allow_absent:
        warnings.append(what)
        return []
    fix = (
        "use the whole train file, or set `allow_absent_classes: true` in the scale's YAML"
        " to train without them"
    )
    return [UserError(what, fix)]


def check_repeat_factors(
    train: LVISIndex, factors: RepeatFactors, warnings: list[str]
) -> list[UserError]:
    """Check that repeat factor sampling repeats anything; only warn where nothing could do so."""
    if not factors.classes or max(factors.classes.values()) > 1:
        return []
    fewest = min((count for count in train.image_count if count), default=0)
    share = fewest / max(1, len(factors.images))
    what = (
        f"{train.path}: repeat factor sampling changes nothing:"
        f" all factors are 1 at {factors.threshold:g}"
    )
    if share == 1:
        warnings.append(f"{what}, since every image shows every class; RFS samples at random")
        return []
    fix = (
        f"set train.rfs_threshold above {share:.2g}, the share of images that show the rarest class"
    )
    return [UserError(what, fix)]


def group_sizes(groups: list[str]) -> dict[str, int]:
    """Return the number of rare ('r'), common ('c') and frequent ('f') classes."""
    return {group: groups.count(group) for group in GROUPS}


def describe(index: LVISIndex, groups: list[str], thresholds: Sequence[int] | None) -> dict:
    """Return a split's entry in the report.

    `groups` are those of the classes, `thresholds` those of the scale, if it has any. `unusable`
    annotations are left out of training; `empty` images have no usable one.
    """
    return {
        "file": str(index.path),
        "sha256": index.sha256,
        "images": len(index),
        "empty": sum(not labels for labels in index.labels),
        "annotations": index.annotation_count,
        "unusable": index.annotation_count - sum(index.instance_count),
        "reasons": {reason: count for reason, (count, *_) in index.unusable.items()},
        "groups": group_sizes(groups),
        "thresholds": list(thresholds or index.info.get("thresholds", THRESHOLDS)),
        "image_count": index.image_count,
        "federated": federated_statistics(index, groups=groups),
    }
