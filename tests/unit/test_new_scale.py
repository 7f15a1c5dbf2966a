"""`pcb new-scale`: what it decides, that its files load, and what it refuses to guess."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from long_tailed import COUNTS, edit, write_own

from pcb import cli
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.sampling import repeat_factors
from pcb.errors import UserError
from pcb.files import ROOT
from pcb.frequency import group
from pcb.planning.new_scale import Own, propose
from pcb.planning.new_scale.tail import group_thresholds, rfs_threshold
from pcb.study import load_study
from pcb.study.detector_config import detector_title


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_own(tmp_path / "data")


def own(files, **options):
    return Own(**files, **{"out": "mine.yaml", "device": "cpu"} | options)


def scale_of(proposal):
    return yaml.safe_load(proposal.files[proposal.own.scale_file])


def federated(content):
    for image in content["images"]:
        image |= {"neg_category_ids": [10, 13], "not_exhaustive_category_ids": []}


def test_the_written_scale_lays_out_table_2(files):
    proposal = propose(own(files, title='My "birds": α'))
    proposal.write()
    study = load_study("mine.yaml")
    assert study.scale["title"] == 'My "birds": α'
    assert study.scale["datasets"]["mine"]["format"] == "coco"
    rows = study.tables["table02"].rows
    assert len(rows) == 8 and {row.labels["Dataset"] for row in rows} == {'My "birds": α'}
    assert all(study.experiments[row.run].dataset == "mine" for row in rows)
    assert not any(row.paper for row in rows)
    config = study.scale["backbones"]["r50"]["config"]
    assert "half-width ResNet-18-FPN" in detector_title(config)
    comments = [line for line in Path("mine.yaml").read_text().splitlines() if "# " in line]
    assert max(map(len, comments[4:])) <= 100


def test_all_that_was_decided_is_a_comment_beside_its_value(files):
    proposal = propose(own(files))
    text = " ".join(proposal.files[proposal.own.scale_file].replace("#", " ").split()).lower()
    for topic in ("format", "classes", "groups", "RFS", "detector", "schedule"):
        assert " ".join(proposal.reasons[topic].split()).lower() in text, topic
    assert "8 trainings of 1,344 epochs" in proposal.reasons["cost"]
    assert re.search("about .* min on", proposal.reasons["cost"])


def test_groups_and_repeats_do_something(files):
    proposal = propose(own(files))
    scale = scale_of(proposal)
    thresholds = scale["datasets"]["mine"]["thresholds"]
    groups = [group(n, thresholds) for n in COUNTS]
    assert thresholds == [1, 4] and groups == list("fffcccrr")
    train = LVISIndex(files["train"], files["images"])
    factors = repeat_factors(train.labels, scale["train"]["rfs_threshold"])
    repeated = {label for label, factor in factors.classes.items() if factor > 1}
    assert repeated == {label for label, n in enumerate(COUNTS) if n < thresholds[1]}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1] * 30 + [50] * 40 + [500] * 30, (10, 100)),  # LVIS's own thresholds where they group
        ([1, 1, 1, 2, 2, 3, 4, 5, 60], (1, 3)),
        ([200, 300, 400, 500, 600, 700], (300, 500)),  # COCO: no class is rare in LVIS's sense
        ([7, 7, 7], (7, 8)),
        ([2, 9], (2, 9)),
    ],
)
def test_group_thresholds(counts, expected):
    thresholds, _ = group_thresholds(counts)
    assert thresholds == expected and thresholds[0] < thresholds[1]


def test_the_rfs_threshold_is_above_the_rarest_class():
    assert rfs_threshold(100, 1, 100_170) == 0.001  # the released value, by the same rule
    for common, fewest, images in ((1, 1, 1000), (333, 332, 100_003), (5, 5, 7)):
        assert fewest / images < rfs_threshold(common, fewest, images) <= 1


def test_groups_of_the_file_are_kept(files):
    def name_groups(content):
        for k, category in enumerate(content["categories"]):
            category["frequency"] = "fffccrrr"[k]

    for split in ("train", "val"):
        edit(files[split], name_groups)
    proposal = propose(own(files))
    assert "thresholds" not in scale_of(proposal)["datasets"]["mine"]
    assert "3 rare, 2 common, 3 frequent" in proposal.reasons["groups"]


def test_absent_classes_are_allowed_and_named(files):
    for split in ("train", "val"):
        edit(files[split], lambda c: c["categories"].append({"id": 99, "name": "moa"}))
    proposal = propose(own(files))
    assert scale_of(proposal)["allow_absent_classes"] is True
    assert "train has no usable object of moa (1 in all)" in proposal.reasons["classes"]


# The format is found, or asked for ----------------------------------------------------------------


def test_federated_labels_are_found(files):
    edit(files["val"], federated)
    assert scale_of(propose(own(files)))["datasets"]["mine"]["format"] == "lvis"


@pytest.mark.parametrize("case", ["train only", "some images", "no negatives"])
def test_an_ambiguous_format_is_an_error_that_names_the_option(files, case):
    def some(content):
        federated(content)
        for image in content["images"][::2]:
            del image["neg_category_ids"]

    def none_listed(content):
        federated(content)
        for image in content["images"]:
            image["neg_category_ids"] = []

    changes = {"train only": federated, "some images": some, "no negatives": none_listed}
    edit(files["train" if case == "train only" else "val"], changes[case])
    with pytest.raises(UserError, match="the format is not clear") as error:
        propose(own(files))
    assert "--format coco" in error.value.fix and "--format lvis" in error.value.fix
    assert scale_of(propose(own(files, format="coco")))["datasets"]["mine"]["format"] == "coco"


def test_federated_scoring_needs_federated_labels(files):
    with pytest.raises(UserError, match="--format lvis, but 3 of 3 images lack"):
        propose(own(files, format="lvis"))


def test_faults_of_the_data_are_found_before_anything_is_written(files, tmp_path):
    (Path(files["images"]) / "train-3.jpg").unlink()
    edit(files["val"], lambda c: c["categories"][0].update(name="another class"))
    with pytest.raises(UserError) as error:
        propose(own(files))
    assert "train-3.jpg" in str(error.value) and "another class" in str(error.value)
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(
    "case", ["empty", "not JSON", "folder", "no image", "dev not federated", "images a file"]
)
def test_no_fix_is_in_the_scale_that_is_not_written_yet(files, case):
    options, val = {}, Path(files["val"])
    if case == "dev not federated":
        options["dev"] = str(val.with_name("dev.json"))
        Path(options["dev"]).write_text(val.read_text().replace("val-", "dev-"))
        for photo in val.parent.glob("photos/val-*"):
            photo.with_name(photo.name.replace("val-", "dev-")).write_bytes(photo.read_bytes())
        edit(files["val"], federated)
    elif case == "folder":
        files["val"] = files["images"]
    elif case == "images a file":
        files["images"] = files["train"]
    elif case == "no image":
        (val.parent / "photos/val-0.jpg").unlink()
    else:
        val.write_text("{}" if case == "empty" else "[1, 2")
    with pytest.raises(UserError) as error:
        propose(own(files, **options))
    assert "YAML" not in str(error.value)
    option = {"dev not federated": "--format coco", "images a file": "--images"}
    option |= {"no image": "--images"}
    assert error.value.fix.endswith(option.get(case, "name another file with --val"))


def test_one_class_is_no_long_tail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"shows 1 of 1 class\b"):
        propose(own(write_own(tmp_path / "data", counts=[3])))


@pytest.mark.parametrize(
    "name", ["v05", "pretrain", "My birds", "2020", "../x", "mini", "lvis", "mini_r18"]
)
def test_names_that_cannot_be_one(files, name):
    with pytest.raises(UserError, match="cannot be the name of a scale"):
        propose(own(files, name=name))


def test_the_name_of_a_shipped_scale_needs_another_not_force(files, capsys):
    options = [word for key, value in files.items() for word in (f"--{key}", value)]
    for more in ([], ["--force"], ["--dry-run"]):
        assert cli.main(["new-scale", *options, "--device", "cpu", "--name", "mini", *more]) == 2
        assert capsys.readouterr().err.endswith("\nfix: choose another --name\n")


# The detector and the schedule ------------------------------------------------------------------


def test_on_cuda_it_is_the_papers_detector_at_the_size_of_the_images(files, tmp_path):
    small = scale_of(propose(own(files, device="cuda", gpus=2)))
    assert small["hardware"]["gpus_per_job"] == 2 and small["train"]["amp"] == "fp16"
    proposal = propose(own(files, device="cuda"))
    proposal.write()
    title = detector_title(load_study("mine.yaml").scale["backbones"]["r50"]["config"])
    assert title == "ResNet-50-FPN, 267x160"
    assert "pcb download --scale mine.yaml\n" in proposal.next_commands()
    large = write_own(tmp_path / "large", counts=[3, 1], size=(640, 480))
    config = scale_of(propose(own(large, device="cuda")))["backbones"]["r50"]["config"]
    assert config == "configs/mmdet/lvis_r50.py"


def test_the_small_detectors_image_fits_objects_and_memory(files, monkeypatch):
    def side(**settings):
        proposal = propose(own(files, **settings))
        detector = next(text for path, text in proposal.files.items() if path.suffix == ".py")
        return re.search(r'"Resize", scale=\((\d+), \1\)', detector)[1], detector

    assert side()[0] == "160"  # objects of 24 of 120 pixels: the first side with 32
    monkeypatch.setattr("pcb.planning.new_scale.detector.CACHE_BUDGET", 40e6)
    assert side()[0] == "128"
    monkeypatch.setattr("pcb.planning.new_scale.detector.CACHE_BUDGET", 0)
    assert "RandomChoiceResize" in side()[1], "which turns the cache off"


def test_gpus_without_cuda_are_refused(files):
    with pytest.raises(UserError, match="--gpus 2, but the device is cpu") as error:
        propose(own(files, gpus=2))
    assert "--device cuda" in error.value.fix


def test_a_batch_that_gpus_cannot_share(files):
    with pytest.raises(UserError, match="16 images cannot be shared by 3 GPUs"):
        propose(own(files, device="cuda", gpus=3))


@pytest.mark.parametrize("epochs", [2, 3, 4, 24, 96])
def test_the_schedule_keeps_the_papers_proportions(files, epochs):
    schedule = scale_of(propose(own(files, epochs=epochs)))["schedule"]
    first, last = schedule["milestones"][0], schedule["milestones"][-1]
    assert schedule["epochs"] == epochs and 1 <= first <= last < epochs
    assert schedule["pcb_start_epoch"] == first + 1 <= epochs
    if epochs % 24 == 0:
        assert schedule["milestones"] == [epochs * 16 // 24, epochs * 22 // 24]


def test_little_data_is_shown_more_often(files):
    scale = scale_of(propose(own(files)))  # 30 images: 4 iterations of 8
    assert scale["schedule"] == {"epochs": 168, "milestones": [112, 154], "pcb_start_epoch": 113}


# The command ------------------------------------------------------------------------------------


def command(files, *more):
    options = [word for key, value in files.items() for word in (f"--{key}", value)]
    return cli.main(["new-scale", *options, "--device", "cpu", "--out", "mine.yaml", *more])


def test_the_command_writes_reports_and_says_what_is_next(files, capsys):
    assert command(files) == 0
    out = capsys.readouterr().out
    assert "snakemake --cores all --config scale=mine.yaml -- table02" in out
    assert sorted(p.name for p in Path().glob("mine*")) == ["mine.py", "mine.yaml"]
    before = Path("mine.yaml").read_text()
    assert command(files, "--epochs", "3") == 2
    error = capsys.readouterr().err
    assert "mine.yaml exists" in error and "choose another --out" in error
    assert Path("mine.yaml").read_text() == before
    assert command(files, "--epochs", "3", "--force") == 0
    assert "epochs: 3" in Path("mine.yaml").read_text()


def test_the_next_commands_survive_a_shell(files, capsys):
    Path("my photos").mkdir()
    assert command(files, "--out", "my photos/a.yaml") == 0
    out = capsys.readouterr().out
    assert "pcb check-data --scale 'my photos/a.yaml'" in out
    assert "--config 'scale=my photos/a.yaml' -- table02" in out


def test_force_replaces_no_file_of_somebody_else(files, capsys):
    Path("mine.yaml").write_text("name: mine\n")
    assert command(files, "--force") == 2
    assert "was not written by `pcb new-scale`" in capsys.readouterr().err


def test_a_dry_run_prints_the_files_and_writes_none(files, capsys):
    assert command(files, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "in_place_of: v05" in out and '_base_ = "' in out
    assert not list(Path().glob("mine*"))


def test_a_dry_run_writes_nothing_about_faulty_data_either(files, capsys):
    (Path(files["images"]) / "train-3.jpg").unlink()
    before = sorted(Path().rglob("*"))
    assert command(files, "--dry-run") == 2
    error = capsys.readouterr().err
    assert "1 image file is missing" in error and "listed in" not in error
    assert sorted(Path().rglob("*")) == before
    assert command(files) == 2
    listing = Path("results/mine/data/mine.check.missing.txt")
    assert str(listing) in capsys.readouterr().err
    assert listing.read_text() == f"{files['images']}/train-3.jpg\n"


def test_without_out_the_files_are_where_scales_are(files):
    assert [p.relative_to(ROOT).as_posix() for p in propose(own(files, out=None)).files] == [
        "configs/mmdet/mine.py",
        "configs/scale/mine.yaml",
    ]


@pytest.mark.parametrize("option", ["train", "val", "images", "weights"])
def test_a_missing_file_is_an_error_with_its_option(files, capsys, option):
    assert command({**files, option: "nowhere"}) == 2
    error = capsys.readouterr().err
    assert "nowhere does not exist" in error and f"--{option}" in error
