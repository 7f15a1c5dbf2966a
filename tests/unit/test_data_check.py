"""`check` finds every fault before a training starts and knows which data equals a release."""

import copy
import json
import shutil

import pytest
from datasets import SAMPLE, load, needs_sample, tiny
from PIL import Image

from pcb.data.lvis.check import check, check_files
from pcb.data.lvis.releases import RELEASES, matching_release, version_by_classes
from pcb.errors import UserError
from pcb.study import load_study
from pcb.study.records import read_record
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
def test_a_correct_data_set_passes_and_is_described(dataset, tmp_path):
    report = check_files(entry(dataset), tmp_path / "r.json", rfs_threshold=0.05)
    assert report["classes"] == 60 and report["absent"] == [] and report["warnings"] == []
    assert set(report["splits"]) == {"train", "val", "dev"}
    train = report["splits"]["train"]
    assert (train["images"], train["empty"], train["unusable"]) == (64, 2, 1)
    assert sum(train["groups"].values()) == 60
    assert report["repeat_factors"]["epoch"] > report["repeat_factors"]["images"] == 62


def test_check_of_a_study_writes_its_report(tmp_path):
    def study(**train):
        """A study of the tiny data set as a user's own."""
        overrides = {"results": str(tmp_path), "datasets": {"v05": entry("v05")}, "train": train}
        return load_study("smoke", overrides=overrides)

    report = check(study(rfs_threshold=0.05), "v05")
    path = study().paths.data_check("v05")
    assert read_record(path) == report and report["dataset"] == "v05"
    with pytest.raises(UserError, match="repeat factor sampling changes nothing"):
        check(study(rfs_threshold=1e-3), "v05")
    unsampled = study(rfs_threshold=1e-3)
    unsampled.experiments.clear()
    assert check(unsampled, "v05")["repeat_factors"]["largest"] == 1


def test_a_version_never_replaces_the_other(tmp_path):
    error = str(fault(tmp_path, entry("v1", version="v0.5")))
    assert "is LVIS v1.0 (60 classes), the scale expects v0.5" in error
    assert "cannot replace" in error


def test_all_missing_images_are_listed_at_once(tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny("v05") / "images", images)
    removed = sorted(images.iterdir())[3:60:4]
    for path in removed:
        path.unlink()
    error = fault(tmp_path, entry("v05", images=str(images)))
    assert f"{len(removed)} image files are missing" in error.what
    listing = tmp_path / "v05.check.missing.txt"
    assert listing.read_text().split() == [str(path) for path in removed]
    error = fault(tmp_path, entry("v05", images=str(tmp_path / "elsewhere")))
    assert "no such image folder" in error.what


def test_all_faults_are_reported_together(tmp_path):
    (tmp_path / "cut.json").write_text('{"images": [')
    val, dev = str(tmp_path / "cut.json"), str(tmp_path / "none.json")
    error = fault(tmp_path, entry("v05", val=val, dev=dev, images=str(tmp_path)))
    assert "3 faults" in error.what and "at byte 12 of 12" in error.what
    assert "none.json: No such file" in error.what
    assert "images/" not in error.what and "image files are missing" in error.what


def test_a_class_absent_from_train_is_an_error_unless_allowed(tmp_path):
    content = load(tiny("v05") / "train.json")
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 5]
    (tmp_path / "train.json").write_text(json.dumps(content))
    name = content["categories"][4]["name"]
    files = entry("v05", train=str(tmp_path / "train.json"))
    error = fault(tmp_path, files)
    assert f"no usable annotation of {name} (1 in all)" in error.what
    assert "allow_absent_classes" in error.fix
    report = check_files(files, tmp_path / "r.json", allow_absent=True)
    assert report["absent"] == [4] and name in report["warnings"][0]


def test_splits_must_agree(tmp_path):
    assert "share images" in fault(tmp_path, entry("v05", val=str(tiny("v05") / "train.json"))).what
    content = load(tiny("v05") / "val.json")
    content["categories"][0]["name"] = "unicorn"
    (tmp_path / "val.json").write_text(json.dumps(content))
    error = fault(tmp_path, entry("v05", val=str(tmp_path / "val.json")))
    assert "differ in their classes: ambulance / unicorn (1 in all)" in error.what


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
    error = fault(tmp_path, {**real, "version": "v1.0"})
    assert "is LVIS v0.5 (1230 classes), the scale expects v1.0" in error.what
    content = load(SAMPLE / "lvis_val_100.json")
    content["categories"][0]["frequency"] = "f"
    (tmp_path / "changed.json").write_text(json.dumps(content))
    error = fault(tmp_path, {**real, "train": str(tmp_path / "changed.json")})
    assert "LVIS v0.5 has {'r': 454, 'c': 461, 'f': 315}" in error.what


# Data that equals a release -----------------------------------------------------------------------


def released_counts(version) -> dict:
    """The report's entries for the released files."""
    release = RELEASES[version]
    return {
        split: {"images": images, "annotations": annotations, "groups": dict(release.groups)}
        for split, (images, annotations) in release.sizes.items()
    }


def test_releases_are_recognised_by_their_number_of_classes():
    assert [release.classes for release in RELEASES.values()] == [1230, 1203]
    assert version_by_classes(1230) == "v0.5" and version_by_classes(1203) == "v1.0"
    assert version_by_classes(60) is None


@pytest.mark.parametrize("version", RELEASES)
def test_the_counts_of_a_release_match_it(version):
    splits = released_counts(version)
    assert matching_release(version, splits) == version
    assert matching_release(version, {**splits, "dev": {"images": 1}}) == version


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("key", ["images", "annotations"])
def test_one_image_or_annotation_less_matches_no_release(version, split, key):
    splits = released_counts(version)
    splits[split][key] -= 1
    assert matching_release(version, splits) is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_groups_or_a_missing_split_match_no_release(split):
    splits = released_counts("v1.0")
    splits[split]["groups"] = {"r": 338, "c": 460, "f": 405}
    assert matching_release("v1.0", splits) is None
    splits = released_counts("v1.0")
    del splits[split]
    assert matching_release("v1.0", splits) is None


def test_counts_of_one_version_do_not_match_the_other():
    assert matching_release("v0.5", released_counts("v1.0")) is None
    assert matching_release("another", released_counts("v1.0")) is None


@pytest.mark.parametrize("dataset", ["v05", "v1"])
def test_emoji_lvis_matches_no_release(dataset, tmp_path):
    assert check_files(entry(dataset), tmp_path / "r.json")["matches_release"] is None


def official_file(path, images) -> str:
    """Write an annotation file with the classes and groups of LVIS v1.0 and some images."""
    groups = "".join(group * count for group, count in RELEASES["v1.0"].groups.items())
    square = {"bbox": [0, 0, 9, 9], "area": 81, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    content = {
        "images": [
            {"id": i, "width": 40, "height": 40, "coco_url": f"http://x/train2017/{i:012d}.jpg"}
            for i in images
        ],
        "annotations": [{**square, "id": i, "image_id": i, "category_id": 1} for i in images],
        "categories": [
            {"id": i, "name": f"class {i}", "frequency": group} for i, group in enumerate(groups, 1)
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_an_official_looking_file_short_of_images_warns_and_matches_no_release(
    tmp_path, monkeypatch
):
    (tmp_path / "train2017").mkdir()
    for i in range(5):
        (tmp_path / f"train2017/{i:012d}.jpg").touch()
    files = {
        "version": "v1.0",
        "train": official_file(tmp_path / "train.json", range(3)),
        "val": official_file(tmp_path / "val.json", range(3, 5)),
        "images": str(tmp_path),
    }
    report = check_files(files, tmp_path / "r.json", allow_absent=True)
    assert report["matches_release"] is None
    train, val, absent = report["warnings"]
    assert "3 images and 3 annotations; LVIS v1.0 train was released with 100170" in train
    assert "val was released with 19809 and 244707" in val and "no usable annotation" in absent
    # The same files match a release of their size, so that only the counts decide.
    release = copy.deepcopy(RELEASES["v1.0"])
    release.sizes.update(train=(3, 3), val=(2, 2))
    monkeypatch.setitem(RELEASES, "v1.0", release)
    report = check_files(files, tmp_path / "r.json", allow_absent=True)
    assert report["matches_release"] == "v1.0" and len(report["warnings"]) == 1


def test_contact_sheet(tmp_path):
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
