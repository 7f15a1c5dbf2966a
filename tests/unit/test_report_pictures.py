"""Gallery and pair explorer: which model recognises which object, and the detections on pages.

Five images of 40 x 30 pixels with one square each; the detections of two runs are written by hand.
"""

import base64
import io
import json
import re
from itertools import pairwise

import hotcoco
import nbformat
import numpy as np
import pytest
from fabricate import evaluated, study_in
from PIL import Image

from pcb.errors import UserError
from pcb.evaluation.shards import ShardWriter
from pcb.reporting import plots, tables
from pcb.reporting.gather import gather
from pcb.reporting.images import gallery_view, raster, thumbnails
from pcb.reporting.images.matched_objects import UNDETECTED, SplitObjects, match_objects
from pcb.reporting.notebook import cells, render
from pcb.reporting.results import Results
from pcb.study import load_study
from pcb.study.records import write_record

NAMES = ["pear", "lemon", "dove_(bird)"]
GROUPS, TRAIN_IMAGES = "rfc", [2, 50, 9]
TRUTH = [1, 3, 2, 1, 1]  # category of the square in images 1 … 5
BOX = [5, 5, 10, 10]
BESIDE = [12, 5, 10, 10]  # overlaps the square with an IoU of 0.18
BEFORE = {
    1: [(2, 0.6, BOX), (1, 0.5, BOX)],
    2: [(3, 0.2, BOX), (2, 0.9, BESIDE)],
    3: [(2, 0.9, BOX)],
    4: [(1, 0.9, BESIDE)],
    5: [(2, 0.4, BOX)],
}
AFTER = {
    1: [(1, 0.1, BOX), (3, 0.05, BOX)],
    2: [],
    3: [(2, 0.5, BOX)],
    4: [(2, 0.4, BOX)],
    5: [(1, 0.35, BOX), (2, 0.32, BOX)],
}


def square(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_split(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "images": [
                    {
                        "id": i,
                        "width": 40,
                        "height": 30,
                        "file_name": f"{i:012d}.jpg",
                        "neg_category_ids": [],
                        "not_exhaustive_category_ids": [],
                    }
                    for i in images
                ],
                "annotations": [
                    {
                        "id": i,
                        "image_id": i,
                        "category_id": c,
                        "bbox": BOX,
                        "area": 100,
                        "segmentation": [square(BOX)],
                    }
                    for i, c in images.items()
                ],
                "categories": [
                    {"id": k + 1, "name": n, "frequency": f}
                    for k, (n, f) in enumerate(zip(NAMES, GROUPS, strict=True))
                ],
            }
        )
    )


def write_detections(study, run, found):
    rows = [
        (i, category, box, score)
        for i, of_image in found.items()
        for category, score, box in of_image
    ]
    rle = [hotcoco.mask.fr_py_objects([square(box)], 30, 40)[0]["counts"] for _, _, box, _ in rows]
    path = study.paths.detections(run, 0)
    writer = ShardWriter(path.with_suffix(""), "by hand", ["plain"])
    shards = [[1, 2], [3, 4, 5]]
    for image_ids in shards:
        here = [k for k, row in enumerate(rows) if row[0] in image_ids]
        columns = {
            "image_id": [rows[k][0] for k in here],
            "category_id": [rows[k][1] for k in here],
            "height": [30] * len(here),
            "width": [40] * len(here),
            "rle": [rle[k] if isinstance(rle[k], bytes) else rle[k].encode() for k in here],
            "score:plain": np.array([rows[k][3] for k in here], np.float32),
        }
        columns |= {axis: [float(rows[k][2][n]) for k in here] for n, axis in enumerate("xywh")}
        writer.write(image_ids, columns)
    write_record(
        path,
        {
            **evaluated(study, run),
            "folder": path.stem,
            "limits": {"per_image": 300, "score_thr": 0.0},
            "shards": writer.finish(shards),
        },
    )


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "data"
    files = {
        "version": "v0.5",
        "train": str(folder / "train.json"),
        "val": str(folder / "val.json"),
        "images": str(folder / "images"),
    }
    study = load_study(
        "mini",
        overrides={
            "results": str(tmp_path / "results"),
            "seeds": [0, 1],
            "datasets": {"v05": files},
        },
    )
    write_split(folder / "train.json", dict(enumerate(TRUTH, 11)))
    write_split(folder / "val.json", dict(enumerate(TRUTH, 1)))
    (folder / "images").mkdir()
    for i in (*range(1, 6), *range(11, 16)):
        Image.new("RGB", (40, 30), (20 * i % 255, 90, 40)).save(folder / "images" / f"{i:012d}.jpg")
    matrices = np.array(
        [
            [[0.2, 0.7, 0.1], [0.1, 0.9, 0], [0, 0.3, 0.7]],
            [[0.5, 0.4, 0.1], [0.2, 0.8, 0], [0, 0.2, 0.8]],
        ]
    )
    first, others = study.pages["gallery"].compare[0], study.pages["pairs"].compare
    assert (first.before, first.after) == (others[0].before, others[0].after)
    for run, found, matrix in zip(
        (first.before, first.after), (BEFORE, AFTER), matrices, strict=True
    ):
        write_detections(study, run, found)
        write_record(
            study.paths.metrics(run, 0),
            {
                **evaluated(study, run),
                "images": 5,
                "variants": {"plain": {"AP": 50.0}},
                "classes": {
                    "plain": [
                        {"name": n, "frequency": f, "train_images": t, "AP": 40.0}
                        for n, f, t in zip(NAMES, GROUPS, TRAIN_IMAGES, strict=True)
                    ]
                },
            },
        )
        np.savez(study.paths.confusion(run, 0), matrix=matrix.astype(np.float32), seen=[30, 10, 10])
    return study


def images_of_kind(comparison, kind):
    return [image for image in comparison["images"] if image["kind"] == kind]


def test_an_object_s_class_is_that_of_the_strongest_detection_on_it(study):
    split, comparison = SplitObjects(study, "v05", "val"), study.pages["gallery"].compare[0]
    runs = (comparison.before, comparison.after)
    before, after = (match_objects(split, Results(study).detections(run, 0)) for run in runs)
    assert before.predicted_class.tolist() == [1, 2, 1, UNDETECTED, 1]
    assert after.predicted_class.tolist() == [0, UNDETECTED, 1, 1, 0]
    assert before.score.tolist() == pytest.approx([0.6, 0.2, 0.9, 0, 0.4])
    assert before.is_correct(split).tolist() == [False, True, True, False, False]
    assert split.class_label(2) == {"name": "dove", "group": "c"}


def test_the_gallery_draws_gains_and_losses_and_shows_what_was_detected(study):
    shown = tables.load_json(gather(study, "gallery"))
    softmax, rfs = shown["compare"]
    assert softmax["counts"] == {
        "r": {"objects": 3, "both": 0, "gains": 2, "losses": 0},
        "c": {"objects": 1, "both": 0, "gains": 0, "losses": 1},
        "f": {"objects": 1, "both": 1, "gains": 0, "losses": 0},
    }
    assert sorted(image["id"] for image in images_of_kind(softmax, "gains")) == [1, 5]
    assert [image["id"] for image in images_of_kind(softmax, "losses")] == [2]
    assert len({image["id"] for image in images_of_kind(softmax, "random")}) == 4
    gain = next(image for image in images_of_kind(softmax, "gains") if image["id"] == 1)
    assert [prediction["name"] for prediction in gain["predictions"]] == ["lemon", "pear"]
    assert gain["object"] == {"name": "pear", "group": "r"}
    # The page's threshold is 0.3. The pear of score 0.1 is drawn all the same, for its detection
    # is the strongest on the object; the dove of 0.05 is not.
    drawn = [[(o["name"], o["focus"]) for o in panel["objects"]] for panel in gain["panels"]]
    assert drawn == [[("lemon", True), ("pear", False)], [("pear", True)]]
    square = "M15 5v10h-10v-10z"
    assert gain["truth"][0]["path"] == gain["panels"][1]["objects"][0]["path"] == square
    second = study.pages["gallery"].compare[1]
    assert rfs["missing"] == [second.before, second.after]
    assert shown["seeds"] == [0, 1] and shown["shown_seed"] == 0
    assert tables.load_json(gather(study, "gallery")) == shown


def test_the_gallery_s_page_has_each_image_once_and_names_what_was_not_run(study):
    pieces = list(cells.gallery(tables.load_json(gather(study, "gallery"))))
    html = "".join(piece.html for piece in pieces)
    ids = re.findall(r'<image id="([^"]+)"', html)
    uses = re.findall(r'<use href="#([^"]+)"', html)
    assert len(ids) == len(set(ids)) == 7 and sorted(uses) == sorted([*ids, *ids])
    assert "2 shown of 2 objects: 2 rare and 0 common" in html
    assert "v05_r50_rfs_softmax_plain" in pieces[-1].text
    assert "Dove (common) in image 2. Softmax: dove .20. With PCB: undetected." in html


def test_a_notebook_shows_the_gallery_without_svg(study):
    """Code hosts and untrusted notebooks remove it; the page keeps it."""
    pieces = list(cells.gallery(tables.load_json(gather(study, "gallery"))))
    strips = [piece for piece in pieces if isinstance(piece, cells.Picture)]
    assert len(strips) == 7
    assert not any("<svg" in p.html for p in pieces if not isinstance(p, cells.Picture))
    data, metadata = strips[0]._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert picture.width >= 3 * 300 and "ground truth: " in metadata["image/jpeg"]["alt"]
    node = nbformat.v4.new_output("display_data", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[node])])
    assert "<svg" in render.with_html(notebook).cells[0].outputs[0].data["text/html"]
    render.without_html(notebook)
    assert set(notebook.cells[0].outputs[0].data) == {"image/jpeg", "text/plain"}


def test_the_outline_of_a_mask_is_drawn_at_its_place():
    assert raster.polygons("M4 1v2h-2v-2zM0 0h1z") == [
        [(4, 1), (4, 3), (2, 3), (2, 1)],
        [(0, 0), (1, 0)],
    ]


def test_the_gallery_counts_shown_images_against_all_objects():
    counts = {"r": {"gains": 4}, "c": {"gains": 27}}
    text = gallery_view.count_text({"counts": counts}, "gains", 5)
    assert text == "5 shown of 31 objects: 4 rare and 27 common"
    assert gallery_view.count_text({"counts": counts}, "random", 3) == "3 shown"
    nothing = {"r": {"losses": 0}, "c": {"losses": 0}}
    assert gallery_view.count_text({"counts": nothing}, "losses", 0) == "none"


def test_labels_in_an_image_do_not_cover_each_other():
    objects = [
        {"name": "orange", "group": "f", "box": [10, 10, 30, 30], "path": "", "score": s}
        for s in (0.9, 0.8, 0.7, 0.6)
    ]
    placed = gallery_view.panel({"width": 100, "height": 80}, objects)["objects"]
    tops = sorted(o["y"] for o in placed)
    assert all(below - above >= gallery_view.LABEL_HEIGHT for above, below in pairwise(tops))
    assert tops[0] >= 0 and tops[-1] + gallery_view.LABEL_HEIGHT <= 240


def test_the_explorer_lists_pairs_of_either_run_with_objects_of_both_classes(study):
    shown = tables.load_json(gather(study, "pairs"))
    listed = shown["compare"][0]["pairs"]
    assert [(p["chosen_by"], p["i"]["name"], p["j"]["name"]) for p in listed] == [
        ("before", "pear", "lemon"),
        ("before", "dove", "lemon"),
        ("before", "pear", "dove"),
    ]
    pear = listed[0]
    assert np.round(pear["M"], 4).tolist() == [[0.7, 0.1], [0.4, 0.2]]
    assert pear["i"]["train_images"] == 2 and len(pear["i"]["crops"]) == 3
    assert pear["outcomes"] == [
        {"correct": 0, "as_j": 2, "as_other": 0, "undetected": 1},
        {"correct": 2, "as_j": 1, "as_other": 0, "undetected": 0},
    ]
    after = [mistake["predictions"][1]["name"] for mistake in pear["mistakes"]]
    assert after == ["pear", "pear"]
    html = cells.explorer(shown).html
    assert "3 val objects of pear (30 proposals in M)" in html and html.count("<section") == 3
    assert "lemon .40<br>→ pear .35" in html
    after = shown["compare"][0]["both_ways"][1]
    assert dict(zip(after["groups"], after["up"], strict=True))["rf"] == pytest.approx(0.4)
    assert plots.both_ways(shown).png().startswith(b"\x89PNG")


def test_thumbnails_stay_small(tmp_path):
    Image.effect_noise((640, 480), 60).save(tmp_path / "noise.jpg")
    assert len(thumbnails.thumbnail(tmp_path / "noise.jpg")) < 120_000
    assert len(thumbnails.crop(tmp_path / "noise.jpg", [600, 440, 60, 60])) < 20_000
    mask = np.zeros((480, 640), bool)
    mask[100:300, 200:400] = True
    assert thumbnails.outline(mask) == "M400 100v200h-200v-200z"
    with pytest.raises(UserError, match=r"absent\.jpg"):
        thumbnails.thumbnail(tmp_path / "absent.jpg")


def test_pages_without_runs_show_a_note(tmp_path):
    study = study_in(tmp_path)
    for name, draw in (("gallery", cells.gallery), ("pairs", lambda page: [cells.explorer(page)])):
        shown = tables.load_json(gather(study, name))
        html = "".join(piece.html for piece in draw(shown))
        assert "not run" in html and "<img" not in html
        assert study.pages[name].title in cells.intro(shown).html
    with pytest.raises(UserError, match="snakemake --cores all gallery"):
        tables.load_json(tmp_path / "gallery.json")
