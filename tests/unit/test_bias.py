"""Pairwise bias of COCO files: against loops over objects, in edge cases, and by the command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pcb.cli import main
from pcb.errors import UserError
from pcb.evaluation import bias

IDS = (3, 5, 9, 20)  # not 1..C: COCO has gaps


def scene(seed=0, images=10, objects=4, detections=15):
    """Random boxes on a coarse grid, so that many coincide; masks are the boxes."""
    rng = np.random.default_rng(seed)

    def box():
        x, y, w, h = (int(v) for v in (*rng.integers(0, 5, 2) * 8, *rng.integers(1, 4, 2) * 8))
        return {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}

    gt = {
        "images": [{"id": i, "width": 64, "height": 64} for i in range(images)],
        "categories": [
            {"id": i, "name": f"class {i}", "frequency": f}
            for i, f in zip(reversed(IDS), "rrcf", strict=True)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n // objects,
                "category_id": int(rng.choice(IDS[:3])),
                "iscrowd": int(n % 11 == 7),
                **box(),
            }
            for n in range(images * objects)
        ],
    }
    dt = [
        {
            "image_id": int(rng.integers(images)),
            "category_id": int(rng.choice(IDS)),
            "score": float(rng.random()),
            **box(),
        }
        for _ in range(images * detections)
    ]
    return gt, dt


def files(folder, gt, dt):
    (folder / "gt.json").write_text(json.dumps(gt)), (folder / "dt.json").write_text(json.dumps(dt))
    return folder / "gt.json", folder / "dt.json"


def iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    common = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(
        0, min(ay + ah, by + bh) - max(ay, by)
    )
    return common / (aw * ah + bw * bh - common)


def object_by_object(gt, dt):
    """The protocol in loops: per object a dict of the best score of each class, then means."""
    objects = [a for a in gt["annotations"] if not a["iscrowd"]]
    scores = {a["id"]: {} for a in objects}
    for d in dt:
        near = [a for a in objects if a["image_id"] == d["image_id"] and iou(a, d) >= 0.5]
        if near:
            a = max(near, key=lambda a: (iou(a, d), a["category_id"] == d["category_id"]))
            scores[a["id"]][d["category_id"]] = max(
                d["score"], scores[a["id"]].get(d["category_id"], 0)
            )
    matrix = np.zeros((4, 4))
    for i, true in enumerate(IDS):
        rows = [
            [s.get(j, 0) / sum(s.values()) for j in IDS]
            for a in objects
            if a["category_id"] == true and (s := scores[a["id"]])
        ]
        matrix[i] = np.mean(rows, axis=0) if rows else 0
    return matrix, [
        sum(a["category_id"] == i and not scores[a["id"]] for a in objects) for i in IDS
    ]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_matrix_equals_that_of_loops_over_objects(tmp_path, kind):
    gt, dt = scene()
    found = bias.measure(*files(tmp_path, gt, dt), iou=kind)
    matrix, missed = object_by_object(gt, dt)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-12)
    assert (matrix > 0).sum() > 8 and sum(missed) > 0
    assert found.ids == IDS and found.missed.tolist() == missed
    assert found.matched.sum() + sum(missed) == sum(not a["iscrowd"] for a in gt["annotations"])
    assert found.pwb == pytest.approx(np.sqrt(((matrix - matrix.T) ** 2).sum()))


def test_rows_are_distributions_over_the_best_score_of_each_class(tmp_path):
    owl, dove, wren = 3, 5, 9
    gt, _ = scene(images=1)
    gt["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": owl, "bbox": [0, 0, 10, 10]},
        {"id": 2, "image_id": 0, "category_id": wren, "bbox": [30, 30, 10, 10]},
    ]
    dt = [
        {"image_id": 0, "category_id": c, "bbox": [0, 0, 10, h], "score": s}
        for c, s, h in ((owl, 0.6, 10), (owl, 0.2, 9), (dove, 0.2, 8), (dove, 0.9, 4))
    ]  # the last overlaps by 0.4
    found = bias.measure(*files(tmp_path, gt, dt))
    np.testing.assert_allclose(found.matrix[0], [0.75, 0.25, 0, 0])
    assert not found.matrix[1:].any()
    assert found.matched.tolist() == [1, 0, 0, 0] and found.missed.tolist() == [0, 0, 1, 0]
    assert found.pairs() == []  # dove and wren have no matched object


def test_one_object_with_two_classes_is_no_confusion(tmp_path):
    gt, _ = scene(images=1)
    gt["annotations"] = [
        {"id": k, "image_id": 0, "category_id": c, "bbox": [0, 0, 10, 10]}
        for k, c in enumerate((3, 5))
    ]
    dt = [{"image_id": 0, "category_id": c, "bbox": [0, 0, 9, 10], "score": 0.5} for c in (5, 3)]
    assert bias.measure(*files(tmp_path, gt, dt)).pwb == 0


def test_groups_and_pairs():
    matrix = np.array([[0.5, 0.4, 0.1, 0], [0.1, 0.9, 0, 0], [0, 0.2, 0.8, 0], [0, 0, 0, 0.0]])
    found = bias.Bias(
        matrix, np.array([4, 9, 1, 0]), np.zeros(4, int), IDS, tuple("abcd"), "rffr", "test"
    )
    groups = found.by_group()
    assert groups["r"]["f"] == pytest.approx(0.5)
    assert groups["f"]["r"] == pytest.approx((0.1 + 0) / 2)
    assert groups["c"] == {"r": None, "c": None, "f": None}
    assert [(p["i"], p["j"], round(p["difference"], 6)) for p in found.pairs()] == [
        ("a", "b", 0.3),
        ("c", "b", 0.2),
        ("a", "c", 0.1),
    ]
    assert [(p["i"], p["j"]) for p in found.pairs(least=2)] == [("a", "b")]
    assert len(found.pairs(1)) == 1


def test_groups_come_from_train_or_frequency_or_counts(tmp_path):
    gt, dt = scene()
    train = {
        "annotations": [
            {"category_id": c, "image_id": i}
            for c, n in ((3, 10), (5, 11), (9, 101))
            for i in range(n)
        ]
        * 2
    }
    (tmp_path / "train.json").write_text(json.dumps(train))
    assert bias.measure(*files(tmp_path, gt, dt)).groups == "fcrr"
    assert bias.measure(*files(tmp_path, gt, dt), train=tmp_path / "train.json").groups == "rcfr"
    for category in gt["categories"]:
        del category["frequency"]
    assert bias.measure(*files(tmp_path, gt, dt)).groups == "rrrr"
    for category in gt["categories"]:
        category["image_count"] = 10 * category["id"]
    assert bias.measure(*files(tmp_path, gt, dt)).groups == "cccf"
    assert bias.measure(*files(tmp_path, gt, dt), thresholds=(40, 60)).groups == "rcff"
    with pytest.raises(UserError, match="no class would be common"):
        bias.measure(*files(tmp_path, gt, dt), thresholds=(60, 60))


def test_the_command_prints_and_writes(tmp_path, capsys):
    gt, dt = map(str, files(tmp_path, *scene()))
    for name in ("out.json", "out.csv"):
        assert (
            main(["bias", "--gt", gt, "--dt", dt, "--out", str(tmp_path / name), "--pairs", "2"])
            == 0
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PwB ") and max(map(len, lines)) <= 100
    written = json.loads((tmp_path / "out.json").read_text())
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert written["PwB"] == pytest.approx(bias.measure(gt, dt).pwb)
    assert [p["i"] for p in written["pairs"]] == [p["i"] for p in table]
    assert len(table) > 2 and float(table[0]["difference"]) >= float(table[1]["difference"])
    assert main(["bias", "--gt", gt, "--dt", dt, "--out", str(tmp_path / "out.xlsx")]) == 2
    assert ".csv" in capsys.readouterr().err


def set_of(section, **values):
    return lambda gt, dt: gt[section][0].update(values)


def of_detection(**values):
    return lambda gt, dt: dt[2].update(values)


RLE = {"size": [64, 64], "counts": [64 * 64]}
REFUSED = {
    "bbox": {
        "gt.json has no images, annotations and categories": lambda gt, dt: gt.pop("categories"),
        "categories: `id` is no whole number": set_of("categories", id="3"),
        "images: `id` is no whole number": set_of("images", id=True),
        "categories: ids that occur more than once: 5 ": set_of("categories", id=5),
        "images: ids that occur more than once: 5 ": set_of("images", id=5),
        "annotations that name a missing image: 0 ": set_of("annotations", image_id=99),
        "annotations that name a missing category": set_of("annotations", category_id=99),
        "`category_id` is no whole number in the entries 0": set_of("annotations", category_id="3"),
        "annotations with no bbox: 0 ": lambda gt, dt: gt["annotations"][0].pop("bbox"),
        "annotations with a bbox of negative size": set_of("annotations", bbox=[9, 9, -4, 5]),
        "annotations with a bbox that is not four": set_of("annotations", bbox=[1, 2, 3]),
        "`frequency` is not r, c or f in the categories 20 (1 in all): 'rare'": set_of(
            "categories", frequency="rare"
        ),
        "`frequency` is not r, c or f in the categories 20 (1 in all): None": set_of(
            "categories", frequency=None
        ),
        "detections without score: 2 ": lambda gt, dt: dt[2].pop("score"),
        "detections of category 0, which": of_detection(category_id=0),
        "detections of image 99, which": of_detection(image_id=99),
        "image_id is no whole number in the detections 2 (1 in all): '1'": of_detection(
            image_id="1"
        ),
        "category_id is no whole number in the detections 2 (1 in all): True": of_detection(
            category_id=True
        ),
        "not finite numbers from 0 on, in the detections 2 (1 in all): nan": of_detection(
            score=float("nan")
        ),
        "in the detections 2 (1 in all): inf": of_detection(score=float("inf")),
        "in the detections 2 (1 in all): -2.5": of_detection(score=-2.5),
        "in the detections 2 (1 in all): None": of_detection(score=None),
        "in the detections 2 (1 in all): '0.9'": of_detection(score="0.9"),
        "detections with a bbox that is not four finite numbers: 2 ": of_detection(bbox=[1, 2, 3]),
        "not four finite numbers": of_detection(bbox=[1, 2, 3, float("inf")]),
        "detections with a bbox of negative size: 2 ": of_detection(bbox=[1, 2, 3, -4]),
    },
    "segm": {
        "annotations with no segmentation: 0 ": lambda gt, dt: gt["annotations"][0].pop(
            "segmentation"
        ),
        "annotations with no polygon: 0 ": set_of("annotations", segmentation=[]),
        "annotations with no polygon of three points": set_of(
            "annotations", segmentation=[[1, 2, 3, 4]]
        ),
        "annotations with polygons outside the image": set_of(
            "annotations", segmentation=[[70, 0, 80, 0, 80, 10]]
        ),
        "annotations with a run-length encoding without a pixel": set_of(
            "annotations", segmentation=RLE
        ),
        "images: `height` is no whole number": lambda gt, dt: gt["images"][0].pop("height"),
        "detections with no polygon: 2 ": of_detection(segmentation=[]),
        "a list of numbers in place of a list of polygons": of_detection(
            segmentation=[1, 2, 3, 4, 5, 6]
        ),
        "a polygon with a value that is not a number": of_detection(segmentation=[[None] * 6]),
        "detections with a polygon with a coordinate beyond": of_detection(
            segmentation=[[1, 2, 3, float("nan"), 5, 6]]
        ),
        "neither polygons nor a run-length encoding": of_detection(segmentation="abc"),
        "size is not the image's: 2 ": of_detection(segmentation={**RLE, "size": [32, 128]}),
        "does not cover the image exactly: 2 ": of_detection(
            segmentation={**RLE, "counts": [64 * 64, 1]}
        ),
    },
}


@pytest.mark.parametrize(
    "kind, message", [(kind, message) for kind, of_kind in REFUSED.items() for message in of_kind]
)
def test_what_cannot_be_measured_is_refused_with_its_entry(tmp_path, capsys, kind, message):
    gt, dt = scene()
    REFUSED[kind][message](gt, dt)
    paths = map(str, files(tmp_path, gt, dt))
    assert main(["bias", "--iou", kind, "--gt", next(paths), "--dt", next(paths)]) == 2
    error, fix = capsys.readouterr().err.rsplit("\nfix: ", 1)
    assert error.startswith(f"error: {tmp_path}") and message in error and fix.strip()


def test_what_may_be_missing_or_empty_is_measured(tmp_path):
    gt, dt = scene()
    for image in gt["images"]:
        del image["width"], image["height"]  # boxes need no size
    for category in gt["categories"]:
        category["frequency"] = None  # null everywhere is as good as missing
    assert bias.measure(*files(tmp_path, gt, dt)).groups == "rrrr"
    gt, dt = scene()
    dt[0]["segmentation"] = RLE  # a detector's mask without a pixel
    dt[1]["segmentation"].append([1, 2, 3, 4])
    bias.measure(*files(tmp_path, gt, dt), iou="segm")


def test_ignored_objects_do_not_count(tmp_path):
    gt, dt = scene()
    whole = bias.measure(*files(tmp_path, gt, dt))
    for annotation in gt["annotations"]:
        annotation["ignore"] = annotation.pop("iscrowd")
    np.testing.assert_array_equal(bias.measure(*files(tmp_path, gt, dt)).matrix, whole.matrix)


def test_labels_in_place_of_category_ids_are_noticed(tmp_path):
    gt, _ = scene()
    for n, category in enumerate(sorted(gt["categories"], key=lambda c: c["id"])):
        for annotation in gt["annotations"]:
            if annotation["category_id"] == category["id"]:
                annotation["category_id"] = n + 1
        category["id"] = n + 1
    dt = [{**a, "score": 0.5} for a in gt["annotations"]]
    assert bias.measure(*files(tmp_path, gt, dt)).pwb < 1
    shifted = [{**d, "category_id": d["category_id"] - 1} for d in dt if d["category_id"] > 1]
    with pytest.raises(UserError, match="category ids are labels from 0 on"):
        bias.measure(*files(tmp_path, gt, shifted))


def test_corners_in_place_of_sizes_are_noticed(tmp_path):
    gt, dt = scene()
    corners = [{**d, "bbox": [x, y, x + w, y + h]} for d in dt for x, y, w, h in [d["bbox"]]]
    bias.measure(*files(tmp_path, gt, dt))
    with pytest.raises(UserError, match="bbox seems to be the corners"):
        bias.measure(*files(tmp_path, gt, corners))


def test_what_was_not_measured_is_a_dash_and_not_zero(tmp_path):
    gt, dt = scene()
    for category in gt["categories"]:
        category["frequency"] = "c" if category["frequency"] == "f" else category["frequency"]
    lines = bias.report(bias.measure(*files(tmp_path, gt, dt))).splitlines()
    assert "M_rf –   M_fr –" in lines[1] and "M_cf –   M_fc –" in lines[1]
    assert "M_rc 0." in lines[1]
    assert "– no class is frequent" in lines
    none = bias.measure(*files(tmp_path, gt, []))
    assert "– no object of a rare class has a detection" in bias.report(none)
    assert none.pwb is None and bias.report(none).startswith("PwB –, 0 of 4 classes")


def test_thresholds_give_a_small_data_set_all_three_groups(tmp_path, capsys):
    gt, dt = scene()
    gt["categories"] = [{"id": i, "name": f"class {i}"} for i in IDS[:3]]
    dt = [d for d in dt if d["category_id"] in IDS[:3]]
    images = {IDS[0]: 3, IDS[1]: 6, IDS[2]: 10}  # of which each class is shown in some
    gt["annotations"] = [a for a in gt["annotations"] if a["image_id"] < images[a["category_id"]]]
    shown = {(a["category_id"], a["image_id"]) for a in gt["annotations"] if not a["iscrowd"]}
    rare, common, _ = (str(sum(category == i for category, _ in shown)) for i in IDS[:3])
    paths = [f"--{k}={p}" for k, p in zip(("gt", "dt"), files(tmp_path, gt, dt), strict=True)]
    main(["bias", *paths])
    printed = capsys.readouterr().out
    assert "M_rf –" in printed
    assert "– no class is frequent: --thresholds R C moves the groups" in printed
    main(["bias", *paths, "--thresholds", rare, common])
    assert "–" not in capsys.readouterr().out


def test_swapped_and_missing_files_are_refused(tmp_path):
    gt, dt = files(tmp_path, *scene())
    for wrong in ((dt, gt), (gt, gt), (gt, tmp_path / "none.json")):
        with pytest.raises(UserError):
            bias.measure(*wrong)
