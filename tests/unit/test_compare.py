"""`pcb compare`: cells and claims of two folders, intervals, exit status."""

import json
import shutil

import numpy as np
import pytest
from fabricate import RFS_PCB, SOFTMAX, fabricate, resample, study_in

from pcb import cli
from pcb.reporting.compare import compare
from pcb.reporting.gather import gather
from pcb.reporting.site.build import build
from pcb.reporting.tables import FORMS, load
from pcb.study.load import save_study_json

RFS = "v05_r50_rfs_softmax_plain"


def results_in(folder, seeds=(0, 1), shift=0.0):
    """A results folder with two rows of Table 2 measured."""
    study = study_in(folder, seeds)
    save_study_json(study)
    for seed in seeds:
        fabricate(study, RFS, seed, AP=20.0 + seed / 10)
        fabricate(study, RFS_PCB, seed, AP=22.0 + seed / 10 + shift)
    return study


def site_of(study):
    """The site of a results folder; its tables are written without a kernel."""
    for target in study.tables:
        table = load(gather(study, target))
        path = study.paths.table(target, "csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FORMS["csv"](table), encoding="utf-8")
    build(study)
    return study.paths.site


@pytest.fixture
def study(tmp_path):
    return results_in(tmp_path / "a")


def run(*arguments):
    """The exit status of `pcb compare`."""
    try:
        return cli.main(["compare", *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code


def test_results_equal_themselves_a_moved_copy_and_their_site(study, tmp_path, capsys):
    root = study.paths.root
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert run(root, tmp_path / "elsewhere/copy") == 0
    assert "equal: " in capsys.readouterr().out.splitlines()[-1]
    assert run(root, site_of(study)) == 0
    assert "claims have the same verdict" in capsys.readouterr().out


def test_a_difference_is_listed_with_its_interval_and_changes_the_status(study, tmp_path, capsys):
    other = results_in(tmp_path / "b", shift=0.3)
    assert run(study.paths.root, other.paths.root) == 1
    printed = capsys.readouterr().out
    assert "table02  LVIS v0.5 · RFS · ✓  AP  22.05 → 22.35  +0.30" in printed
    assert "outside noise" in printed and printed.splitlines()[-1].startswith("different: ")
    assert run(study.paths.root, other.paths.root, "--tolerance", "0.31") == 0


def test_a_bootstrap_over_the_same_images_gives_the_interval(study, tmp_path):
    other = results_in(tmp_path / "b", shift=0.3)
    rng = np.random.default_rng(0)
    image_noise, other_noise = rng.normal(0, 5, 50), rng.normal(0, 0.1, 50)
    for of, shift in ((study, 0.0), (other, 0.3)):
        for seed in (0, 1):
            values = 22 + shift + image_noise + (other_noise if shift else 0)
            resample(of, RFS_PCB, seed, {("lvis", "plain"): {"AP": values}})
    found = compare(study.paths.root, other.paths.root)
    cell = next(c for c in found.different if (c.table, c.metric) == ("table02", "AP"))
    assert cell.images and cell.seeds == (0, 1)
    # What an image adds to both sides cancels: 0.1 of spread is left, not 5.
    assert 0.05 < cell.high - cell.low < 0.6 and cell.low < 0.3 < cell.high


def test_cells_and_seeds_of_one_side_alone_count_unless_common_is_asked_for(
    study, tmp_path, capsys
):
    one_seed = results_in(tmp_path / "b", seeds=(0,))
    fabricate(one_seed, SOFTMAX, 0)
    found = compare(study.paths.root, one_seed.paths.root)
    assert {c.seeds for c in found.cells if c.seeds} == {(0,)}
    assert {c.state for c in found.different} == {"only in B"} and not found.equal
    assert run(study.paths.root, one_seed.paths.root) == 1
    assert "--common leaves those out" in capsys.readouterr().out
    assert run(study.paths.root, one_seed.paths.root, "--common") == 0


def test_a_claim_with_another_verdict_is_a_difference(study, tmp_path, capsys):
    other = results_in(tmp_path / "b")
    for seed in (0, 1):
        fabricate(other, RFS_PCB, seed, AP=22.0 + seed / 10, PwB=99.0)
        fabricate(study, RFS_PCB, seed, AP=22.0 + seed / 10, PwB=90.0)
    assert run(study.paths.root, other.paths.root, "--json", "--tolerance", "10") == 1
    data = json.loads(capsys.readouterr().out)
    assert data["claims"] and all(c["a"] != c["b"] for c in data["claims"])
    assert not data["equal"] and not any(c["state"] == "differs" for c in data["cells"])


def site_in(path):
    (path / "data").mkdir(parents=True)
    (path / "data/metrics.csv").touch()


@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        (lambda path: None, "does not exist", "name a results folder"),
        (lambda path: path.touch(), "is not a folder", "name a results folder"),
        (lambda path: path.mkdir(), "neither study.json nor data/metrics.csv", "pcb publish"),
        (
            lambda path: (path / "mini").mkdir(parents=True) or (path / "mini/study.json").touch(),
            "neither study.json",
            "mini",
        ),
        (lambda path: site_in(path / "site"), "neither study.json", "the folder instead: {}/site"),
        (lambda path: site_in(path / "mini/site"), "neither study.json", "{}/mini/site"),
        (lambda path: site_in(path.parent) or path.touch(), "is not a folder", "instead: {}/.."),
        (
            lambda path: (
                (path / "data").mkdir(parents=True)
                or (path / "data/metrics.csv").write_text("run,seed\nx,0\n")
            ),
            "cannot be read as a site: KeyError",
            "restore it",
        ),
    ],
)
def test_a_folder_without_results_is_an_error_with_a_fix(study, tmp_path, capsys, make, what, fix):
    make(tmp_path / "other")
    assert run(study.paths.root, tmp_path / "other") == 2
    error, hint = capsys.readouterr().err.splitlines()
    fix = fix.format(tmp_path / "other").replace("/other/..", "")
    assert what in error and fix in hint


def test_results_without_a_common_cell_are_an_error(study, tmp_path, capsys):
    other = results_in(tmp_path / "b", seeds=(7,))
    assert run(study.paths.root, other.paths.root) == 2
    assert "no measured cell in common" in capsys.readouterr().err
