"""The whole pipeline at the smoke scale: data, every training, scores, tables, site. Minutes."""

import json
import re
import subprocess
import sys

import pytest

from pcb.files import ROOT
from pcb.reporting import tables
from pcb.study import load_study
from pcb.study.variants import confusion_splits

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
    (folder / "log.txt").write_text(result.stdout)
    assert result.returncode == 0, result.stdout[-10_000:]
    return folder


@pytest.fixture
def study(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return load_study("smoke")


def test_every_row_is_measured(study):
    for target in study.tables:
        for row in tables.load(study.paths.gathered(target)).rows:
            (values,) = row.ours.values()
            first = next(iter(values.values()))
            assert 0 <= first <= 100, f"{target}, {row.id}"


def test_a_training_detects_too_unless_a_calibration_needs_another_job_first(study):
    for run in study.runs():
        taken = "detected after its training" in study.paths.log(f"infer/{run}/seed0").read_text()
        assert taken == ("train" not in confusion_splits(study.variants(run))), run


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


def test_pages_show_images(study):
    for page in study.pages:
        assert "data:image/jpeg" in study.paths.html(page).read_text(), page
        assert study.paths.figure(page).exists(), page


def test_branches_start_from_their_trunk(study):
    for trunk, members in study.trunks.items():
        records = [json.loads(study.paths.train(run, 0).read_text()) for run in members]
        assert all(record["trunk"]["run"] == trunk for record in records)
        assert len({record["trunk"]["weights"] for record in records}) == 1


def test_every_training_records_its_provenance(study):
    for run, experiment in study.experiments.items():
        record = json.loads(study.paths.train(run, 0).read_text())
        epochs = sum(
            stage.epochs or study.schedule["epochs"]
            for stage in study.registry.stages(experiment.loss)
        )
        assert record["fingerprint"] == study.fingerprint(run, 0) and record["epochs"] == epochs
        assert {"git", "versions", "hardware", "seconds", "sha256", "checkpoint"} <= set(record)
        assert json.loads(study.paths.metrics(run, 0).read_text())["git"] == record["git"]


def test_progress_is_logged_in_single_lines(folder):
    log = (folder / "log.txt").read_text()
    done = re.findall(r"^\d\d:\d\d:\d\d  done (\d+)/(\d+) ", log, re.MULTILINE)
    assert done[-1][0] == done[-1][1]
    assert [int(n) for n, _ in done] == list(range(1, len(done) + 1))
    assert " left\n" in log and "jobid" not in log
    last = log.splitlines()[-1]
    assert last == f"open {(folder / 'results/smoke/site/index.html').resolve()}"


def test_table_2_and_the_site_come_first(folder, study):
    """Before them, nothing else is trained but what a free core takes."""
    log = (folder / "log.txt").read_text()

    def others_trained(before):
        names = re.findall(r"done \S+ +Train (\S+)", log.partition(before)[0])
        return len({*names} - {*study.runs("table02")})

    assert others_trained("Render table02") <= 2
    assert others_trained(f" of {len(study.targets)} pages)") <= 2


def test_every_result_is_a_declared_output(folder, study):
    lines = snakemake(folder, "--summary", "--forceall").stdout.splitlines()
    declared = {line.split("\t")[0] for line in lines if line.startswith("results/")}
    # What a manifest or a record stands for, and what no job reads.
    undeclared = (
        r"study\.json|\.lock|work/|logs/|benchmarks/|runs/.*/(images-|(trunk-)?log\.jsonl)"
        r"|data/(\w+/|index/|\w+\.images\.json)"
    )
    root = study.paths.root
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    unknown = {file for file in files if not re.match(undeclared, file)}
    assert {f"{root}/{file}" for file in unknown} <= declared


def test_nothing_is_left_to_do(folder):
    assert "Nothing to be done" in snakemake(folder, "-n").stdout
