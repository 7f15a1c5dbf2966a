"""emoji-LVIS obeys the rules of LVIS, and the same recipe gives the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import pytest
from datasets import SAMPLE, TINY, load, needs_sample, tiny
from pycocotools import mask as coco

from pcb.data.lvis.federated import LVIS_SAMPLE, federated_statistics
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.polygons import mask_to_polygons
from pcb.errors import UserError
from pcb.frequency import THRESHOLDS, group
from pcb.study import load_study
from pcb.synthetic.generate import (
    EMPTY_EVERY,
    PAIRS_PER_SCENE,
    Negatives,
    Recipe,
    classes,
    clusters,
    image_counts,
    negative_chances,
    plan,
    styles,
    write_dataset,
)
from pcb.synthetic.scenes import SceneStyle, atlas, draw_scene, random_state

FLAVOURS = ("v05", "v1")


@pytest.mark.parametrize("dataset", [*FLAVOURS, "pretrain"])
def test_the_same_seed_gives_the_same_bytes_under_another_hash_seed(dataset, tmp_path):
    program = (
        "import json, sys; from pathlib import Path;"
        "from pcb.synthetic.generate import Recipe, write_dataset;"
        "write_dataset(Recipe.read(json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))"
    )
    recipe = json.dumps(asdict(TINY))
    subprocess.run(
        [sys.executable, "-c", program, recipe, dataset, str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    once, again = load(tiny(dataset) / "manifest.json"), load(tmp_path / "manifest.json")
    assert once == again
    for name, digest in again["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_another_seed_gives_other_scenes(tmp_path):
    first = write_dataset(replace(TINY, seed=1), "pretrain", tmp_path)["files"]
    second = load(tiny("pretrain") / "manifest.json")["files"]
    assert set(first.values()).isdisjoint(second.values())


def test_another_seed_combines_classes_to_other_scenes():
    """Not only sprites and their places: which classes meet in an image depends on the seed."""

    def names(recipe):
        scenes = plan(recipe, "v05")
        return {split: [sorted(o.name for o in s) for s in scenes[split]] for split in scenes}

    first, second = names(TINY), names(replace(TINY, seed=1))
    assert names(TINY) == first
    for split in first:
        assert first[split] != second[split]


def test_bytes_equal_the_committed_digests():
    """JPEG files are compared where the installed encoder is the locked one."""
    files = load(tiny("v05") / "manifest.json")["files"]
    golden = load(Path(__file__).parent / "emoji_golden.json")
    annotations = {name: digest for name, digest in files.items() if name.endswith(".json")}
    assert annotations == golden["annotations"]
    for split, digest in golden["objects"].items():  # annotations without federated labels
        content = load(tiny("v05") / f"{split}.json")
        text = json.dumps([content["annotations"], content["categories"]], separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == digest
    if PIL.__version__ == golden["pillow"]:
        images = "".join(
            f"{name} {digest}\n" for name, digest in sorted(files.items()) if name.endswith(".jpg")
        )
        assert hashlib.sha256(images.encode()).hexdigest() == golden["images"]


@pytest.mark.parametrize("dataset", FLAVOURS)
def test_train_follows_the_power_law_and_shows_every_class(dataset):
    index = LVISIndex(tiny(dataset) / "train.json", tiny(dataset) / "images")
    wanted = image_counts(TINY, dataset)
    assert len(index.classes) == 60
    assert dict(zip(index.classes, index.image_count, strict=True)) == wanted
    assert max(wanted.values()) == TINY.head and min(wanted.values()) == 1
    groups = dict(zip(index.classes, index.frequency(), strict=True))
    assert groups == {name: group(count, TINY.thresholds) for name, count in wanted.items()}
    assert index.missing_images == []


def test_every_cluster_has_rare_and_frequent_classes():
    for dataset in FLAVOURS:
        groups = {}
        for name, count in image_counts(Recipe(), dataset).items():
            groups.setdefault(clusters()[name], set()).add(group(count, Recipe().thresholds))
        assert len(groups) == 8 and all({"r", "f"} <= found for found in groups.values()), groups


def test_classes_are_lvis_names_and_the_flavours_overlap_but_differ():
    v05, v1, pretrain = (set(classes(d)) for d in ("v05", "v1", "pretrain"))
    assert len(v05 & v1) == 52 and len(v05 - v1) == len(v1 - v05) == 8
    assert len(pretrain) == 136 and pretrain.isdisjoint(v05 | v1)


def test_flavours_name_their_files_like_the_releases():
    old, new = load(tiny("v05") / "val.json")["images"], load(tiny("v1") / "val.json")["images"]
    assert all(image["file_name"].startswith("COCO_val2014_") for image in old)
    assert not any("file_name" in image for image in new)
    assert {image["coco_url"].split("/")[-2] for image in new} == {"train2017", "val2017"}


@pytest.mark.parametrize("dataset", FLAVOURS)
def test_masks_areas_and_boxes_match_the_rasterisation_of_coco(dataset):
    content = load(tiny(dataset) / "val.json")
    for annotation in content["annotations"]:
        mask = coco.decode(
            coco.merge(coco.frPyObjects(annotation["segmentation"], TINY.size, TINY.size))
        )
        assert abs(int(mask.sum()) - annotation["area"]) <= max(2, 0.01 * annotation["area"])
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x, y, x + width, y + height)


@cache
def large() -> LVISIndex:
    """The val split of a data set with as many images as at the mini scale."""
    folder = tiny("v05").parent / "large"
    recipe = Recipe(train_images=64, dev_images=13, head=8, thresholds=TINY.thresholds)
    write_dataset(recipe, "v05", folder)
    return LVISIndex(folder / "val.json")


def test_as_many_negative_categories_and_look_alikes_as_in_lvis():
    """LVIS_SAMPLE stands for the real sample, whose statistics the next test compares with it."""
    ours, lvis = federated_statistics(large(), clusters()), LVIS_SAMPLE
    errors = [s["negative_deviation"] / s["images"] ** 0.5 for s in (ours, lvis)]
    assert abs(ours["negative"] - lvis["negative"]) < 2 * np.hypot(*errors)
    assert 0.001 < ours["lookalikes"] < 0.041, "95 % interval of the sample's 2 of 172"
    partial = [s["not_exhaustive"] / s["present"] for s in (ours, lvis)]
    pairs = ours["images"] * ours["present"], lvis["images"] * lvis["present"]
    error = (partial[1] * (1 / pairs[0] + 1 / pairs[1])) ** 0.5
    assert abs(partial[0] - partial[1]) < 2 * error
    by_group = ours["negative_share"].values()
    assert max(by_group) < 1.1 * min(by_group), "no group of classes is preferred"


def as_printed(measured, known):
    """Measured numbers with as many digits as the known ones have."""
    if isinstance(known, dict):
        return {key: as_printed(measured[key], value) for key, value in known.items()}
    return round(measured, len(str(known).partition(".")[2]))


@needs_sample
def test_the_committed_statistics_are_those_of_the_real_sample():
    index = LVISIndex(SAMPLE / "lvis_val_100.json")
    measured = federated_statistics(index, clusters(180))
    assert as_printed(measured, LVIS_SAMPLE) == LVIS_SAMPLE
    assert Negatives().per_image == pytest.approx(measured["negative"], abs=0.05)
    assert federated_statistics(index, {})["lookalikes"] == 0  # no class is in a cluster
    assert "lookalikes" not in federated_statistics(index)


@pytest.mark.parametrize("dataset", FLAVOURS)
def test_negative_categories_are_absent_and_some_objects_are_not_labelled(dataset):
    content = load(tiny(dataset) / "val.json")
    present: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in content["images"]:
        partial = set(image["not_exhaustive_category_ids"])
        assert set(image["neg_category_ids"]).isdisjoint(present[image["id"]] | partial)
        assert partial <= present[image["id"]]
    assert any(image["not_exhaustive_category_ids"] for image in content["images"])


def test_the_negatives_of_a_recipe_change_the_federated_labels_of_val_and_dev_only(tmp_path):
    dense = replace(TINY, negatives=Negatives(per_image=20, lookalikes=0.1))
    files = write_dataset(dense, "v05", tmp_path)["files"]
    sparse = load(tiny("v05") / "manifest.json")["files"]
    assert {name for name in files if files[name] != sparse[name]} == {"val.json", "dev.json"}
    for split in ("val", "dev"):
        many, few = load(tmp_path / f"{split}.json"), load(tiny("v05") / f"{split}.json")
        for key in ("annotations", "categories"):
            assert many[key] == few[key]
        for more, fewer in zip(many["images"], few["images"], strict=True):
            negative = set(more.pop("neg_category_ids")), set(fewer.pop("neg_category_ids"))
            assert negative[1] <= negative[0] and more == fewer


@pytest.mark.parametrize("count", [60, 180])
def test_the_number_of_negative_categories_does_not_depend_on_the_number_of_classes(count):
    recipe = Recipe(classes=count, train_images=400)
    scenes, cluster = plan(recipe, "v05")["val"], clusters(count)
    names = classes("v05", count)
    other, lookalike = negative_chances(scenes, names, cluster, recipe.negatives)
    expected = [0.0, 0.0]
    for objects in scenes:
        present = {item.name for item in objects}
        shown = {cluster[name] for name in present}
        for name in set(names) - present:
            expected[cluster[name] in shown] += lookalike if cluster[name] in shown else other
    assert sum(expected) / len(scenes) == pytest.approx(9.4)
    assert expected[1] / sum(expected) == pytest.approx(0.02)


def test_more_negative_categories_than_absent_classes_are_an_error(tmp_path):
    for negatives in (Negatives(per_image=58), Negatives(lookalikes=1.0, per_image=40)):
        with pytest.raises(UserError, match="lacks only"):
            write_dataset(replace(TINY, negatives=negatives), "v05", tmp_path)


def test_some_train_images_have_no_usable_label():
    index = LVISIndex(tiny("v05") / "train.json", tiny("v05") / "images")
    empty = [
        image["id"] for image, labels in zip(index.images, index.labels, strict=True) if not labels
    ]
    specks = [a for a in index.annotations if a["image_id"] in empty]
    assert len(empty) == TINY.train_images // EMPTY_EVERY and specks, (
        "one has no annotation, one an annotation too small to use"
    )


def test_val_shows_each_class_equally_often_and_train_never_shows_its_new_styles():
    counts = Counter(LVISIndex(tiny("v05") / "val.json").image_count)
    assert list(counts) == [int(TINY.val_images * PAIRS_PER_SCENE) // 60]
    for name in classes("v05"):
        train, novel = styles(name, 0)
        assert train and novel and not set(train) & set(novel)


def test_outlines_of_known_shapes():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:6] = True
    assert mask_to_polygons(mask)[1] == 12 and sorted(mask_to_polygons(mask)[0][0]) == sorted(
        [2, 1, 6, 1, 6, 4, 2, 4]
    )
    mask[2, 3] = False
    assert mask_to_polygons(mask)[1] == 12, "a hole is filled"
    mask[4, 6] = True
    polygons, area = mask_to_polygons(mask)
    assert len(polygons) == 2 and area == 13, "pixels that touch at a corner only are apart"
    assert mask_to_polygons(np.zeros((4, 4), bool)) == ([], 0)


def test_scene_masks_are_disjoint_and_every_sprite_stays_visible():
    tiles = [atlas().styles(name)["noto"] for name in classes("v05")[:5]]
    visible = []
    for number in range(20):
        _, masks = draw_scene(tiles, random_state("test", number), SceneStyle())
        assert np.sum(masks, axis=0).max() == 1
        visible += [mask.any() for mask in masks]
    assert all(visible)


def test_mistakes_in_a_recipe_are_reported(tmp_path):
    with pytest.raises(UserError, match="no `synthetic` section"):
        Recipe.read(None)
    with pytest.raises(UserError, match=r"unknown keys.*colour"):
        Recipe.read({"colour": 1})
    with pytest.raises(UserError, match=r"synthetic.negatives: unknown keys.*share"):
        Recipe.read({"negatives": {"share": 1}})
    with pytest.raises(UserError, match="60 images, but train has only 39"):
        write_dataset(Recipe(train_images=40), "v05", tmp_path)
    with pytest.raises(UserError, match="no synthetic data set 'coco'"):
        write_dataset(TINY, "coco", tmp_path)


# 180 classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", FLAVOURS)
def test_the_midi_scale_has_180_classes_in_the_groups_of_lvis(dataset):
    recipe = Recipe.read(load_study("midi").scale["synthetic"])
    counts, cluster = image_counts(recipe, dataset), clusters(180)
    assert len(counts) == 180
    assert set(classes(dataset)) < set(counts) < set(atlas().index["classes"])
    assert set(classes("pretrain", 180)).isdisjoint(classes("v05", 180) + classes("v1", 180))
    groups = Counter(group(count, recipe.thresholds) for count in counts.values())
    assert recipe.thresholds == THRESHOLDS and min(groups.values()) >= 50, groups
    ranks = {name: rank for rank, name in enumerate(counts)}
    for members in ([n for n in counts if cluster[n] == c] for c in set(cluster.values())):
        mean = sum(ranks[name] for name in members) / len(members)
        assert len(members) < 5 or 55 < mean < 125, (
            "a cluster has frequent, common and rare classes"
        )
    assert list(counts) != list(image_counts(recipe, "v1" if dataset == "v05" else "v05"))


def test_sprites_can_be_enlarged_and_defaults_stay_out_of_the_manifest():
    _, (mask,) = draw_scene(
        [atlas().styles("owl")["noto"]],
        random_state("test"),
        SceneStyle(size=128, sprite=(90, 90), rotation=0.0),
    )
    rows, columns = np.nonzero(mask)
    assert 80 <= max(np.ptp(rows), np.ptp(columns)) <= 92, "a sprite of 64 pixels, enlarged"
    assert {"classes", "sprite"}.isdisjoint(TINY.stored()), "old manifests still match"
    assert TINY.stored()["negatives"] == {"per_image": 9.4, "lookalikes": 0.02}
    assert Recipe.read({"classes": 180, "sprite": [40, 96]}).stored()["sprite"] == (40, 96)
