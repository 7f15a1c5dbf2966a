"""A fingerprint follows from what a job reads: the recipe's keys, and the content of files."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest

from pcb.study import Study, load_study
from pcb.study.recipe import UNREAD, recipe_of
from pcb.synthetic import generate
from pcb.synthetic.generate import Recipe

BEST = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
SMALL = {
    "seed": 0,
    "size": 64,
    "train_images": 40,
    "val_images": 14,
    "dev_images": 14,
    "pretrain_images": 40,
    "thresholds": [1, 2],
    "head": 4,
    "tail": 1,
    "novel_styles": 0.15,
    "classes": 60,
    "sprite": [20, 30],
    "negatives": {"per_image": 9.4, "lookalikes": 0.02},
}
CHANGED = {
    "seed": 1,
    "size": 72,
    "train_images": 41,
    "val_images": 15,
    "dev_images": 15,
    "pretrain_images": 41,
    "thresholds": [1, 3],
    "head": 5,
    "tail": 2,
    "novel_styles": 0.9,
    "classes": 180,
    "sprite": [26, 40],
    "negatives": {"per_image": 3.0, "lookalikes": 0.2},
}
KEYS = [field.name for field in fields(Recipe)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draw a split, `drawn(recipe, split)`: file -> sha256."""

    def draw(section, split):
        recipe = Recipe.read({key: value for key, value in section.items() if key in KEYS})
        dataset, name = ("pretrain", "train") if split == "pretrain" else ("v05", split)
        scenes = generate.plan(recipe, dataset)[name]
        folder = tmp_path_factory.mktemp("drawn")
        return generate._write_split(
            recipe, dataset, name, scenes, folder, generate.tqdm(disable=True)
        )

    return draw


@pytest.fixture(scope="module")
def before(drawn):
    return {split: drawn(SMALL, split) for split in UNREAD}


@pytest.mark.parametrize("key", KEYS)
def test_a_recipe_s_key_is_in_a_split_s_identity_if_and_only_if_it_changes_its_files(
    key, before, drawn
):
    changed = SMALL | {key: CHANGED[key]}
    if key == "classes":
        changed |= {"train_images": 60}
    for split in UNREAD:
        same_files = drawn(changed, split) == before[split]
        assert same_files == (recipe_of(changed, split) == recipe_of(SMALL, split)), split


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_other_splits_alone_retrains_nothing(key):
    study = load_study("mini")
    resolved = copy.deepcopy(study.resolved)
    resolved["scale"]["synthetic"][key] = CHANGED[key]
    changed = Study(resolved)
    retrains = changed.fingerprint(BEST, 0) != study.fingerprint(BEST, 0)
    assert retrains == (key not in UNREAD["train"])
    evaluates = changed.eval_job(BEST, 0) != study.eval_job(BEST, 0)
    assert evaluates == (key not in UNREAD["train"] & UNREAD["val"])
