"""The whole pipeline, for real, at the smoke scale: data, pretraining, every training, scores, tables, figure. Minutes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pcb.study import load_study

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def snakemake(folder, *arguments):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        folder,
        "--config",
        "scale=smoke",
    ]
    return subprocess.run(
        [*command, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    result = snakemake(folder, "--cores", "2")
    (folder / "said.txt").write_text(result.stdout)
    assert result.returncode == 0, result.stdout[-10_000:]
    return folder


@pytest.fixture
def study(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return load_study("smoke")


def test_every_row_is_measured(study):
    for target, table in study.tables.items():
        with study.paths.gathered(target).open() as file:
            lines = list(csv.DictReader(file))
        for row in table.rows:
            mine = [line for line in lines if line["id"] == row.id]
            assert {line["status"] for line in mine} == {"measured"}, f"{target}, {row.id}"
            assert (
                0
                <= float(next(line["ours"] for line in mine if line["metric"] == table.columns[0]))
                <= 100
            )


def test_every_table_is_rendered(study):
    for target in study.tables:
        pages = [
            study.paths.notebook(target),
            study.paths.html(target),
            *(study.paths.table(target, s) for s in ("csv", "md", "tex")),
        ]
        assert all(page.stat().st_size > 100 for page in pages), target
        outputs = [
            cell.get("outputs")
            for cell in json.loads(pages[0].read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        assert any(outputs), target
    assert study.paths.figure("figure1").exists() and study.paths.index.exists()


def test_pages_show_pictures(study):
    for page in study.pages:
        assert (
            "data:image/jpeg" in study.paths.html(page).read_text()
            and study.paths.figure(page).exists()
        ), page


def test_branches_start_from_their_trunk(study):
    for trunk, members in study.trunks.items():
        records = [json.loads(study.paths.train(run, 0).read_text()) for run in members]
        assert all(record["trunk"]["run"] == trunk for record in records)
        assert len({record["trunk"]["sha256"] for record in records}) == 1


def test_every_training_says_where_it_comes_from(study):
    for run, experiment in study.experiments.items():
        record = json.loads(study.paths.train(run, 0).read_text())
        epochs = sum(
            stage.epochs or study.schedule["epochs"]
            for stage in study.registry.stages(experiment.loss)
        )
        assert record["fingerprint"] == study.fingerprint(run, 0) and record["epochs"] == epochs
        assert {"git", "versions", "hardware", "seconds", "sha256", "checkpoint"} <= set(record)


def test_progress_was_told_in_single_lines(folder):
    said = (folder / "said.txt").read_text()
    done = re.findall(r"^\d\d:\d\d:\d\d  done (\d+)/(\d+) ", said, re.MULTILINE)
    assert done[-1][0] == done[-1][1] and [int(n) for n, _ in done] == list(range(1, len(done) + 1))
    assert " left\n" in said and "index.html" in said and "jobid" not in said


def test_nothing_is_left_to_do(folder):
    assert "Nothing to be done" in snakemake(folder, "-n").stdout
