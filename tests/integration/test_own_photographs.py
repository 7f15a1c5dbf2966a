"""docs/own-data.md followed on real photographs: two JSON files to Table 2, a detector, its bias.

A quarter of coco128's photographs, two epochs at 96 pixels: the numbers mean nothing, but the
page's commands and every job of Table 2 run. Jobs run in this process, since each would spend more
time on its start than on its work.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pcb import cli
from pcb.files import ROOT
from pcb.study import Study, load_study
from pcb.study.variants import confusion_splits, gamma_split, with_gamma

COCO128 = Path(__file__).resolve().parents[3] / "shared/data/coco128"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO128.exists(), reason=f"{COCO128} (200 photographs) is missing"),
]
PAGE = (ROOT / "docs/own-data.md").read_text()
EVERY = {"train": 4, "val": 5}
# The scale is written beside the data, not into the repository, and trains two epochs on a CPU.
# Measuring times would take as long as the trainings.
CHANGES = {
    "--name mine": "--name mine --out mine.yaml --device cpu --epochs 2",
    "--scale mine": "--scale mine.yaml",
    " --measure": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data as the page describes it; it is the working directory."""
    folder = tmp_path_factory.mktemp("own")
    photos = folder / "data/mine/photos"
    photos.mkdir(parents=True)
    for split, step in EVERY.items():
        content = read(COCO128 / f"instances_{split}2017.json")
        content["images"] = content["images"][::step]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (photos.parent / f"{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            source = COCO128 / f"images/{split}2017" / image["file_name"]
            (photos / image["file_name"]).symlink_to(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def followed(folder):
    """The folder after every command of the page."""
    for language, text in re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S):
        if language == "python" and "photo.jpg" not in text:
            exec(compile(text, "docs/own-data.md", "exec"), {})
        for command in text.splitlines() if language == "sh" else ():
            follow(command)
    return folder


def follow(command: str) -> None:
    command, _, comment = command.partition(" # ")
    if "only with --device cuda" in comment:
        return
    for old, new in CHANGES.items():
        command = re.sub(rf"{old}\b(?!\.)", new, command)
    program, verb, *arguments = shlex.split(command)
    if program == "snakemake":
        run_jobs(load_study("mine.yaml"), arguments[-1])
        return
    assert cli.main([verb, *arguments]) == 0, command
    if verb == "new-scale":
        make_small()


def make_small() -> None:
    """Photographs at 96 pixels, and few detections of each."""
    detector, scale = Path("mine.py"), Path("mine.yaml")
    detector.write_text(re.sub(r"scale=\(\d+, \d+\)", "scale=(96, 96)", detector.read_text()))
    content = yaml.safe_load(scale.read_text())
    content["test"] |= {"max_per_image": 20, "keep_per_image": 30}
    scale.write_text(yaml.safe_dump(content))


def run_jobs(study: Study, target: str) -> None:
    """The jobs of a table, as the workflow's rules run them."""

    def job(*words: str) -> None:
        assert cli.main([*words, "--scale", "mine.yaml"]) == 0, words

    job("pretrain", "r50")
    for run in study.tables[target].runs:
        variants, trunk = study.variants(run), study.experiments[run].trunk
        if trunk and not study.paths.trunk(trunk, 0).exists():
            job("trunk", trunk)
        job("train", run)
        if "train" in confusion_splits(variants):
            job("confusion", run)
        job("infer", run)
        if with_gamma(variants):
            job("infer", run, "--split", gamma_split(study, run))
        job("score", run)
    job("gather", target)
    job("render", target)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_page_ends_in_table_2(followed):
    study = load_study("mine.yaml")
    rows = study.tables["table02"].rows
    assert len(rows) == 8
    for row in rows:
        metrics = read(study.paths.metrics(row.run, 0))
        assert metrics["images"] == 20
        values = [v for v in metrics["variants"]["plain"].values() if v is not None]
        assert all(0 <= value <= 100 for value in values)
    table = (study.paths.site / "tables/table02.md").read_text()
    assert table.count("My photographs") >= 8 and "not run" not in table


def test_no_page_is_titled_with_another_data_set(followed):
    """The glossary, in a script, explains what LVIS v0.5 is."""
    site = followed / "mine-site"
    for path in (site / "index.html", *site.glob("tables/*"), *site.glob("notebooks/*.html")):
        text = re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.S)
        assert "LVIS v0.5" not in text, path
        assert path.suffix != ".html" or "My photographs" in text, path


def test_detections_have_the_category_ids_of_the_file(followed):
    names = {c["id"]: c["name"] for c in read(followed / "data/mine/val.json")["categories"]}
    exported = read(followed / "mine-detector/classes.json")
    assert {entry["id"]: entry["name"] for entry in exported} == names and max(names) == 90
    found = {d["category_id"] for d in read(followed / "detections.json")}
    assert found and found <= names.keys()
