"""emoji-LVIS: a small long-tailed instance segmentation set in LVIS format, drawn from a seed.

    generate(study, "v05")       # results/<scale>/data/v05/{train,val,dev}.json, images/, manifest.json

It obeys LVIS's own rules: a power law of classes with rare ones in the same cluster as frequent ones, federated
labels (negative and not-exhaustive categories), images without usable labels, and the two flavours of file naming.
Some drawing styles appear only outside train, so that there is something to generalise to. Images and annotations
depend on the recipe alone: the same bytes on every machine (see pcb/synthetic/scenes.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from pcb.data.lvis.polygons import mask_to_polygons
from pcb.errors import UserError
from pcb.files import atomic, write_json, write_text
from pcb.frequency import group
from pcb.study import Study
from pcb.synthetic.scenes import ASSETS, Look, atlas, draw, random_state

# Drawing styles that look alike count as one, so that "unseen in train" means unseen.
STYLE_GROUPS = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji": "fluent",
    "fxemoji": "fxemoji",
    "emojione": "emojione",
}
FIRST_ID = {
    "train": 100_001,
    "val": 200_001,
    "dev": 300_001,
}  # image ids, as COCO's unique over all splits
URL = "http://images.cocodataset.org/"  # LVIS v1.0 names an image's file by this address's last two parts
LARGE = Path(__file__).with_name("large.yaml")
VERSIONS = {"v05": "v0.5", "v1": "v1.0", "pretrain": "v0.5"}


@dataclass(frozen=True)
class Recipe:
    """A scale's `synthetic` section. `thresholds`: train images up to which a class is rare, and up to which common."""

    seed: int = 0
    size: int = 96
    train_images: int = 200
    val_images: int = 240
    dev_images: int = 240
    pretrain_images: int = 2000
    thresholds: tuple[int, int] = (3, 14)
    head: int = 60  # train images of the most frequent class, and of the rarest
    tail: int = 1
    novel_styles: float = (
        0.15  # chance that an object outside train has a style that train never shows
    )
    classes: int = 60  # or 180: those of large.yaml too
    sprite: tuple[int, int] = (28, 48)  # side of a sprite, pixels

    OBJECTS = 4.75  # (image, class) pairs per scene outside train, all classes alike
    SECOND = 0.1  # chance that a scene shows another instance of a class
    UNLABELLED = 0.05  # chance that it shows one which nobody labelled: the category is "not exhaustive" there
    NEGATIVE = (
        0.5  # chance that an absent class outside the present ones' clusters is verified absent
    )
    EMPTY = 32  # one train image in so many has no usable label

    @classmethod
    def read(cls, synthetic: dict | None) -> Recipe:
        """From the scale's `synthetic` mapping. Raises `UserError` for a missing section or an unknown key."""
        if not synthetic:
            raise UserError(
                "this scale has no `synthetic` section, so its data is not generated",
                "put the files where `datasets` says",
            )
        unknown = sorted(set(synthetic) - {f.name for f in fields(cls)})
        if unknown:
            raise UserError(
                f"synthetic: unknown keys {unknown}", f"use {sorted(f.name for f in fields(cls))}"
            )
        return cls(
            **{
                **synthetic,
                **{
                    pair: tuple(synthetic.get(pair, getattr(cls, pair)))
                    for pair in ("thresholds", "sprite")
                },
            }
        )

    def told(self) -> dict:
        """As the manifest tells it: what came to the recipe later only where it is not as before, so that old manifests stay."""
        later = {"classes": Recipe.classes, "sprite": Recipe.sprite}
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in later or json.dumps(value) != json.dumps(later[key])
        }


@dataclass
class Thing:
    """One object of a scene: its class, its sprite, and how it is annotated."""

    name: str
    tile: int
    labelled: bool = True
    speck: bool = (
        False  # annotated with a box of half a pixel, as LVIS has some: no training can use it
    )


def generate(study: Study, dataset: str) -> None:
    """Write the data set `dataset` ('v05', 'v1' or 'pretrain') below `study.paths.data(dataset)`, its manifest last."""
    write_dataset(
        Recipe.read(study.scale.get("synthetic")),
        dataset,
        study.paths.data(dataset),
        study.paths.data_manifest(dataset),
    )


def write_dataset(recipe: Recipe, dataset: str, folder: Path, manifest: Path | None = None) -> dict:
    """Draw every split of `dataset` into `folder`; return the manifest (file -> sha256), which is written last."""
    if dataset not in VERSIONS:
        raise UserError(f"no synthetic data set {dataset!r}", f"choose one of {sorted(VERSIONS)}")
    manifest = manifest or folder / "manifest.json"
    manifest.unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    plans = plan(recipe, dataset)
    files: dict[str, str] = {}
    with tqdm(
        total=sum(map(len, plans.values())),
        desc=f"emoji-LVIS {dataset}",
        unit="scene",
        mininterval=2,
    ) as progress:
        for split, scenes in plans.items():
            write_split(recipe, dataset, split, scenes, folder, files, progress)
    whole = hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in sorted(files.items())).encode()
    ).hexdigest()
    record = {"dataset": dataset, "recipe": recipe.told(), "sha256": whole, "files": files}
    write_json(manifest, record)
    return record


# Which classes, and how often --------------------------------------------------------------------------------------


@cache
def assets() -> dict:
    return yaml.safe_load((ASSETS / "classes.yaml").read_text())


@cache
def clusters(count: int = 60) -> dict[str, str]:
    """Class -> cluster of confusable classes, over both flavours."""
    found = assets()["clusters"]
    if count == 180:
        found = {**found, **yaml.safe_load(LARGE.read_text())["clusters"]}
    return {name: cluster for cluster, names in found.items() for name in names}


@cache
def classes(dataset: str, count: int = 60) -> list[str]:
    """Class names of a data set, most frequent in train first (pretraining: alphabetical, all alike).

    The 60 are dealt by measured difficulty (tools/deal_classes.py). The 180 are dealt at random, each cluster evenly over all ranks.
    """
    known = clusters(count)
    if dataset == "pretrain":
        return sorted(set(atlas().index["classes"]) - set(known))
    if count == 60:
        return assets()["order"][dataset]
    elsewhere = {
        name for flavour, names in assets()["only"].items() if flavour != dataset for name in names
    }
    rng = random_state("order", count, dataset)
    rank = {}
    for cluster in dict.fromkeys(known.values()):
        members = [name for name in known if known[name] == cluster and name not in elsewhere]
        start = rng.random_sample()
        rank |= {
            members[k]: (place + start) / len(members)
            for place, k in enumerate(rng.permutation(len(members)))
        }
    return sorted(rank, key=rank.__getitem__)


def image_counts(recipe: Recipe, dataset: str) -> dict[str, int]:
    """Train images of each class: a geometric fall from `head` to `tail`; for pretraining the same for all."""
    names = classes(dataset, recipe.classes)
    if dataset == "pretrain":
        return dict.fromkeys(names, int(recipe.pretrain_images * recipe.OBJECTS) // len(names))
    fall = recipe.head / recipe.tail
    return {
        name: round(recipe.tail * fall ** (1 - rank / (len(names) - 1)))
        for rank, name in enumerate(names)
    }


@cache
def styles(name: str, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Style groups of a class: those of train, and the one or two that only appear elsewhere."""
    rng = random_state("styles", seed, name)
    groups = sorted({STYLE_GROUPS[s] for s in atlas().styles(name)})
    groups = [groups[i] for i in rng.permutation(len(groups))]
    held = 1 if len(groups) < 4 or rng.random_sample() < 0.5 else 2
    return tuple(groups[held:]), tuple(groups[:held])


def choose_tile(
    name: str, rng: np.random.RandomState, recipe: Recipe, split: str, dataset: str
) -> int:
    groups, novel = styles(name, recipe.seed)
    if dataset == "pretrain":
        groups = groups + novel
    elif split != "train" and rng.random_sample() < recipe.novel_styles:
        groups = novel
    group = groups[int(rng.random_sample() * len(groups))]
    tiles = [
        tile for style, tile in sorted(atlas().styles(name).items()) if STYLE_GROUPS[style] == group
    ]
    return tiles[int(rng.random_sample() * len(tiles))]


# Which objects in which scene ---------------------------------------------------------------------------------------


def plan(recipe: Recipe, dataset: str) -> dict[str, list[list[Thing]]]:
    """Split -> scenes -> things, with train's power law and the same number of each class in val and dev."""
    counts = {"train": image_counts(recipe, dataset)}
    images = {"train": recipe.pretrain_images if dataset == "pretrain" else recipe.train_images}
    if dataset != "pretrain":
        for split, number in (("val", recipe.val_images), ("dev", recipe.dev_images)):
            images[split] = number
            names = classes(dataset, recipe.classes)
            counts[split] = dict.fromkeys(names, max(1, int(number * recipe.OBJECTS) // len(names)))
    return {
        split: plan_split(recipe, dataset, split, counts[split], images[split]) for split in images
    }


def plan_split(
    recipe: Recipe, dataset: str, split: str, counts: dict[str, int], images: int
) -> list[list[Thing]]:
    """Deal each class to as many images as `counts` says, evenly filled; the train images without labels come last."""
    rng = random_state("plan", recipe.seed, dataset, split)
    empty = images // recipe.EMPTY if split == "train" and dataset != "pretrain" else 0
    unlabelled = 0 if dataset == "pretrain" else recipe.UNLABELLED
    usable = images - empty
    if max(counts.values()) > usable:
        raise UserError(
            f"synthetic: the most frequent class is to appear in {max(counts.values())} of {usable} {split} images",
            "lower `head` or raise the number of images",
        )
    scenes: list[list[Thing]] = [[] for _ in range(images)]
    load = np.zeros(usable)
    for name, count in counts.items():
        chosen = np.argsort(load + 2.5 * rng.random_sample(usable), kind="stable")[:count]
        load[chosen] += 1
        for i in np.sort(chosen):
            draws = rng.random_sample(2)
            labelled = (
                [True] + [True] * (draws[0] < recipe.SECOND) + [False] * (draws[1] < unlabelled)
            )
            scenes[i] += [
                Thing(name, choose_tile(name, rng, recipe, split, dataset), flag)
                for flag in labelled
            ]
    for i in range(usable, images):
        names = [
            list(counts)[int(rng.random_sample() * len(counts) / 3)] for _ in range(3)
        ]  # of the frequent third
        scenes[i] = [
            Thing(name, choose_tile(name, rng, recipe, split, dataset), False) for name in names
        ]
        scenes[i][0].speck = i % 2 == 0
    return [[things[i] for i in rng.permutation(len(things))] for things in scenes]


# Files ----------------------------------------------------------------------------------------------------------------


def write_split(
    recipe: Recipe,
    dataset: str,
    split: str,
    scenes: list[list[Thing]],
    folder: Path,
    files: dict[str, str],
    progress: tqdm,
) -> None:
    """Draw the scenes, write them and the split's annotation file; add their sha256 to `files`."""
    names, cluster = sorted(classes(dataset, recipe.classes)), clusters(recipe.classes)
    category_id = {name: i + 1 for i, name in enumerate(names)}
    images, annotations = [], []
    for number, things in enumerate(scenes):
        rng = random_state("scene", recipe.seed, dataset, split, number)
        pixels, masks = draw(
            [thing.tile for thing in things], rng, Look(size=recipe.size, sprite=recipe.sprite)
        )
        image = image_entry(dataset, split, FIRST_ID[split] + number, recipe.size, rng)
        path = folder / "images" / image.pop("path")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            Image.fromarray(pixels).save(temporary, quality=92, subsampling=0)
        files[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        annotations += annotate(things, masks, image["id"], category_id, len(annotations))
        image.update(federated(things, category_id, rng, recipe))
        images.append(image)
        progress.update()
    info = {
        "description": f"emoji-LVIS {dataset} {split}, generated; LVIS's names and format, no photograph, addresses are only names",
        "version": VERSIONS[dataset],
        "seed": recipe.seed,
        "thresholds": list(recipe.thresholds),
    }
    counted = image_counts(recipe, dataset)
    instances = Counter(a["category_id"] for a in annotations)
    appearing = Counter(c for _, c in {(a["image_id"], a["category_id"]) for a in annotations})
    categories = [
        {
            "id": i,
            "name": name,
            "synonyms": [name],
            "synset": f"{name}.n.01",
            "def": cluster.get(name, "pretraining"),
            "image_count": appearing[i],
            "instance_count": instances[i],
            "frequency": group(counted[name], recipe.thresholds),
        }
        for name, i in category_id.items()
    ]
    whole = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True) + "\n"
    write_text(folder / f"{split}.json", text)
    files[f"{split}.json"] = hashlib.sha256(text.encode()).hexdigest()


def image_entry(
    dataset: str, split: str, image_id: int, size: int, rng: np.random.RandomState
) -> dict:
    """An entry of `images` and the `path` of its file: v0.5 names a file, v1.0 an address (some of val's in train2017)."""
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
        return {
            **entry,
            "file_name": f"COCO_{'train' if split == 'train' else 'val'}2014_{name}",
            "path": name,
        }
    place = "train2017" if split == "train" or rng.random_sample() < 0.25 else "val2017"
    return {**entry, "coco_url": f"{URL}{place}/{name}", "path": f"{place}/{name}"}


def annotate(
    things: list[Thing],
    masks: list[np.ndarray],
    image_id: int,
    category_id: dict[str, int],
    first: int,
) -> list[dict]:
    """LVIS annotations of the labelled things: polygons of what is visible, their area and box (x, y, width, height)."""
    found = []
    for thing, mask in zip(things, masks, strict=True):
        polygons, area = mask_to_polygons(mask)
        if thing.speck and area:
            x, y = polygons[0][:2]
            polygons, area = [[x, y, x + 0.5, y, x + 0.5, y + 0.5, x, y + 0.5]], 0.25
        if (thing.labelled or thing.speck) and area:
            xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            found.append(
                {
                    "id": first + len(found) + 1,
                    "image_id": image_id,
                    "category_id": category_id[thing.name],
                    "segmentation": polygons,
                    "area": area,
                    "bbox": box,
                }
            )
    return found


def federated(
    things: list[Thing], category_id: dict[str, int], rng: np.random.RandomState, recipe: Recipe
) -> dict:
    """Categories verified absent (the cluster mates of what is there, and some others), and those not labelled exhaustively."""
    cluster = clusters(recipe.classes)
    present = {thing.name for thing in things}
    mates = {cluster[name] for name in present if name in cluster}
    draws = rng.random_sample(len(category_id))
    absent = [
        i
        for (name, i), draw in zip(category_id.items(), draws, strict=True)
        if name not in present and (cluster.get(name) in mates or draw < recipe.NEGATIVE)
    ]
    partial = sorted({category_id[thing.name] for thing in things if not thing.labelled})
    return {"neg_category_ids": absent, "not_exhaustive_category_ids": partial}
