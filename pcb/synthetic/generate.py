"""emoji-LVIS: a small long-tailed instance segmentation data set in LVIS format, drawn from a seed.

    generate(study, "v05")  # results/<scale>/data/v05/{train,val,dev}.json, images/, manifest.json

It follows the rules of LVIS: class frequencies obey a power law, with rare and frequent classes in
the same cluster of look-alikes; labels are federated, with as many negative and not-exhaustive
categories as LVIS has (docs/data.md); some training images have no usable label; files are named as
in v0.5 or in v1.0. Some drawing styles appear outside train only, which tests generalisation.
Images and annotations depend on the recipe alone: every machine writes the same bytes (see
pcb/synthetic/scenes.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from pcb.data.lvis.polygons import mask_to_polygons
from pcb.errors import UserError
from pcb.files import atomic, write_text
from pcb.frequency import group
from pcb.study import Study, fingerprint
from pcb.study.records import write_record
from pcb.synthetic.scenes import ASSETS, SceneStyle, atlas, draw_scene, random_state

# Drawing styles that look alike count as one, so that "unseen in train" means unseen.
STYLE_GROUPS = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji": "fluent",
    "fxemoji": "fxemoji",
    "emojione": "emojione",
}
FIRST_ID = {"train": 100_001, "val": 200_001, "dev": 300_001}  # image ids are unique over splits
URL = "http://images.cocodataset.org/"  # v1.0 names an image's file by the last two parts of a URL
VERSIONS = {"v05": "v0.5", "v1": "v1.0", "pretrain": "v0.5"}

PAIRS_PER_SCENE = 4.75  # (image, class) pairs in val, dev and pretraining, the same for all classes
SECOND_INSTANCE = 0.1  # probability that a class of a scene has a second instance there
# Probability that a class of a scene has an instance without a label: "not exhaustive". In the
# LVIS sample (pcb/data/lvis/federated.py) 16 of 299 pairs of an image and a class are.
UNLABELLED = 0.05
EMPTY_EVERY = 32  # one training image in 32 has no usable label


@dataclass(frozen=True)
class Negatives:
    """How many classes are verified to be absent from an image, and which.

    The defaults are measured on 100 images of LVIS v0.5 val (docs/data.md). LVIS verifies a number
    of classes an image, not a share of its classes, so the number is kept where the vocabulary is
    smaller: the ratio of negative to positive images of a class does not depend on the number of
    classes.

    Attributes:
        per_image: Mean number of negative categories of an image.
        lookalikes: Share of them that are in the cluster of a class that the image shows.
    """

    per_image: float = 9.4
    lookalikes: float = 0.02


@dataclass(frozen=True)
class Recipe:
    """The `synthetic` section of a scale.

    Attributes:
        seed: Seed of everything random.
        size: Side of a scene in pixels.
        train_images: Images of train; likewise `val_images`, `dev_images`, `pretrain_images`.
        thresholds: Largest number of training images of a rare and of a common class.
        head: Training images of the most frequent class.
        tail: Training images of the rarest class.
        novel_styles: Probability that an object outside train has a style unseen in train.
        classes: Classes of each flavour, 60 or 180.
        sprite: Smallest and largest side of a sprite in pixels.
        negatives: Negative categories of val and dev; those of train have the defaults.
    """

    seed: int = 0
    size: int = 96
    train_images: int = 200
    val_images: int = 240
    dev_images: int = 240
    pretrain_images: int = 2000
    thresholds: tuple[int, int] = (3, 14)
    head: int = 60
    tail: int = 1
    novel_styles: float = 0.15
    classes: int = 60
    sprite: tuple[int, int] = (28, 48)
    negatives: Negatives = Negatives()

    @classmethod
    def read(cls, section: dict[str, Any] | None) -> Recipe:
        """Read the `synthetic` section of a scale; missing keys have their defaults.

        Raises:
            UserError: The section is missing or has an unknown key.
        """
        if not section:
            raise UserError(
                "this scale has no `synthetic` section, so its data is not generated",
                "put the data files where the scale's `datasets` expects them",
            )
        _check_keys(section, cls, "synthetic")
        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in section.items()
        }
        if "negatives" in options:
            _check_keys(options["negatives"], Negatives, "synthetic.negatives")
            options["negatives"] = Negatives(**options["negatives"])
        return cls(**options)

    def stored(self) -> dict[str, Any]:
        """Recipe as stored in the manifest.

        Options added later are omitted at their defaults, so old manifests still match.
        """
        added_later = ("classes", "sprite")
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in added_later or value != getattr(Recipe, key)
        }


def _check_keys(section: dict[str, Any], kind: type[Recipe] | type[Negatives], where: str) -> None:
    known = sorted(field.name for field in fields(kind))
    if unknown := sorted(set(section) - set(known)):
        raise UserError(f"{where}: unknown keys {unknown}", f"use {known}")


@dataclass
class SceneObject:
    """One object of a scene: its class, its sprite, and how it is annotated.

    Attributes:
        name: Class name.
        tile: Number of its sprite in the atlas.
        labelled: Whether it has an annotation.
        speck: Annotated with a box of half a pixel, as some of LVIS are; too small for training.
    """

    name: str
    tile: int
    labelled: bool = True
    speck: bool = False


def generate(study: Study, dataset: str) -> None:
    """Write a data set of the study, `v05`, `v1` or `pretrain`; its manifest is written last."""
    recipe, job = Recipe.read(study.scale.get("synthetic")), fingerprint(study.data_job(dataset))
    write_dataset(recipe, dataset, study.paths.data(dataset), job)


def write_dataset(
    recipe: Recipe, dataset: str, folder: Path, job: str | None = None
) -> dict[str, Any]:
    """Draw all splits of a data set into `folder`.

    Args:
        recipe: Sizes, seed and class frequencies.
        dataset: `v05`, `v1` or `pretrain`.
        folder: Where annotation files, `images/` and, last, `manifest.json` are written.
        job: Fingerprint of `Study.data_job`, for the manifest.

    Returns:
        The manifest: `dataset`, `recipe`, `files` (file -> sha256) and the `sha256` of all.

    Raises:
        UserError: There is no such data set, or its images cannot hold the most frequent class.
    """
    if dataset not in VERSIONS:
        raise UserError(f"no synthetic data set {dataset!r}", f"choose one of {sorted(VERSIONS)}")
    manifest = folder / "manifest.json"
    manifest.unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    splits = plan(recipe, dataset)
    files: dict[str, str] = {}
    scenes = sum(map(len, splits.values()))
    with tqdm(total=scenes, desc=f"emoji-LVIS {dataset}", unit="scene", mininterval=2) as progress:
        for split in splits:
            files |= _write_split(recipe, dataset, split, splits[split], folder, progress)
    listing = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    record = {
        "dataset": dataset,
        "fingerprint": job,
        "recipe": recipe.stored(),
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "files": files,
    }
    write_record(manifest, record)
    return record


# Classes, their frequencies and their styles ------------------------------------------------------


@cache
def task_classes() -> dict[str, Any]:
    """Content of assets/classes.yaml: the 60 classes, their clusters, flavours and order."""
    return yaml.safe_load((ASSETS / "classes.yaml").read_text(encoding="utf-8"))


@cache
def clusters(count: int = 60) -> dict[str, str]:
    """Map each class of both flavours to its cluster of confusable classes.

    Args:
        count: Classes of each flavour, 60 or 180.
    """
    members = task_classes()["clusters"]
    if count == 180:
        more = yaml.safe_load((ASSETS / "classes_180.yaml").read_text(encoding="utf-8"))
        members = {**members, **more["clusters"]}
    return {name: cluster for cluster, names in members.items() for name in names}


@cache
def classes(dataset: str, count: int = 60) -> list[str]:
    """List the classes of a data set, the most frequent in train first.

    The 60 classes are ordered by measured difficulty (tools/order_classes.py); the 180 at random,
    with each cluster spread evenly over all ranks. Pretraining classes are equally frequent and in
    alphabetical order.
    """
    cluster_of = clusters(count)
    if dataset == "pretrain":
        return sorted(set(atlas().index["classes"]) - set(cluster_of))
    if count == 60:
        return task_classes()["order"][dataset]
    limited = task_classes()["only"].items()
    elsewhere = {name for flavour, names in limited if flavour != dataset for name in names}
    rng = random_state("order", count, dataset)
    rank = {}
    for cluster in dict.fromkeys(cluster_of.values()):
        names = [name for name in cluster_of if cluster_of[name] == cluster]
        members = [name for name in names if name not in elsewhere]
        start = rng.random_sample()
        for position, k in enumerate(rng.permutation(len(members))):
            rank[members[k]] = (position + start) / len(members)
    return sorted(rank, key=rank.__getitem__)


def image_counts(recipe: Recipe, dataset: str) -> dict[str, int]:
    """Number of training images of each class.

    A geometric sequence from `head` to `tail`; the same for all classes in pretraining.
    """
    names = classes(dataset, recipe.classes)
    if dataset == "pretrain":
        return dict.fromkeys(names, int(recipe.pretrain_images * PAIRS_PER_SCENE) // len(names))
    fall = recipe.head / recipe.tail
    return {
        name: round(recipe.tail * fall ** (1 - rank / (len(names) - 1)))
        for rank, name in enumerate(names)
    }


@cache
def styles(name: str, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Style groups of a class: those of train, and the one or two that only other splits show."""
    rng = random_state("styles", seed, name)
    groups = sorted({STYLE_GROUPS[style] for style in atlas().styles(name)})
    groups = [groups[i] for i in rng.permutation(len(groups))]
    novel = 1 if len(groups) < 4 or rng.random_sample() < 0.5 else 2
    return tuple(groups[novel:]), tuple(groups[:novel])


def choose_tile(
    name: str, rng: np.random.RandomState, recipe: Recipe, split: str, dataset: str
) -> int:
    """Draw one of the sprites of a class, in a style that the split may show."""
    groups, novel = styles(name, recipe.seed)
    if dataset == "pretrain":
        groups = groups + novel
    elif split != "train" and rng.random_sample() < recipe.novel_styles:
        groups = novel
    chosen = groups[int(rng.random_sample() * len(groups))]
    drawings = sorted(atlas().styles(name).items())
    tiles = [tile for style, tile in drawings if STYLE_GROUPS[style] == chosen]
    return tiles[int(rng.random_sample() * len(tiles))]


# Objects of each scene ----------------------------------------------------------------------------


def plan(recipe: Recipe, dataset: str) -> dict[str, list[list[SceneObject]]]:
    """Choose the objects of every scene of every split.

    Train follows the power law; val and dev show each class equally often.
    """
    counts = image_counts(recipe, dataset)
    if dataset == "pretrain":
        return {"train": plan_split(recipe, dataset, "train", counts, recipe.pretrain_images)}
    splits = {"train": plan_split(recipe, dataset, "train", counts, recipe.train_images)}
    for split, images in (("val", recipe.val_images), ("dev", recipe.dev_images)):
        equal = dict.fromkeys(counts, max(1, int(images * PAIRS_PER_SCENE) // len(counts)))
        splits[split] = plan_split(recipe, dataset, split, equal, images)
    return splits


def plan_split(
    recipe: Recipe, dataset: str, split: str, counts: dict[str, int], images: int
) -> list[list[SceneObject]]:
    """Distribute the classes over the images of a split so that all images have similar loads.

    Args:
        recipe: Seed, styles and image numbers.
        dataset: `v05`, `v1` or `pretrain`.
        split: `train`, `val` or `dev`.
        counts: Number of images of each class.
        images: Number of images; in train, the last ones have no usable label.

    Returns:
        The objects of each image.

    Raises:
        UserError: A class should appear in more images than there are.
    """
    rng = random_state("plan", recipe.seed, dataset, split)
    pretraining = dataset == "pretrain"
    empty = images // EMPTY_EVERY if split == "train" and not pretraining else 0
    unlabelled = 0 if pretraining else UNLABELLED
    usable = images - empty
    most = max(counts.values())
    if most > usable:
        raise UserError(
            f"synthetic: the most frequent class should appear in {most} images, but {split} has "
            f"only {usable}",
            "lower `head` or raise the number of images",
        )
    scenes: list[list[SceneObject]] = [[] for _ in range(images)]
    load = np.zeros(usable)
    for name, count in counts.items():
        chosen = np.argsort(load + 2.5 * rng.random_sample(usable), kind="stable")[:count]
        load[chosen] += 1
        for i in np.sort(chosen):
            second, without_label = rng.random_sample(2) < (SECOND_INSTANCE, unlabelled)
            for labelled in [True] + [True] * int(second) + [False] * int(without_label):
                tile = choose_tile(name, rng, recipe, split, dataset)
                scenes[i].append(SceneObject(name, tile, labelled))
    for i in range(usable, images):
        # Objects of the frequent third of the classes, none of them labelled.
        names = [list(counts)[int(rng.random_sample() * len(counts) / 3)] for _ in range(3)]
        tiles = [choose_tile(name, rng, recipe, split, dataset) for name in names]
        scenes[i] = [SceneObject(*pair, labelled=False) for pair in zip(names, tiles, strict=True)]
        scenes[i][0].speck = i % 2 == 0
    return [[objects[i] for i in rng.permutation(len(objects))] for objects in scenes]


# Files --------------------------------------------------------------------------------------------


def _write_split(
    recipe: Recipe,
    dataset: str,
    split: str,
    scenes: list[list[SceneObject]],
    folder: Path,
    progress: tqdm,
) -> dict[str, str]:
    """Draw a split's scenes, write images and annotation file, and return file -> sha256."""
    names = sorted(classes(dataset, recipe.classes))
    category_id = {name: i + 1 for i, name in enumerate(names)}
    style = SceneStyle(size=recipe.size, sprite=recipe.sprite)
    cluster = clusters(recipe.classes)
    # Those of train do not depend on the recipe: it may change without a training being repeated.
    negatives = Negatives() if split == "train" else recipe.negatives
    chances = negative_chances(scenes, names, cluster, negatives)
    files: dict[str, str] = {}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, objects in enumerate(scenes):
        rng = random_state("scene", recipe.seed, dataset, split, number)
        pixels, masks = draw_scene([item.tile for item in objects], rng, style)
        image, path = image_entry(dataset, split, FIRST_ID[split] + number, recipe.size, rng)
        file = folder / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not synced one by one, which would take seconds: check-data compares their digests.
        with atomic(file, durable=False) as temporary:
            Image.fromarray(pixels).save(temporary, quality=92, subsampling=0)
        files[f"images/{path}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        annotations += annotate(objects, masks, image["id"], category_id, len(annotations) + 1)
        labels = federated_labels(objects, category_id, cluster, chances, rng)
        images.append({**image, **labels})
        progress.update()
    content = {
        "info": {
            "description": f"emoji-LVIS {dataset} {split}, generated; LVIS's names and format, "
            "no photograph, addresses are only names",
            "version": VERSIONS[dataset],
            "seed": recipe.seed,
            "thresholds": list(recipe.thresholds),
        },
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": category_entries(recipe, dataset, category_id, annotations),
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True) + "\n"
    write_text(folder / f"{split}.json", text)
    files[f"{split}.json"] = hashlib.sha256(text.encode()).hexdigest()
    return files


def category_entries(
    recipe: Recipe, dataset: str, category_id: dict[str, int], annotations: list[dict]
) -> list[dict]:
    """Entries of `categories`: counts are those of the split, `frequency` is that of train."""
    cluster, train_images = clusters(recipe.classes), image_counts(recipe, dataset)
    instances = Counter(a["category_id"] for a in annotations)
    images = Counter(i for _, i in {(a["image_id"], a["category_id"]) for a in annotations})
    return [
        {
            "id": i,
            "name": name,
            "synonyms": [name],
            "synset": f"{name}.n.01",
            "def": cluster.get(name, "pretraining"),
            "image_count": images[i],
            "instance_count": instances[i],
            "frequency": group(train_images[name], recipe.thresholds),
        }
        for name, i in category_id.items()
    ]


def image_entry(
    dataset: str, split: str, image_id: int, size: int, rng: np.random.RandomState
) -> tuple[dict[str, Any], str]:
    """Entry of `images`, and the path of its file below the image folder.

    v0.5 gives a file name, v1.0 a URL, which for some images of val names train2017.
    """
    name = f"{image_id:012d}.jpg"
    entry = {
        "id": image_id,
        "width": size,
        "height": size,
        "license": 0,
        "flickr_url": "",
        "date_captured": "",
    }
    if VERSIONS[dataset] == "v0.5":
        release = "train" if split == "train" else "val"
        return {**entry, "file_name": f"COCO_{release}2014_{name}"}, name
    release = "train2017" if split == "train" or rng.random_sample() < 0.25 else "val2017"
    path = f"{release}/{name}"
    return {**entry, "coco_url": f"{URL}{path}"}, path


def annotate(
    objects: list[SceneObject],
    masks: list[np.ndarray],
    image_id: int,
    category_id: dict[str, int],
    first_id: int,
) -> list[dict]:
    """Annotations in LVIS format of the labelled objects that are visible.

    Args:
        objects: The objects of a scene.
        masks: Visible pixels of each, (size, size) bool.
        image_id: Id of the image.
        category_id: Class name -> id.
        first_id: Id of the first annotation.

    Returns:
        Entries of `annotations`; polygons and boxes (x, y, width, height) in pixels.
    """
    entries = []
    for item, mask in zip(objects, masks, strict=True):
        polygons, area = mask_to_polygons(mask)
        if item.speck and area:
            x, y = polygons[0][:2]
            polygons, area = [[x, y, x + 0.5, y, x + 0.5, y + 0.5, x, y + 0.5]], 0.25
        if (item.labelled or item.speck) and area:
            xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
            entries.append(
                {
                    "id": first_id + len(entries),
                    "image_id": image_id,
                    "category_id": category_id[item.name],
                    "segmentation": polygons,
                    "area": area,
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                }
            )
    return entries


def negative_chances(
    scenes: list[list[SceneObject]],
    names: list[str],
    cluster: dict[str, str],
    negatives: Negatives,
) -> tuple[float, float]:
    """Probabilities with which an absent class is a negative category of an image.

    Args:
        scenes: The objects of each image of a split.
        names: All classes.
        cluster: Class name -> cluster of look-alikes.
        negatives: Wanted number and share of look-alikes.

    Returns:
        The probability where the image shows no class of the same cluster, and where it shows one.

    Raises:
        UserError: More negative categories are wanted than classes are absent.
    """
    absent = [0, 0]  # pairs of an image and an absent class: without, with a look-alike
    for objects in scenes:
        present = {item.name for item in objects}
        shown = {cluster.get(name) for name in present} - {None}
        for name in names:
            absent[cluster.get(name) in shown] += name not in present
    wanted = negatives.per_image * len(scenes)
    shares = (1 - negatives.lookalikes, negatives.lookalikes)
    other, lookalike = (
        wanted * share / pairs if pairs else 0.0
        for share, pairs in zip(shares, absent, strict=True)
    )
    if max(other, lookalike) > 1:
        raise UserError(
            f"synthetic.negatives: {negatives.per_image:g} negative categories an image with "
            f"{negatives.lookalikes:.0%} look-alikes, but an image lacks only "
            f"{absent[0] / len(scenes):.1f} other classes and {absent[1] / len(scenes):.1f} "
            "look-alikes",
            "lower `per_image`, or change `lookalikes`",
        )
    return other, lookalike


def federated_labels(
    objects: list[SceneObject],
    category_id: dict[str, int],
    cluster: dict[str, str],
    chances: tuple[float, float],
    rng: np.random.RandomState,
) -> dict[str, list[int]]:
    """Federated labels of an image.

    Negative categories are drawn at random from the absent classes; not exhaustive are the classes
    with an unlabelled object.

    Args:
        objects: The objects of the scene.
        category_id: Class name -> id.
        cluster: Class name -> cluster of look-alikes.
        chances: Result of `negative_chances`.
        rng: Draws the negative categories, one number for each class: with other chances, the same
            numbers are compared with them.
    """
    present = {item.name for item in objects}
    shown = {cluster[name] for name in present if name in cluster}
    draws = rng.random_sample(len(category_id))
    negative = [
        i
        for (name, i), draw in zip(category_id.items(), draws, strict=True)
        if name not in present and draw < chances[cluster.get(name) in shown]
    ]
    partial = sorted({category_id[item.name] for item in objects if not item.labelled})
    return {"neg_category_ids": negative, "not_exhaustive_category_ids": partial}
