"""A fixed part of the mutation test of the pipeline (tests/manual/pipeline_mutants.py)."""

import csv
import importlib
import sys

import pytest

from pcb.files import ROOT

pytestmark = pytest.mark.slow

CHOSEN = [
    "annotations of train: edit",
    "image of val: zero",
    "final checkpoint, read: flip",
    "index of val, read: zero",
    "shard of detections, read: flip",
    "confusion.npz, read: zero",
    "metrics.json: edit",
    "bootstrap.npz, read: cut",
    "gathered table, read: flip",
    "table as CSV: edit",
    "folder: copied without times",
    "folder: moved",
]


@pytest.fixture(scope="module")
def script():
    """The script, which is in no package. It imports all libraries, so that its forks need not."""
    sys.path.insert(0, str(ROOT / "tests/manual"))
    yield importlib.import_module("pipeline_mutants")
    sys.path.remove(str(ROOT / "tests/manual"))


@pytest.fixture(scope="module")
def bases(script):
    with script.workplace(None) as bases:
        yield bases


@pytest.mark.parametrize("name", CHOSEN)
def test_no_number_is_wrong_without_a_word(script, bases, name):
    (mutation,) = [m for m in script.mutations(every=True) if m.name == name]
    outcome = script.judge(mutation, bases)
    assert outcome.fine, outcome


def test_a_page_never_shows_two_recipes(script, bases):
    """One of two runs is scored again with another threshold; the page is made from both."""
    project = bases.get("own").copy(bases.folder / "mixed")
    page = project.root / f"site/tables/{script.TABLE}.csv"
    before = [row["ours AP"] for row in csv.DictReader(page.open())]
    script.set_scale("test", "max_per_image", value=7)(project, bases)
    metrics = f"{script.RESULTS}/runs/{script.BRANCH}/seed0/metrics.json"
    code, output = project.snakemake(targets=[metrics])
    assert not code, output
    study = ["--study", str(project.root / "study.json")]
    for verb in ("gather", "render"):
        code, output = project.pcb([verb, script.TABLE, *study])
        assert not code, output
    after = [row["ours AP"] for row in csv.DictReader(page.open())]
    assert all(before) and after[:-1] == [""] * 3, "of the trunk, which counts as not run"
    assert after[-1] and after[-1] != before[-1], "of the branch, scored again"


def test_names_of_mutations_are_unique(script):
    names = [mutation.name for mutation in script.mutations(every=True)]
    assert len(set(names)) == len(names) >= 200
