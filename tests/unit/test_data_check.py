"""`check` finds every fault before a training starts, lists them all, and never swaps versions."""

import json
import shutil
from types import SimpleNamespace

import pytest
from datasets import SAMPLE, load, needs_sample, tiny

from pcb.data.lvis.check import check, check_files
from pcb.errors import UserError
from pcb.synthetic.contact_sheet import contact_sheet


def entry(dataset, version=None, **changes) -> dict:
    files = {split: str(tiny(dataset) / f"{split}.json") for split in ("train", "val", "dev")}
    return {
        "version": version or {"v05": "v0.5", "v1": "v1.0"}[dataset],
        "images": str(tiny(dataset) / "images"),
        **files,
        **changes,
    }


def fault(tmp_path, files, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        check_files(files, tmp_path / "v05.check.json", **options)
    return caught.value


@pytest.mark.parametrize("dataset", ["v05", "v1"])
def test_a_good_set_passes_and_is_described(dataset, tmp_path):
    report = check_files(entry(dataset), tmp_path / "r.json", rfs_threshold=0.05)
    assert report["classes"] == 60 and report["absent"] == [] and report["warnings"] == []
    assert set(report["splits"]) == {"train", "val", "dev"}
    train = report["splits"]["train"]
    assert (train["images"], train["empty"], train["unusable"]) == (64, 2, 1) and sum(
        train["groups"].values()
    ) == 60
    assert report["repeat_factors"]["epoch"] > report["repeat_factors"]["images"] == 62


def test_check_of_a_study_writes_its_report(tmp_path):
    study = SimpleNamespace(
        scale={"datasets": {"v05": entry("v05")}, "train": {"rfs_threshold": 0.05}},
        experiments={"a": SimpleNamespace(dataset="v05", sampler="rfs")},
        paths=SimpleNamespace(
            data_check=lambda dataset: tmp_path / f"{dataset}.check.json",
            indices=tmp_path / "index",
        ),
    )
    report = check(study, "v05")
    assert load(tmp_path / "v05.check.json") == report and report["dataset"] == "v05"
    study.scale["train"]["rfs_threshold"] = 1e-3
    with pytest.raises(UserError, match="repeat factor sampling changes nothing"):
        check(study, "v05")
    study.experiments["a"].sampler = "random"
    assert check(study, "v05")["repeat_factors"]["largest"] == 1


def test_a_version_is_never_taken_for_the_other(tmp_path):
    error = fault(tmp_path, entry("v1", version="v0.5"))
    assert "is LVIS v1.0 (60 classes), the scale says v0.5" in str(
        error
    ) and "cannot stand in" in str(error)


def test_all_missing_images_are_listed_at_once(tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny("v05") / "images", images)
    gone = sorted(images.iterdir())[3:60:4]
    for path in gone:
        path.unlink()
    error = fault(tmp_path, entry("v05", images=str(images)))
    assert f"{len(gone)} image files are missing" in error.what
    assert (tmp_path / "v05.check.missing.txt").read_text().split() == [str(path) for path in gone]
    assert (
        "no such image folder"
        in fault(tmp_path, entry("v05", images=str(tmp_path / "elsewhere"))).what
    )


def test_all_faults_are_told_together(tmp_path):
    (tmp_path / "cut.json").write_text('{"images": [')
    error = fault(
        tmp_path,
        entry(
            "v05",
            val=str(tmp_path / "cut.json"),
            dev=str(tmp_path / "none.json"),
            images=str(tmp_path),
        ),
    )
    assert (
        "3 faults" in error.what
        and "at byte 12 of 12" in error.what
        and "none.json: No such file" in error.what
    )
    assert "images/" not in error.what and "image files are missing" in error.what


def test_a_class_absent_from_train_is_an_error_unless_allowed(tmp_path):
    content = load(tiny("v05") / "train.json")
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 5]
    (tmp_path / "train.json").write_text(json.dumps(content))
    name = content["categories"][4]["name"]
    error = fault(tmp_path, entry("v05", train=str(tmp_path / "train.json")))
    assert (
        f"no usable annotation of {name} (1 in all)" in error.what
        and "allow_absent_classes" in error.fix
    )
    report = check_files(
        entry("v05", train=str(tmp_path / "train.json")), tmp_path / "r.json", allow_absent=True
    )
    assert report["absent"] == [4] and name in report["warnings"][0]


def test_splits_must_agree(tmp_path):
    assert "share images" in fault(tmp_path, entry("v05", val=str(tiny("v05") / "train.json"))).what
    content = load(tiny("v05") / "val.json")
    content["categories"][0]["name"] = "unicorn"
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert (
        "differ in their classes: ambulance / unicorn (1 in all)"
        in fault(tmp_path, entry("v05", val=str(tmp_path / "val.json"))).what
    )


@needs_sample
def test_an_official_file_must_have_official_groups(tmp_path):
    real = {
        "version": "v0.5",
        "train": str(SAMPLE / "lvis_val_100.json"),
        "val": str(tiny("v05") / "val.json"),
        "images": str(SAMPLE / "images"),
    }
    error = fault(tmp_path, real, rfs_threshold=1e-3)
    assert "1040 in all" in error.what and "all factors are 1" in error.what
    content = load(SAMPLE / "lvis_val_100.json")
    content["categories"][0]["frequency"] = "f"
    (tmp_path / "spoilt.json").write_text(json.dumps(content))
    assert (
        "LVIS v0.5 has {'r': 454, 'c': 461, 'f': 315}"
        in fault(tmp_path, {**real, "train": str(tmp_path / "spoilt.json")}).what
    )
    assert (
        "is LVIS v0.5 (1230 classes), the scale says v1.0"
        in fault(tmp_path, {**real, "version": "v1.0"}).what
    )


def test_contact_sheet(tmp_path):
    from PIL import Image

    out = contact_sheet(
        tiny("v1") / "val.json",
        tiny("v1") / "images",
        tmp_path / "sheet.png",
        count=5,
        columns=3,
        side=120,
    )
    with Image.open(out) as page:
        assert page.size == (3 * 134 + 14, 64 + 2 * 134)
        assert len(page.getcolors(1 << 20)) > 1000
    with pytest.raises(UserError, match="none of the images"):
        contact_sheet(tiny("v1") / "val.json", tmp_path, tmp_path / "sheet.png")
