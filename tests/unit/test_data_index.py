"""`LVISIndex` reads both versions in all layouts, lists a file's faults, and shares its cache."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import numpy as np
import pytest
from datasets import SAMPLE, by_hand, load, needs_sample, tiny
from mmdet.datasets import CocoDataset

from pcb import frequency
from pcb.data.lvis import index as module
from pcb.data.lvis.annotations import Annotation, Image, unusable_reason
from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError


@needs_sample
def test_real_lvis_annotations():
    index = LVISIndex(SAMPLE / "lvis_val_100.json", SAMPLE / "images")
    assert index.version == "v0.5" and len(index.classes) == 1230 and len(index.images) == 100
    groups = index.frequency()
    assert [groups.count(g) for g in "rcf"] == [454, 461, 315]
    assert sum(index.instance_count) == len(index.annotations) == 977
    assert len(index.absent_classes) == 1040
    assert index.image_count == [c["image_count"] for c in index.categories]
    assert len(index.missing_images) == 97
    assert index.image_paths[11813] == SAMPLE / "images/000000011813.jpg"


@pytest.mark.parametrize("dataset, version", [("v05", "v0.5"), ("v1", "v1.0")])
def test_versions_are_recognised(dataset, version):
    for split in ("train", "val", "dev"):
        assert LVISIndex(tiny(dataset) / f"{split}.json").version == version


@pytest.mark.parametrize(
    "where",
    [
        "000000000007.jpg",
        "val2017/000000000007.jpg",
        "train2017/000000000007.jpg",
        "val2014/COCO_val2014_000000000007.jpg",
        "COCO_val2014_000000000007.jpg",
    ],
)
def test_v05_images_are_found_in_every_layout(tmp_path, where):
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).touch()
    index = LVISIndex(by_hand(tmp_path / "a.json"), tmp_path)
    assert index.image_paths[7] == tmp_path / where
    assert [path.name for path in index.missing_images] == ["000000000009.jpg"]


@pytest.mark.parametrize("where", ["train2017/000000000007.jpg", "000000000007.jpg"])
def test_v1_images_are_found_by_their_url_or_in_a_flat_folder(tmp_path, where):
    def v1(content):
        for image in content["images"]:
            del image["file_name"]
            image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['id']:012d}.jpg"

    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).touch()
    index = LVISIndex(by_hand(tmp_path / "val.json", v1), tmp_path)
    assert index.version == "v1.0" and index.image_paths[7] == tmp_path / where


def test_categories_are_sorted_by_id(tmp_path):
    file = by_hand(tmp_path / "a.json", lambda content: content["categories"].reverse())
    assert LVISIndex(file).classes == ("dove", "owl")
    assert LVISIndex(file).labels == [(1,), (0,)]


def is_trained_on(annotation) -> bool:
    """Whether MMDetection makes an instance of an annotation in an image of 100x80."""
    data = CocoDataset.__new__(CocoDataset)
    data.data_prefix, data.return_classes = {"img": ""}, False
    data.cat_ids, data.cat2label = [1], {1: 0}
    image = {"img_id": 7, "file_name": "a.jpg", "width": 100, "height": 80}
    parsed = data.parse_data_info({"raw_img_info": image, "raw_ann_info": [annotation]})
    return bool(parsed["instances"])


@pytest.mark.parametrize(
    "bbox, area, usable",
    [
        ([10, 10, 1, 20], 5, True),
        ([10, 10, 20, 1], 5, True),
        ([10, 10, 0.99, 20], 5, False),
        ([10, 10, 20, 0.99], 5, False),
        ([10, 10, 20, 20], 0, False),
        ([10, 10, 20, 20], 0.01, True),
        ([-20, 10, 20, 20], 5, False),  # it only touches the image
        ([10, -20, 20, 20], 5, False),
        ([100, 10, 20, 20], 5, False),
        ([10, 80, 20, 20], 5, False),
        ([99, 79, 20, 20], 5, True),
    ],
)
def test_the_annotations_that_mmdet_trains_on_are_usable(bbox, area, usable):
    entry = {"id": 1, "image_id": 7, "category_id": 1, "bbox": bbox, "area": area}
    annotation, image = Annotation(**entry), Image(id=7, width=100, height=80)
    assert (unusable_reason(annotation, [[1, 1, 9, 1, 9, 9]], image) is None) == usable
    assert is_trained_on({**entry, "segmentation": []}) == usable


@pytest.mark.parametrize(
    "images, group", [(1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f"), (2000, "f")]
)
def test_groups_are_those_of_lvis_at_their_bounds(images, group):
    assert frequency.group(images) == group


def test_groups_come_from_the_file_else_from_counts(tmp_path):
    def counts(content):
        content["categories"][0]["image_count"] = 11
        content["categories"][1].update(image_count=500, frequency="r")

    def named(content):
        counts(content)
        content["categories"][0]["frequency"] = "f"

    # One source for all classes: the one that has a word on each.
    assert LVISIndex(by_hand(tmp_path / "a.json", counts)).frequency() == ["c", "f"]
    assert LVISIndex(by_hand(tmp_path / "a.json", named)).frequency() == ["f", "r"]


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.json: No such file"):
        LVISIndex("nowhere.json")


def test_truncated_file_names_the_byte(tmp_path):
    data = (tiny("v05") / "val.json").read_bytes()
    (tmp_path / "half.json").write_bytes(data[:5000])
    message = r"half\.json is not valid JSON: .* at byte (49\d\d|5000) of 5000"
    with pytest.raises(UserError, match=message):
        LVISIndex(tmp_path / "half.json")
    (tmp_path / "binary.json").write_bytes(b'{"info": "\xff\xfe"}')
    with pytest.raises(UserError, match="byte 10 of 14 is not UTF-8"):
        LVISIndex(tmp_path / "binary.json")


@pytest.mark.parametrize(("word", "shown"), [("NaN", "NaN"), ("-Infinity", "Infinity")])
def test_a_value_that_json_lacks_is_named(tmp_path, word, shown):
    path = tmp_path / "a.json"
    path.write_text(f'{{"images": [], "annotations": [{{"id": 1, "area": {word}}}]')
    with pytest.raises(UserError, match=f"{shown} at byte {path.read_text().index(shown)}, which"):
        LVISIndex(path)
    path.write_text('{"images": "NaN, Infinity')  # text of any content
    with pytest.raises(UserError, match="an incomplete download"):
        LVISIndex(path)


def faults(tmp_path, change) -> str:
    """Return what is wrong with the hand-made file as `change` modifies it."""
    with pytest.raises(UserError) as caught:
        LVISIndex(by_hand(tmp_path / "bad.json", change))
    assert "bad.json" in caught.value.what and caught.value.fix
    return caught.value.what


def test_missing_keys(tmp_path):
    assert "no list under annotations" in faults(tmp_path, lambda c: c.pop("annotations"))
    what = faults(tmp_path, lambda c: c["annotations"][1].pop("bbox"))
    assert "annotations: `bbox` is missing in 1 (1 in all)" in what
    what = faults(tmp_path, lambda c: c["images"][0].pop("file_name"))
    assert "neither `file_name` (v0.5) nor `coco_url` (v1.0)" in what
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"not an annotation file of LVIS or COCO: Expected `object`, got `array`"
    ):
        LVISIndex(tmp_path / "list.json")


def test_dangling_references_are_all_listed(tmp_path):
    def many(content):
        content["annotations"] = [
            {**content["annotations"][0], "id": i, "image_id": 1000 + i, "category_id": 99}
            for i in range(9)
        ]

    what = faults(tmp_path, many)
    assert "annotations that name a missing image: 0, 1, 2, 3, 4, … (9 in all)" in what
    assert "annotations that name a missing category: 0, 1, 2, 3, 4, … (9 in all)" in what
    what = faults(tmp_path, lambda c: c["images"][0].update(neg_category_ids=[5]))
    assert "neg_category_ids name a missing category" in what


def test_category_ids_must_be_distinct_whole_numbers(tmp_path):
    what = faults(tmp_path, lambda c: c["categories"][0].update(id=2))
    assert "repeated category ids: 2" in what
    what = faults(tmp_path, lambda c: c["categories"][0].update(id="2"))
    assert "category ids that are not whole numbers: 2" in what


def test_any_category_ids_become_labels_in_their_order(tmp_path):
    ids = {1: 2**40, 2: 0}

    def renumber(content):
        for entry in content["categories"]:
            entry["id"] = ids[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = ids[entry["category_id"]]
        content["images"][0].update(neg_category_ids=[2**40], not_exhaustive_category_ids=[0])

    index = LVISIndex(by_hand(tmp_path / "a.json", renumber))
    assert index.classes == ("owl", "dove") and index.original_ids == [0, 2**40]
    assert index.labels == [(0,), (1,)] and index.image_count == [1, 1]
    assert [a["category_id"] for a in index.annotations] == [1, 2]
    assert index.listed_categories("neg_category_ids") == [[2], []]
    assert index.listed_categories("not_exhaustive_category_ids") == [[1], []]


def test_null_is_absent_and_a_byte_order_mark_is_read_over(tmp_path):
    def with_nulls(content):
        content["info"] = None
        content["images"][0].update(coco_url=None, neg_category_ids=None)
        content["annotations"][0].update(iscrowd=None, ignore=None)
        content["categories"][0].update(frequency=None, image_count=None)

    path = by_hand(tmp_path / "a.json", with_nulls)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    index = LVISIndex(path)
    assert index.image_count == [1, 1] and index.frequency() == ["r", "r"]
    assert index.missing_keys() == ["neg_category_ids", "not_exhaustive_category_ids"]


def test_thresholds_and_files_decide_on_the_groups(tmp_path):
    def groups(change, thresholds=None):
        return LVISIndex(by_hand(tmp_path / "a.json", change)).frequency(thresholds)

    def named(content, **keys):
        for entry in content["categories"]:
            entry.update(keys)

    assert groups(lambda c: named(c, frequency="f", image_count=50)) == ["f", "f"]
    assert groups(lambda c: named(c, image_count=50)) == ["c", "c"]
    assert groups(lambda c: c["categories"][0].update(frequency="f")) == ["r", "r"]
    assert groups(lambda c: named(c, frequency="r"), (0, 1)) == ["c", "c"]


def test_repeated_ids(tmp_path):
    def repeat(content):
        content["annotations"][1].update(id=1)
        content["images"][1].update(id=7)

    what = faults(tmp_path, repeat)
    assert "repeated image ids: 7" in what and "repeated annotation ids: 1" in what


def test_unusable_annotations_do_not_count(tmp_path):
    index = LVISIndex(
        by_hand(tmp_path / "a.json", lambda c: c["annotations"][0].update(bbox=[10, 10, 0.5, 20]))
    )
    assert (
        index.image_count == [1, 0] and index.absent_classes == [1] and index.labels == [(), (0,)]
    )


def test_errors_in_json_count_bytes_not_characters(tmp_path):
    text = json.dumps({"info": {"by": "ααα"}}, ensure_ascii=False)[:-1] + ", }"
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    size = len(text.encode())
    with pytest.raises(UserError, match=rf"at byte {size - 1} of {size}"):
        LVISIndex(tmp_path / "a.json")


def test_generated_files_have_lvis_keys():
    content = load(tiny("v1") / "train.json")
    assert content["info"]["thresholds"] == [2, 4]
    assert {
        "id",
        "name",
        "synonyms",
        "synset",
        "def",
        "image_count",
        "instance_count",
        "frequency",
    } == set(content["categories"][0])


# The file that processes share -------------------------------------------------------------------


def everything(index) -> list:
    return [
        index.images,
        index.annotations,
        index.by_image,
        index.labels,
        index.image_count,
        index.instance_count,
        index.categories,
        index.info,
        index.version,
        index.annotation_count,
        index.sha256,
        index.ids.tolist(),
        index.sizes.tolist(),
        index.missing_images,
    ]


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were parsed."""
    parsed = []

    def read(path, original=module.read_annotation_file):
        parsed.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "read_annotation_file", read)
    return parsed


def test_the_index_has_the_content_of_the_file(tmp_path):
    file, by_id = tiny("v1") / "train.json", itemgetter("id")
    content, index = load(file), LVISIndex(file, cache=tmp_path)
    assert index.categories == content["categories"]
    assert sorted(index.annotations, key=by_id) == sorted(content["annotations"], key=by_id)
    keys = ("id", "width", "height", "coco_url", "neg_category_ids", "not_exhaustive_category_ids")
    assert index.images == [{key: image[key] for key in keys} for image in content["images"]]


def test_a_mapped_index_equals_one_in_memory_and_is_pickled_by_its_path(tmp_path, reads):
    file, images = tiny("v05") / "train.json", tiny("v05") / "images"
    in_memory, mapped = LVISIndex(file, images), LVISIndex(file, images, tmp_path / "cache")
    assert everything(mapped) == everything(in_memory)
    pickled = pickle.dumps(mapped)
    assert len(pickled) < 1000 and everything(pickle.loads(pickled)) == everything(in_memory)
    assert reads == ["train.json"] * 2, "each read once, none for the pickle"
    with pytest.raises(ValueError, match="read-only"):
        mapped.objects(0).bbox[0] = 0


def test_one_process_makes_the_cache_while_the_others_wait(tmp_path, reads):
    def count(_):
        return LVISIndex(tiny("v05") / "val.json", cache=tmp_path).annotation_count

    with ThreadPoolExecutor(4) as pool:
        counts = set(pool.map(count, range(4)))
    assert reads == ["val.json"] and len(counts) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "other text", "zeros", "one bit", "torn"])
def test_a_damaged_cache_is_remade(tmp_path, reads, damage):
    whole = everything(LVISIndex(tiny("v05") / "val.json", cache=tmp_path))
    (cached,), (record,) = tmp_path.glob("*.arrow"), tmp_path.glob("*.json")
    data, times = cached.read_bytes(), cached.stat()
    cached.unlink()  # a mapped file must not be written to
    middle = len(data) // 2
    damaged = {
        "cut": data[:-100],
        "empty": b"",
        "other text": b"x" * 100,
        "zeros": data[:middle] + bytes(4096) + data[middle + 4096 :],
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "torn": data,
    }
    cached.write_bytes(damaged[damage])
    os.utime(cached, ns=(times.st_atime_ns, times.st_mtime_ns))
    if damage == "torn":
        record.write_text('{"format": ')
    assert everything(LVISIndex(tiny("v05") / "val.json", cache=tmp_path)) == whole
    assert len(reads) == 2 and cached.read_bytes() == data


def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path, reads):
    file = by_hand(tmp_path / "a.json")
    assert LVISIndex(file, cache=tmp_path / "cache").classes == ("dove", "owl")
    times = file.stat()
    file.write_text(file.read_text().replace("dove", "crow"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert LVISIndex(file, cache=tmp_path / "cache").classes == ("crow", "owl")


def test_digests_are_computed_again_only_where_a_file_looks_changed(tmp_path, reads, monkeypatch):
    file, hashed = by_hand(tmp_path / "a.json"), []
    LVISIndex(file, cache=tmp_path / "cache")

    def counted(path, original=module.sha256):
        hashed.append(path.suffix)
        return original(path)

    monkeypatch.setattr(module, "sha256", counted)
    LVISIndex(file, cache=tmp_path / "cache")
    assert hashed == []
    file.touch()  # equal content: the index stays
    (tmp_path / "cache").rename(tmp_path / "moved")
    LVISIndex(file, cache=tmp_path / "moved")
    assert hashed == [".json"] and len(reads) == 1
    LVISIndex(file, cache=tmp_path / "moved")
    assert hashed == [".json"]


def test_a_changed_annotation_file_is_read_again_and_a_broken_one_leaves_no_cache(tmp_path, reads):
    file = by_hand(tmp_path / "a.json")
    assert LVISIndex(file, cache=tmp_path / "cache").image_count == [1, 1]
    by_hand(file, lambda c: c["annotations"].pop())
    os.utime(file, ns=(1, 1))
    assert LVISIndex(file, cache=tmp_path / "cache").image_count == [0, 1]
    assert len(reads) == 2
    file.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        LVISIndex(file, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_a_cache_of_another_format_is_remade(tmp_path, reads, monkeypatch):
    file = tiny("v05") / "val.json"
    before = everything(LVISIndex(file, cache=tmp_path))
    monkeypatch.setattr(module, "CACHE_FORMAT", module.CACHE_FORMAT + 1)
    assert everything(LVISIndex(file, cache=tmp_path)) == before and len(reads) == 2


def test_more_images_than_a_batch_holds(tmp_path, monkeypatch):
    whole = everything(LVISIndex(tiny("v05") / "train.json"))
    monkeypatch.setattr(module, "BATCH_IMAGES", 7)
    monkeypatch.setattr("pcb.data.lvis.annotations.BATCH_IMAGES", 7)
    index = LVISIndex(tiny("v05") / "train.json", cache=tmp_path)
    assert everything(index) == whole
    assert [index.labels_of(row) for row in range(64)] == list(map(list, index.labels))


def test_run_length_encodings_and_crowds_are_kept(tmp_path):
    rle = {"size": [80, 100], "counts": [5, 7, 7988]}
    crowd = {"segmentation": rle, "iscrowd": 1}
    file = by_hand(tmp_path / "a.json", lambda c: c["annotations"][0].update(crowd))
    index = LVISIndex(file, cache=tmp_path)
    assert {key: index.annotations[0][key] for key in crowd} == crowd
    assert np.array_equal(index.objects(1).segmentation[0][0], [0, 0, 5, 0, 5, 5])
    by_hand(file, lambda c: c["annotations"][1].update(segmentation=[1, 2]))
    index = LVISIndex(file, cache=tmp_path)
    assert index.faulty == 1 and "such as 2)" in index.faulty_text()
    assert index.annotations[1]["segmentation"] == [] and index.image_count == [0, 1]
