"""A fingerprint follows from what a job reads: the recipe's keys, and the content of files."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from pcb.cli.selection import notice_of_other_checkout
from pcb.data.lvis.check import check
from pcb.errors import UserError
from pcb.files import ROOT, sha256
from pcb.planning.stale import Stale
from pcb.planning.status import status
from pcb.reporting.current import SITE, settings_of
from pcb.study import Study, canonical, contents, fingerprint, load_study
from pcb.study.contents import config_digest
from pcb.study.load import merge, read_yaml
from pcb.study.recipe import UNREAD, recipe_of
from pcb.study.records import write_record
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


# Content of files ---------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A study of a user's own data and weights; `own()` loads it as another process would."""
    drawn = tmp_path / "drawn"
    recipe = Recipe(train_images=30, val_images=14, dev_images=14, head=4, thresholds=(1, 2))
    generate.write_dataset(recipe, "v05", drawn)
    files = {"version": "v0.5", "images": str(drawn / "images")}
    files |= {split: str(drawn / f"{split}.json") for split in ("train", "val")}
    weights, config = tmp_path / "weights.pth", tmp_path / "base.py"
    weights.write_bytes(b"weights")
    config.write_text(f"_base_ = {str(ROOT / 'configs/mmdet/mini_r18.py')!r}\nmodel = dict()\n")
    backbone = {"weights": str(weights), "config": str(config)}

    def load(**changes):
        scale = {
            "results": str(tmp_path / "results"),
            "datasets": {"v05": {**files, **changes}},
            "backbones": {"r50": backbone},
        }
        resolved = copy.deepcopy(load_study("smoke").resolved)
        resolved["scale"] = merge(resolved["scale"], scale)
        for dataset in resolved["scale"]["datasets"].values():
            dataset.pop("dev", None)
        study = Study(resolved)
        study.contents.looks_at_images = True
        return study

    check(load(), "v05")
    return load


def changes(before, after):
    """What of one run changed: its training, its evaluation."""
    return {
        "training": before.fingerprint(BEST, 0) != after.fingerprint(BEST, 0),
        "evaluation": before.evaluation(BEST, 0) != after.evaluation(BEST, 0),
    }


def relabel(path):
    """Give every annotation the next label; neither size nor times of the file change much."""
    content = json.loads(Path(path).read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 60 + 1
    Path(path).write_text(json.dumps(content))


def alter(path):
    """Change a byte of a file and restore its time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_nothing_changes_in_another_process(own):
    assert changes(own(), own()) == {"training": False, "evaluation": False}


@pytest.mark.parametrize("split, training", [("train", True), ("val", False)])
def test_relabelled_annotations_change_what_reads_them(own, split, training):
    before = own()
    before.fingerprint(BEST, 0), before.evaluation(BEST, 0)
    before.contents.save()
    old = {kind: getattr(before, kind)(BEST, 0) for kind in ("fingerprint", "evaluation")}
    relabel(own().scale["datasets"]["v05"][split])
    assert (own().fingerprint(BEST, 0) != old["fingerprint"]) == training
    assert own().evaluation(BEST, 0) != old["evaluation"]


@pytest.mark.parametrize("split, training", [("train", True), ("val", False)])
def test_a_replaced_image_of_the_same_size_and_time_changes_what_reads_it(own, split, training):
    before = own()
    old = before.fingerprint(BEST, 0), before.evaluation(BEST, 0)
    first = {"train": 100_001, "val": 200_001}[split]
    alter(Path(before.scale["datasets"]["v05"]["images"]) / f"{first:012d}.jpg")
    assert (own().fingerprint(BEST, 0) != old[0]) == training
    assert own().evaluation(BEST, 0) != old[1]
    assert Stale(own()).check("v05") == f"image files of {split} changed"


@pytest.mark.parametrize("move", ["copy", "move", "link"])
def test_data_that_were_copied_moved_or_linked_are_the_same_data(own, tmp_path, move):
    before = own()
    old = before.fingerprint(BEST, 0), before.evaluation(BEST, 0)
    source, target = tmp_path / "drawn", tmp_path / "elsewhere"
    if move == "copy":
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    elif move == "move":
        source.rename(target)
    else:
        target.symlink_to(source)
    entry = {split: str(target / f"{split}.json") for split in ("train", "val")}
    after = own(**entry, images=str(target / "images"))
    assert (after.fingerprint(BEST, 0), after.evaluation(BEST, 0)) == old


def test_weights_and_config_count_by_their_content(own, tmp_path):
    old = own().fingerprint(BEST, 0), own().evaluation(BEST, 0)
    alter(tmp_path / "weights.pth")
    assert own().fingerprint(BEST, 0) != old[0]
    alter(tmp_path / "weights.pth")
    assert own().fingerprint(BEST, 0) == old[0]
    config = tmp_path / "base.py"
    config.write_text("# a comment\n" + config.read_text())
    config_digest.cache_clear()
    assert (own().fingerprint(BEST, 0), own().evaluation(BEST, 0)) == old
    config.write_text(config.read_text().replace("dict()", "dict(train_cfg=dict(x=1))"))
    config_digest.cache_clear()
    assert own().fingerprint(BEST, 0) != old[0]
    config_digest.cache_clear()


def test_an_inherited_config_counts(own, tmp_path):
    base, config = tmp_path / "inherited.py", tmp_path / "base.py"
    base.write_text(config.read_text())
    config.write_text("_base_ = 'inherited.py'\n")
    config_digest.cache_clear()
    before = own().fingerprint(BEST, 0)
    base.write_text(base.read_text().replace("dict()", "dict(neck=dict(x=1))"))
    config_digest.cache_clear()
    assert own().fingerprint(BEST, 0) != before
    config_digest.cache_clear()


def test_a_file_is_read_once_for_its_digest(own, monkeypatch):
    study = own()
    study.fingerprint(BEST, 0)
    study.contents.save()
    monkeypatch.setattr("pcb.study.contents.sha256", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr("pcb.study.contents.sampled", lambda path: pytest.fail(f"{path} was read"))
    own().fingerprint(BEST, 0)


def test_a_folder_in_place_of_an_annotation_file_is_named(own):
    study = own()
    path = Path(study.scale["datasets"]["v05"]["train"])
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory") as error:
        study.fingerprint(BEST, 0)
    assert str(path) in error.value.what
    assert "cannot be read" in Stale(study).check("v05")


@pytest.mark.parametrize("name", ["train.json", "images/000000100001.jpg"])
def test_a_generated_data_set_that_was_edited_is_drawn_again(tmp_path, name):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    generate.generate(study, "v05")
    check(study, "v05")
    stale = Stale(load_study("smoke", overrides={"results": str(tmp_path)}))
    assert stale.data("v05") is None and stale.check("v05") is None
    alter(study.paths.data("v05") / name)
    assert "1 file differs from what was drawn" in stale.data("v05")
    if name.startswith("images"):
        with pytest.raises(UserError, match="are not the ones that") as error:
            check(study, "v05")
        assert "`pcb make-data v05`" in error.value.fix
        generate.generate(study, "v05")
        check(study, "v05")
        assert stale.data("v05") is None


def test_an_edited_asset_draws_the_data_again_and_trains_again(tmp_path, monkeypatch):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    before = study.fingerprint(BEST, 0)
    assets = shutil.copytree(contents.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(contents, "ASSETS", assets)
    assert study.fingerprint(BEST, 0) == before
    write_record(
        study.paths.data_manifest("v05"), {"fingerprint": fingerprint(study.data_job("v05"))}
    )
    assert Stale(study).data("v05") is None
    with (assets / "classes.yaml").open("a") as file:
        file.write("# edited\n")
    assert study.fingerprint(BEST, 0) != before and Stale(study).data("v05")


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("seeds: [010]", "010 is not a decimal number"),
        ("lr: .nan", ".nan is not a finite number"),
        ("lr: -.inf", "-.inf is not a finite number"),
    ],
)
def test_numbers_that_yaml_reads_otherwise_are_refused(tmp_path, text, message):
    path = tmp_path / "scale.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_yaml(path)


def test_the_shipped_numbers_are_read_as_before():
    assert load_study("mini").scale["train"]["lr"] == 0.02
    assert load_study("mini").seeds == (0,)


def test_tilde_is_the_home_folder_and_braces_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    study = load_study("smoke", overrides={"results": "~/r"})
    assert study.paths.root == tmp_path / "r/smoke"
    assert study.scale["datasets"]["v05"]["train"].startswith(f"{tmp_path}/r/smoke/")
    with pytest.raises(UserError, match="has braces"):
        load_study("smoke", overrides={"results": "{x}"})


def test_another_checkout_around_the_working_directory_is_named(tmp_path):
    assert notice_of_other_checkout(ROOT) is None and notice_of_other_checkout(tmp_path) is None
    (tmp_path / "pcb").mkdir()
    (tmp_path / "pcb/__main__.py").touch()
    (tmp_path / "Snakefile").touch()
    assert str(tmp_path) in notice_of_other_checkout(tmp_path / "pcb")


@pytest.mark.parametrize(
    "loss, message",
    [("no_such_module:Loss", "no module 'no_such_module'"), ("json:Loss", "no class 'Loss'")],
)
def test_an_unknown_module_or_class_of_a_loss_is_named(tmp_path, loss, message):
    path = tmp_path / "study.yaml"
    path.write_text(f"losses:\n  mine: {{class: '{loss}', title: Mine}}\n")
    with pytest.raises(UserError, match=message):
        load_study("smoke", overlay=path)


def test_after_in_a_new_table_is_refused(tmp_path):
    row = {"id": "a", "labels": ["x"], "run": BEST, "after": "b"}
    table = {"title": "T", "claim": "C", "labels": ["L"], "columns": ["AP"], "rows": [row]}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({"tables": {"table99": table}}))
    with pytest.raises(UserError, match="`after` places a row in a shipped table"):
        load_study("smoke", overlay=path)


def test_a_failed_job_does_not_count_as_running(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    log = study.paths.log(f"train/{BEST}/seed0")
    log.parent.mkdir(parents=True)
    log.write_text("epoch 3/24\n")
    assert "epoch 3/24" in status(study)
    log.write_text("epoch 3/24\nerror: no space\nfix: free it\n")
    assert "fix: free it" not in status(study)


def test_damaged_starting_weights_are_made_again(own):
    study = own()
    path = study.paths.weights("r50")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"copied weights")
    record = {"fingerprint": fingerprint(study.pretrain_job("r50")), "sha256": sha256(path)}
    write_record(study.paths.weights_record("r50"), record)
    assert Stale(study).weights("r50") is None
    alter(path)
    assert Stale(own()).weights("r50") == "damaged"


def test_the_identity_of_a_page_has_no_path(tmp_path):
    here, there = (load_study("smoke", overrides={"results": str(tmp_path / d)}) for d in "ab")
    for target in (*here.targets, SITE):
        assert settings_of(here, target) == settings_of(there, target)
        assert str(tmp_path) not in canonical(settings_of(here, target))
