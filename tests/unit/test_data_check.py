"""`check` finds every fault before a training starts and knows which data equals a release."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import SAMPLE, by_hand, load, needs_sample, tiny
from PIL import Image
from pycocotools import mask

from pcb.data.lvis.check import check, check_files
from pcb.data.lvis.index import LVISIndex
from pcb.data.lvis.releases import RELEASES, matching_release, version_by_classes
from pcb.data.lvis.segmentation import decode_counts
from pcb.errors import UserError
from pcb.evaluation.ground_truth import GroundTruth
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


# Image files --------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """A copy of the tiny data set: the entry of the scale, and the images of train."""
    folder = Path(shutil.copytree(tiny("v05"), tmp_path / "v05"))
    files = {split: str(folder / f"{split}.json") for split in ("train", "val", "dev")}
    images = LVISIndex(folder / "train.json", folder / "images").image_paths
    return {"version": "v0.5", "images": str(folder / "images"), **files}, list(images.values())


def test_image_files_are_looked_into(copied, tmp_path):
    files, images = copied
    assert check_files(files, tmp_path / "r.json", deep=True)["warnings"] == []
    whole = [path.read_bytes() for path in images[:8]]
    images[0].write_bytes(whole[0][: len(whole[0]) // 2])
    images[1].write_bytes(b"")
    images[2].write_text("<!DOCTYPE html><html><body>404</body></html>")
    images[3].unlink(), images[3].mkdir()
    images[4].unlink(), images[4].symlink_to(tmp_path / "nowhere.jpg")
    with Image.open(images[5]) as image:
        image.resize((192, 192)).save(images[5])
    upright = Image.Exif()
    upright[0x0112] = 6
    with Image.open(images[6]) as image:
        image.load()
        image.resize((96, 48)).save(images[6], exif=upright)
    images[7].unlink(), images[7].symlink_to(images[8])  # a link to an image is one
    with Image.open(images[9]) as image:
        image.load()
        image.resize((64, 96)).save(images[9])
    with Image.open(images[10]) as image:
        image.load()
        image.resize((96, 48)).save(images[10], exif=upright)

    def resize(content):
        content["images"][9].update(width=96, height=64)
        content["images"][10].update(width=96, height=48)

    with_change(Path(files["train"]), resize)
    error = fault(tmp_path, files)
    listing = (tmp_path / "v05.check.faulty.txt").read_text(encoding="utf-8").splitlines()
    found = {Path(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in listing}
    assert found == {
        images[0]: "is truncated",
        images[1]: "is empty",
        images[2]: "is a web page, no image",
        images[3]: "cannot be read: Is a directory",
        images[4]: "cannot be read: No such file or directory",
        images[5]: "has 192x192 pixels, but 96x96 in the annotation file",
        images[6]: "has 48x96 pixels, after the rotation that its EXIF orientation 6 asks for, "
        "but 96x96 in the annotation file",
        images[9]: "has 64x96 pixels, but 96x64 in the annotation file: width and height are "
        "exchanged",
        images[10]: "has 48x96 pixels, after the rotation that its EXIF orientation 6 asks for, "
        "but 96x48 in the annotation file",
    }
    for number in (5, 2, 1, 1):
        assert f"{number} image file{'s are' if number > 1 else ' is'} faulty" in error.what
    assert str(images[0]) in error.what
    for fix in (
        "download, copy or generate",
        "exiftool -Orientation=",
        "exchange `width`",
        "scale",
    ):
        assert fix in error.what


def test_a_deep_check_decodes_images(copied, tmp_path):
    files, images = copied
    with Image.open(images[1]) as image:
        image.save(images[0], "PNG")
    data = bytearray(images[0].read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    images[0].write_bytes(data)
    check_files(files, tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot be decoded"):
        check_files(files, tmp_path / "r.json", deep=True)


# Annotations that training or scoring could not use -----------------------------------------------


def with_change(path, change):
    content = load(path)
    change(content)
    path.write_text(json.dumps(content))


SQUARE = [[0, 0, 9, 0, 9, 9, 0, 9]]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no polygon"),
        ([[]], "no polygon of three points"),
        ([[1, 2, 3, 4]], "no polygon of three points"),
        ([[1, 2]], "no polygon of three points"),
        ([[0, 0, 9, 0, 9, 9, 0]], "no polygon of three points"),
        ([[104, 106, 124, 106, 124, 126]], "polygons outside the image"),
        ([*SQUARE, [0, 0, 9, 0, 9, 2e9]], "a coordinate beyond 1000000 pixels"),
        ({"size": [96, 96], "counts": [96 * 96]}, "without a pixel"),
        (None, "no segmentation"),
        ([1, 2, 3, 4, 5, 6], "neither polygons nor a run-length encoding"),
        ("0 0 9 0 9 9", "neither polygons nor a run-length encoding"),
        ({"size": [96, 96], "counts": [5, 7]}, "does not cover the image exactly"),
        ({"size": [96, 96], "counts": "garbage"}, "does not cover the image exactly"),
        ({"size": [48, 192], "counts": [96 * 96]}, "size is not the image's"),
        ({"counts": [96 * 96]}, "without `size`"),
        ({"size": [96, 96]}, "without `counts`"),
        ({"size": [96, 96], "counts": None}, "without `counts`"),
    ],
)
def test_an_object_without_a_mask_is_an_error_in_val_and_not_trained_on(
    copied, tmp_path, segmentation, reason
):
    files, _ = copied
    before = check_files(files, tmp_path / "r.json")["splits"]["train"]["unusable"]
    train, val = Path(files["train"]), Path(files["val"])
    with_change(train, lambda c: c["annotations"][9].update(segmentation=segmentation))
    report = check_files(files, tmp_path / "r.json")
    number = load(train)["annotations"][9]["id"]
    (warning,) = report["warnings"]
    assert reason in warning and f"such as {number})" in warning and str(train) in warning
    assert report["splits"]["train"]["unusable"] == before + 1
    with_change(val, lambda c: c["annotations"][3].update(segmentation=segmentation))
    error = fault(tmp_path, files)
    assert reason in error.what and str(val) in error.what
    with pytest.raises(UserError, match=r"annotations that cannot be used"):
        GroundTruth(val)


def test_a_box_outside_the_image_is_an_error_in_val_and_not_trained_on(copied, tmp_path):
    files, _ = copied
    for split, box in (("train", [96, 10, 5, 5]), ("val", [-20, 10, 20, 5])):
        with_change(Path(files[split]), lambda c, b=box: c["annotations"][9].update(bbox=b))
    error = fault(tmp_path, files)
    assert f"{files['val']}: annotations that cannot be used: a box outside" in error.what
    files["val"] = str(tiny("v05") / "val.json")
    report = check_files(files, tmp_path / "r.json")
    assert report["splits"]["train"]["reasons"]["a box outside the image"] == 1
    assert "they are not trained on" in report["warnings"][0]


@pytest.mark.parametrize("flag", ["ignore", "iscrowd"])
def test_what_is_ignored_counts_in_nothing_that_training_derives(copied, tmp_path, flag):
    files, _ = copied
    train = Path(files["train"])
    whole = check_files(files, tmp_path / "r.json", rfs_threshold=0.05)

    def change(content):
        for annotation in content["annotations"]:
            if annotation["category_id"] == 3:
                annotation[flag] = 1

    with_change(train, change)
    error = fault(tmp_path, files)
    assert "no usable annotation of" in error.what
    report = check_files(files, tmp_path / "r.json", rfs_threshold=0.05, allow_absent=True)
    assert report["absent"] == [2]
    split, before = report["splits"]["train"], whole["splits"]["train"]
    assert split["image_count"][2] == 0 < before["image_count"][2]
    assert split["reasons"][f"`{flag}`"] >= split["unusable"] - before["unusable"] > 0
    index = LVISIndex(train)
    assert not any(2 in labels for labels in index.labels) and index.instance_count[2] == 0


def test_images_that_training_leaves_out_do_not_count(copied, tmp_path):
    files, _ = copied

    def change(content):
        for image in content["images"]:
            image.update(width=31)
        for annotation in content["annotations"]:
            annotation.update(bbox=[0, 0, 9, 9], segmentation=SQUARE)

    with_change(Path(files["train"]), change)
    index = LVISIndex(files["train"])
    (reason,) = (r for r in index.unusable if r.startswith("an image with a side below 32"))
    assert index.unusable[reason][0] == index.annotation_count and not any(index.image_count)


def test_a_bad_polygon_beside_a_good_one_is_left_out(copied, tmp_path):
    files, _ = copied
    val = Path(files["val"])
    with_change(val, lambda c: c["annotations"][3].update(segmentation=[[1, 2, 3, 4], *SQUARE]))
    assert check_files(files, tmp_path / "r.json")["warnings"] == []
    by_id = {a["id"]: a["segmentation"] for a in LVISIndex(val).annotations}
    assert by_id[load(val)["annotations"][3]["id"]] == SQUARE


def test_a_data_set_of_boxes_alone_is_an_error(copied, tmp_path):
    files, _ = copied

    def without_masks(content):
        for annotation in content["annotations"]:
            annotation["segmentation"] = []

    with_change(Path(files["train"]), without_masks)
    error = fault(tmp_path, files, rfs_threshold=0.05)
    number = len(load(Path(files["train"]))["annotations"])
    assert error.what == f"{files['train']}: none of the {number} annotations has a mask"
    assert "only box AP has a meaning" in error.fix

    def without_keys(content):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    with_change(Path(files["train"]), without_keys)
    error = fault(tmp_path, files, rfs_threshold=0.05)
    assert "`segmentation` is missing" in error.what and "faster_rcnn_coco.py" in error.fix


def test_compressed_run_lengths_are_read_as_by_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        bitmap = np.asfortranarray(rng.random((13, 17)) < rng.random(), np.uint8)
        text = mask.encode(bitmap)["counts"].decode()
        changes = np.flatnonzero(np.diff(np.concatenate([[0], bitmap.ravel("F")])))
        expected = np.diff(np.concatenate([[0], changes, [bitmap.size]]))
        assert decode_counts(text) == expected.tolist()


MALFORMED = {
    "width or height is not 1 to": lambda c: c["images"][2].update(width=0),
    "width or height is not 1 to 1000000": lambda c: c["images"][2].update(width=10**12),
    "largest that can be scored": lambda c: c["images"][2].update(id=2**63),
    "bbox is not finite": lambda c: c["annotations"][0].update(bbox=[0, 0, 1e308, 5]),
    "or negative in size": lambda c: c["annotations"][0].update(bbox=[5, 5, -4, 5]),
    "`name` is empty or not text": lambda c: c["categories"][3].update(name=None),
    "`frequency` is none of r, c, f": lambda c: c["categories"][3].update(frequency="frequent"),
    "none of r, c, f in the categories 4": lambda c: c["categories"][3].update(frequency="F"),
    "`image_count` is not a whole number": lambda c: c["categories"][3].update(image_count="9"),
    "`file_name` or `coco_url` names no file": lambda c: c["images"][2].update(file_name=""),
    "inside the image folder": lambda c: c["images"][2].update(file_name="/etc/passwd"),
    "inside the image folder in the images": lambda c: c["images"][2].update(file_name="../a.jpg"),
    "or `coco_url` names no": lambda c: c["images"][2].update(coco_url="0001.jpg"),
    "`coco_url` names no file": lambda c: c["images"][2].update(coco_url="http://x/../a.jpg"),
}


@pytest.mark.parametrize("words", MALFORMED)
def test_impossible_values_are_named_with_their_entry(copied, tmp_path, words):
    files, _ = copied
    val = Path(files["val"])
    with_change(val, MALFORMED[words])
    error = fault(tmp_path, files)
    assert str(val) in error.what and words in error.what and "(1 in all)" in error.what
    assert error.fix and "LVIS" not in error.fix


def test_frequency_must_be_that_of_all_categories_or_of_none(copied, tmp_path):
    files, _ = copied
    train = Path(files["train"])
    with_change(train, lambda c: c["categories"][3].update(frequency="rare"))
    assert "delete `frequency` from all categories" in fault(tmp_path, files).fix
    with_change(train, lambda c: c["categories"][3].update(frequency=None))
    (warning,) = check_files(files, tmp_path / "r.json")["warnings"]
    assert "59 of 60 categories have a `frequency`: groups follow from image counts" in warning

    def remove(content):
        for category in content["categories"]:
            category.pop("frequency")

    with_change(train, remove)
    assert check_files(files, tmp_path / "r.json")["warnings"] == []


def test_annotations_that_all_are_unusable_are_an_error_with_the_reason(copied, tmp_path):
    files, _ = copied

    def normalise(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [value / 96 for value in annotation["bbox"]]

    with_change(Path(files["train"]), normalise)
    error = fault(tmp_path, files, rfs_threshold=0.05)
    assert "no annotation can be trained on: a side below 1 pixel" in error.what
    assert "boxes are in pixels" in error.fix


@pytest.mark.parametrize("ignored", [True, False])
def test_a_split_without_an_object_to_score_is_an_error(copied, tmp_path, ignored):
    files, _ = copied

    def change(content):
        for annotation in content["annotations"]:
            annotation["ignore"] = 1
        content["annotations"] = content["annotations"] if ignored else []

    with_change(Path(files["val"]), change)
    assert "val.json: no object to score" in fault(tmp_path, files).what


def test_json_that_is_nested_deeply_is_an_error(copied, tmp_path):
    files, _ = copied
    deep = "[" * 100_000 + "]" * 100_000
    with_change(Path(files["val"]), lambda c: c["annotations"][0].update(segmentation="DEEP"))
    text = Path(files["val"]).read_text(encoding="utf-8")
    Path(files["val"]).write_text(text.replace('"DEEP"', "[" * 900 + "]" * 900), encoding="utf-8")
    assert "neither polygons nor" in fault(tmp_path, files).what
    shutil.copy(tiny("v05") / "val.json", files["val"])
    with_change(Path(files["val"]), lambda c: c["info"].update(deep="DEEP"))
    text = Path(files["val"]).read_text(encoding="utf-8")
    Path(files["val"]).write_text(text.replace('"DEEP"', deep), encoding="utf-8")
    assert "nested too deeply" in fault(tmp_path, files).what


def test_a_split_that_scoring_refuses_is_an_error(copied, tmp_path):
    files, _ = copied
    val = Path(files["val"])
    with_change(val, lambda c: c["images"][0].pop("neg_category_ids"))
    assert (
        f"{val}: images without neg_category_ids, which LVIS's rule of scoring needs"
        in fault(tmp_path, files).what
    )
    assert "set `format: coco`" in fault(tmp_path, files).fix
    check_files({**files, "format": "coco"}, tmp_path / "r.json")
    with_change(val, lambda c: (c["images"].clear(), c["annotations"].clear()))
    assert f"{val} has no images" in fault(tmp_path, files).what


def images_of(file_names) -> dict:
    """`images` of that many entries with these names, and no annotations."""
    images = [
        {"id": k, "width": 40, "height": 40, "file_name": name}
        for k, name in enumerate(file_names, 1)
    ]
    return {"images": images, "annotations": []}


def located(tmp_path, *file_names) -> LVISIndex:
    return LVISIndex(
        by_hand(tmp_path / "a.json", lambda c: c.update(images_of(file_names))), tmp_path
    )


def make(tmp_path, *files):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()


def test_the_literal_name_wins(tmp_path):
    make(tmp_path, "train2017/0001.jpg", "val2017/0001.jpg", "0002.jpg", "val2017/0002.jpg")
    make(tmp_path, "mine/a/0001.jpg", "batch_000000000001.jpg", "train2017/000000000001.jpg")
    names = "val2017/0001.jpg", "0002.jpg", "mine/a/0001.jpg", "batch_000000000001.jpg"
    index = located(tmp_path, *names)
    assert list(index.image_paths.values()) == [tmp_path / name for name in names]


def test_a_file_of_another_folder_or_prefix_is_never_taken(tmp_path):
    make(tmp_path, "train2017/0001.jpg", "train2017/000000000001.jpg", "train2017/1234567890ab.jpg")
    names = "val2017/0001.jpg", "mine_000000000001.jpg", "x_1234567890ab.jpg"
    index = located(tmp_path, *names)
    assert len(index.missing_images) == 3
    assert index.missing_images[0] == tmp_path / "val2017/0001.jpg"


def test_a_name_in_two_folders_is_ambiguous(copied, tmp_path):
    make(tmp_path, "train2017/0001.jpg", "val2017/0001.jpg", "train2017/000000000001.jpg")
    make(tmp_path, "val2017/000000000001.jpg", "train2014/COCO_train2014_000000000001.jpg")
    with pytest.raises(UserError, match=r"0001\.jpg is in train2017 and val2017") as caught:
        _ = located(tmp_path, "0001.jpg").image_paths
    assert "such as train2017/0001.jpg" in caught.value.fix
    # A number of COCO is that of one picture, wherever it is.
    index = located(tmp_path, "000000000001.jpg", "COCO_train2014_000000000001.jpg")
    assert not index.ambiguous_images and not index.missing_images
    files, images = copied
    for folder in ("train2017", "val2017"):
        path = Path(files["images"]) / folder / "photo.jpg"
        path.parent.mkdir()
        shutil.copy(images[0], path)
    with_change(
        Path(files["train"]), lambda content: content["images"][0].update(file_name="photo.jpg")
    )
    error = fault(tmp_path, files)
    assert f"{files['train']}: names that are in several folders" in error.what


def test_two_entries_for_one_file_are_an_error(copied, tmp_path):
    files, images = copied
    name = images[0].name

    def change(content):
        content["images"][1]["file_name"] = content["images"][0]["file_name"]

    with_change(Path(files["train"]), change)
    error = fault(tmp_path, files)
    assert f"1 file that several entries of `images` name: {images[0]}" in error.what
    assert "100001, 100002 (2 in all)" in error.what and name in error.what


def test_ids_may_restart_in_each_split(copied, tmp_path):
    files, _ = copied
    for split in ("train", "val", "dev"):

        def restart(content):
            number = {image["id"]: k for k, image in enumerate(content["images"], 1)}
            for image in content["images"]:
                image["id"] = number[image["id"]]
            for annotation in content["annotations"]:
                annotation["image_id"] = number[annotation["image_id"]]

        with_change(Path(files[split]), restart)
    assert check_files(files, tmp_path / "r.json")["warnings"] == []


def test_a_copy_of_a_picture_in_another_split_is_a_warning(copied, tmp_path):
    files, images = copied
    other = LVISIndex(files["val"], files["images"]).image_paths
    victim = next(iter(other.values()))
    shutil.copy(images[3], victim)
    (warning,) = check_files(files, tmp_path / "r.json")["warnings"]
    assert f"have copies of the same pictures: {images[3]} = {victim} (1 in all)" in warning
    assert files["val"] in warning
    # Files of the same size, beginning and end, but another middle are other pictures.
    whole = bytearray(victim.read_bytes() + bytes(10_000) + b"\xff\xd9")
    images[3].write_bytes(whole)
    whole[len(whole) // 3] ^= 1
    victim.write_bytes(whole)
    assert check_files(files, tmp_path / "r.json")["warnings"] == []


def test_a_file_of_two_splits_is_a_leak_whatever_its_id(copied, tmp_path):
    files, _ = copied
    train, val = (load(Path(files[split])) for split in ("train", "val"))
    shared, replaced = train["images"][0], val["images"][0]

    def show(content):
        content["images"][0]["file_name"] = shared["file_name"]
        content["images"][0].pop("coco_url", None)

    with_change(Path(files["val"]), show)
    assert replaced["id"] != shared["id"]
    error = fault(tmp_path, files)
    assert "show the same pictures" in error.what and "(1 in all)" in error.what
    assert files["val"] in error.what and "remove them from one of the two" in error.fix


def test_boxes_as_corners_are_an_error_and_beyond_the_image_a_warning(copied, tmp_path):
    files, _ = copied
    train = Path(files["train"])

    def beyond(content):
        content["annotations"][2].update(bbox=[60, 60, 50, 20])

    with_change(train, beyond)
    (warning,) = check_files(files, tmp_path / "r.json")["warnings"]
    number = load(train)["annotations"][2]["id"]
    assert "reach beyond their images by more than 1 pixel" in warning
    assert f"does not: {number} (1 in all)" in warning and str(train) in warning

    def corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, min(x + width, 96), min(y + height, 96)]

    with_change(train, corners)
    error = fault(tmp_path, files)
    assert f"{train}: bbox seems to be the corners x0, y0, x1, y1" in error.what
    assert "x, y, width, height" in error.fix


# Classes and splits -------------------------------------------------------------------------------


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
    error = fault(tmp_path, entry("v05", val=str(tiny("v05") / "train.json")))
    assert "show the same pictures" in error.what
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
            {
                "id": i,
                "width": 40,
                "height": 40,
                "coco_url": f"http://x/train2017/{i:012d}.jpg",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
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
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / f"train2017/{i:012d}.jpg")
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
