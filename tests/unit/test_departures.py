"""A scale's departures from LVIS follow from its configs, and none is missing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import yaml

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study import load_study
from pcb.study.departures import (
    NO_DEPARTURE,
    UNSET,
    compare,
    data_title,
    departures,
    matches,
    show,
    table,
)
from pcb.study.detector_config import detector_title, flatten, read_detector_config

CONFIGS = sorted((ROOT / "configs/mmdet").glob("*.py"))
PLUGIN = sorted((ROOT / "docs/plugin").glob("*.py"))
LVIS = yaml.safe_load((ROOT / "configs/scale/lvis.yaml").read_text())


@pytest.fixture(scope="module")
def lvis() -> dict:
    return load_study("lvis").scale


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_detector_configs_are_read_as_mmengine_reads_them(path):
    from mmengine.config import Config

    assert read_detector_config(path) == Config.fromfile(path).to_dict()


@pytest.mark.parametrize("path", PLUGIN, ids=lambda path: path.stem)
def test_configs_that_inherit_from_mmdet_are_read_as_mmengine_reads_them(path):
    from mmengine.config import Config

    def without_scope(value):
        if isinstance(value, dict):
            return {k: without_scope(v) for k, v in value.items() if k != "_scope_"}
        return [without_scope(v) for v in value] if isinstance(value, list) else value

    assert read_detector_config(path) == without_scope(Config.fromfile(path).to_dict())


def test_an_inherited_mapping_is_merged_or_deleted_as_mmengine_does(tmp_path):
    from mmengine.config import Config

    (tmp_path / "a.py").write_text("x = dict(p=dict(q=1, r=[1, 2]), s=dict(t=1))\nn = 3\n")
    (tmp_path / "b.py").write_text("m = dict(u=1)\n")
    path = tmp_path / "c.py"
    path.write_text(
        '_base_ = ["a.py", "b.py"]\n'
        "x = dict(p=dict(_delete_=True, q=dict(v=2)), s=dict(t=5, w=dict(z=1)))\n"
        "k = 1 + 1\n"
    )
    assert read_detector_config(path) == Config.fromfile(path).to_dict()


def test_a_missing_or_broken_config_is_named(tmp_path):
    with pytest.raises(UserError, match="no such detector config"):
        read_detector_config(tmp_path / "absent.py")
    (tmp_path / "broken.py").write_text("model = dict(")
    with pytest.raises(UserError, match="not a valid detector config"):
        read_detector_config(tmp_path / "broken.py")


def different_settings(scale: dict) -> set[str]:
    """Settings in which a scale or its detectors differ from LVIS's, by plain comparison."""
    pairs = [("", flatten(scale), flatten(LVIS))]
    for key in scale["backbones"]:
        configs = [s["backbones"][key]["config"] for s in (scale, LVIS)]
        pairs.append((f"{key}.", *(flatten(read_detector_config(config)) for config in configs)))
    return {
        prefix + key
        for prefix, ours, theirs in pairs
        for key in {**ours, **theirs}
        if ours.get(key, UNSET) != theirs.get(key, UNSET) and not matches(key, NO_DEPARTURE)
    }


@pytest.mark.parametrize("name", ["mini", "smoke", "midi", "lvis"])
def test_every_difference_is_accounted_for_once(name):
    scale = load_study(name).scale
    keys = [key for departure in compare(scale) for key in departure.keys]
    assert len(keys) == len(set(keys)) and set(keys) == different_settings(scale)


@pytest.mark.parametrize("name", ["mini", "smoke", "midi"])
def test_every_difference_of_a_shipped_scale_is_put_into_words(name):
    lines = departures(load_study(name).scale)
    assert not [line for line in lines if line.startswith("Other")]
    assert all("LVIS: " in part for line in lines for part in line.split("; "))


@pytest.mark.parametrize("name", ["mini", "smoke", "midi"])
def test_departures_do_not_depend_on_the_order_of_keys(name):
    scale = load_study(name).scale
    by_key = json.loads(json.dumps(scale, sort_keys=True))  # as in study.json, which jobs read
    assert departures(by_key) == departures(scale)


def test_a_page_lists_the_weights_of_its_own_detectors_only():
    scale = load_study("mini").scale
    (training,) = (x for x in departures(scale, ["r50", "r50"]) if x.startswith("Training"))
    assert "mini_r18" in training and "mini_r34" not in training and "resnet101" not in training


def test_the_lvis_scale_has_no_departure(lvis):
    assert departures(lvis) == []


def test_hardware_and_paths_are_no_departure(lvis):
    moved = copy.deepcopy(lvis)
    moved["hardware"].update(gpus_per_job=1, accumulate=4, device="cpu")
    moved["datasets"]["v05"].update(train="/data/train.json", images="/data/images")
    moved["backbones"]["r50"]["weights"] = "/weights/resnet50-0676ba61.pth"
    moved |= {"name": "mine", "title": "Mine", "results": "/results", "seeds": [0, 1, 2]}
    assert departures(moved) == []


@pytest.mark.parametrize("section", ["train", "pcb", "test"])
def test_a_change_of_any_recipe_setting_names_both_values(lvis, section):
    for key, value in lvis[section].items():
        changed = copy.deepcopy(lvis)
        new = {"amp": "bf16", "identity_start": True, "clip_grad": 35}.get(key)
        changed[section][key] = new = new or value * 2
        (line,) = departures(changed)
        ours, _, theirs = line.partition(" (LVIS: ")
        if key == "ema_memory_scale":  # the sentence names the γ that follows
            new, value = 0.995, 0.99
        assert show(new) in ours and show(value) in theirs, line


def test_a_setting_that_no_sentence_covers_is_listed_by_its_key(lvis, tmp_path):
    config = tmp_path / "wide.py"
    config.write_text(
        f'_base_ = "{ROOT}/configs/mmdet/lvis_r50.py"\n'
        "model = dict(backbone=dict(norm_eval=False), test_cfg=dict(rcnn=dict(nms=dict(min=0.1))))"
    )
    changed = copy.deepcopy(lvis)
    changed["backbones"]["r50"]["config"] = str(config)
    changed["allow_absent_classes"] = True
    (line,) = departures(changed)
    assert line.startswith("Other: ")
    assert "allow_absent_classes: yes (LVIS: not set)" in line
    assert "r50: model.backbone.norm_eval: no (LVIS: yes)" in line
    assert "r50: model.test_cfg.rcnn.nms.min: 0.1 (LVIS: not set)" in line


def test_a_detector_of_another_structure_is_listed_by_key(lvis, tmp_path):
    config = tmp_path / "other.py"
    config.write_text(
        "model = dict(type='FCOS', backbone=dict(type='SwinTransformer', depths=[2, 2, 6, 2]))\n"
        "train_pipeline = [dict(type='LoadImageFromFile')]\n"
    )
    changed = copy.deepcopy(lvis)
    changed["backbones"]["r50"]["config"] = str(config)
    assert detector_title(config) == "SwinTransformer"
    keys = {key for departure in compare(changed) for key in departure.keys}
    assert keys == different_settings(changed)
    other = next(line for line in departures(changed) if line.startswith("Other"))
    assert "r50: model.neck.out_channels: not set (LVIS: 256)" in other


def test_settings_with_the_same_words_are_listed_by_their_key(lvis, tmp_path):
    """Fewer sizes between the same smallest and largest one change the training."""
    config = tmp_path / "two_sizes.py"
    config.write_text(
        f'_base_ = "{ROOT}/configs/mmdet/lvis_r50.py"\n'
        "train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadWindowMasks',"
        " with_bbox=True, with_mask=True), dict(type='RandomChoiceResize', keep_ratio=True,"
        " scales=[(1333, 640), (1333, 800)]), dict(type='RandomFlip', prob=0.5),"
        " dict(type='PackDetInputs')]"
    )
    changed = copy.deepcopy(lvis)
    changed["backbones"]["r50"]["config"] = str(config)
    (line,) = departures(changed)
    assert line.startswith("Other: r50: train_pipeline.Resize.scales: 1,333, 640, 1,333, 800 (")


def test_weights_are_named_by_file_and_origin(lvis):
    changed = copy.deepcopy(lvis)
    changed["backbones"]["r50"]["weights"] = "random"
    (line,) = departures(changed)
    assert line.startswith("Training: starting weights: random and resnet101-63fe2227.pth,")
    mini = copy.deepcopy(load_study("mini").scale)
    for backbone in mini["backbones"].values():
        backbone["weights"] = "pretrain"
    (line,) = (line for line in departures(mini) if line.startswith("Training"))
    assert "starting weights: pretrained here (LVIS: resnet50-0676ba61.pth and" in line
    assert "pretraining of 2,000 scenes, 2,000 iterations of 16 with AdamW" in line


@pytest.mark.parametrize(
    "config, title",
    [
        ("lvis_r50", "ResNet-50-FPN, 1333x800"),
        ("lvis_r101", "ResNet-101-FPN, 1333x800"),
        ("midi_r50", "ResNet-50-FPN, 533x320"),
        ("mini_r18", "half-width ResNet-18-FPN, 96 px (backbone, FPN and RPN frozen)"),
        ("mini_r34", "half-width ResNet-34-FPN, 96 px (backbone, FPN and RPN frozen)"),
    ],
)
def test_a_detector_is_named_after_its_config(config, title):
    assert detector_title(f"configs/mmdet/{config}.py") == title
    short = detector_title(f"configs/mmdet/{config}.py", frozen=False)
    assert short == title.partition(" (")[0]


def test_generated_data_are_named_emoji_lvis(lvis):
    assert data_title(lvis) == "LVIS" and data_title(load_study("mini").scale) == "emoji-LVIS"


def test_mmengine_and_torch_are_not_imported():
    code = (
        "import sys; from pcb.study import load_study; from pcb.study.departures import departures;"
        " departures(load_study('mini').scale); print({'torch', 'mmengine'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "set()", out.stderr


def test_the_sentences_on_validation_match_the_generator_and_the_sample():
    from pcb.data.lvis.federated import LVIS_SAMPLE
    from pcb.synthetic.generate import PAIRS_PER_SCENE

    (data,) = (line for line in departures(load_study("mini").scale) if line.startswith("Data"))
    shown = next(part for part in data.split("; ") if part.startswith("validation shows"))
    absent = next(part for part in data.split("; ") if part.startswith("classes verified"))
    assert f"{PAIRS_PER_SCENE:g} classes an image" in shown.partition("LVIS: ")[0]
    assert f"{LVIS_SAMPLE['present']:.1f} classes an image" in shown.partition("LVIS: ")[2]
    assert f"{LVIS_SAMPLE['negative']:.1f} of {LVIS_SAMPLE['classes']:,}" in absent
    shares = LVIS_SAMPLE["negative_share"]
    assert shares["f"] / shares["r"] == pytest.approx(3, abs=0.1), "a third as often"


def test_the_table_has_what_the_lines_say():
    scale = load_study("mini").scale
    groups = {group["name"]: group["lines"] for group in table(scale)}
    for text in departures(scale):
        name, _, said = text.partition(": ")
        assert groups[name] and all(
            f"{line['here']} (LVIS: {line['lvis']})" in said for line in groups[name]
        )
        assert said.count("(LVIS: ") == len(groups[name])
