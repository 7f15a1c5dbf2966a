"""docs/own-data.md followed literally, on photographs: two JSON files to a trained detector.

coco128: 200 photographs of COCO with 69 long-tailed classes. Two epochs at 96 pixels: the numbers
mean nothing, but every step of Table 2 runs, from `pcb new-scale` to the site.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pcb.files import ROOT
from pcb.study import load_study

COCO128 = Path(__file__).resolve().parents[3] / "shared/data/coco128"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO128.exists(), reason=f"{COCO128} (200 photographs) is missing"),
]
PAGE = (ROOT / "docs/own-data.md").read_text()
# The scale is written beside the data, not into the repository, and trains two epochs on a CPU.
# Measuring times would take as long as the trainings.
CHANGES = {
    "--name mine": "--name mine --out mine.yaml --device cpu --epochs 2",
    "--scale mine": "--scale mine.yaml",
    "scale=mine": "scale=mine.yaml",
    " --measure": "",
    "--cores all": "--cores 2",
}


def run(command: str, folder: Path) -> str:
    for old, new in CHANGES.items():
        command = re.sub(rf"{old}\b(?!\.)", new, command)
    program, *arguments = shlex.split(command)
    if program == "snakemake":
        arguments = ["--snakefile", str(ROOT / "Snakefile"), *arguments]
    if program == "python":
        program, *arguments = arguments
    result = subprocess.run(
        [sys.executable, *(["-m"] if program in ("pcb", "snakemake") else []), program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-5000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data as the page describes it."""
    folder = tmp_path_factory.mktemp("own")
    photos = folder / "data/mine/photos"
    photos.mkdir(parents=True)
    for split in ("train", "val"):
        (photos.parent / f"{split}.json").symlink_to(COCO128 / f"instances_{split}2017.json")
        for photo in (COCO128 / f"images/{split}2017").iterdir():
            (photos / photo.name).symlink_to(photo)
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """What each command of the page printed, by its first two words."""
    out: dict[str, str] = {}
    for language, text in re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S):
        if language == "python":
            if "photo.jpg" not in text:
                (folder / "snippet.py").write_text(text)
                run("python snippet.py", folder)
            continue
        for command in text.splitlines():
            out[" ".join(command.split()[:2])] = run(command, folder)
            if "new-scale" in command:
                detector = folder / "mine.py"
                small = re.sub(r"scale=\(\d+, \d+\)", "scale=(96, 96)", detector.read_text())
                detector.write_text(small)
    return out


def test_table_2_of_ones_own(folder, printed, monkeypatch):
    monkeypatch.chdir(folder)
    study = load_study("mine.yaml")
    metrics = [read(study.paths.metrics(row.run, 0)) for row in study.tables["table02"].rows]
    assert len(metrics) == 8
    for record in metrics:
        assert record["images"] == 100
        assert all(0 <= v <= 100 for v in record["variants"]["plain"].values() if v is not None)
    page = (study.paths.site / "tables/table02.md").read_text()
    assert page.count("My photographs") >= 8 and "not run" not in page


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_no_page_names_another_data_set(folder, printed):
    """LVIS is named as the source of the protocol and in departures, never as the data."""
    for path in [*(folder / "results/mine/site").rglob("*.md"), *(folder / "mine-site").glob("*")]:
        if path.suffix in (".md", ".html"):
            assert "LVIS v0.5" not in path.read_text(), path


def test_the_exported_detector_and_its_bias(folder, printed):
    detections = read(folder / "detections.json")
    categories = {c["id"] for c in read(folder / "data/mine/val.json")["categories"]}
    assert detections and {d["category_id"] for d in detections} <= categories
    assert "PwB" in printed["pcb bias"]


def test_new_scale_says_what_it_found(printed):
    text = " ".join(printed["pcb new-scale"].split())
    assert "80; train has no usable object of" in text and "(11 in all)" in text
    assert "every class counts in every image" in text
