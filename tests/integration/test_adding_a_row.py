"""docs/adding-a-row.md, followed literally in a copy: its patches apply, its loss passes its own test, its rows resolve."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pcb.study import load_study

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding-a-row.md").read_text()
TELLS = """
import json
from pcb.methods import model_overrides
from pcb.study import load_study
study = load_study("smoke")
new = {run: [t for t in study.tables if run in study.runs(t)] for run in study.runs()}
head = model_overrides(study.experiments["v05_r50_random_la_plain"], num_classes=3, instance_counts=[1, 10, 100])["roi_head"]["bbox_head"]
import test_losses_logit_adjustment as page
for name in dir(page):
    if name.startswith("test_"):
        getattr(page, name)()
from pcb import losses
loss = head["loss_cls"]
getattr(losses, loss.pop("type"))(**{key: value for key, value in loss.items() if key != "_delete_"})
print(json.dumps([new, study.experiments["v05_r50_rfs_softmax_iterative_pcb-a0.3-g0.99"].trunk,
                  {run: study.fingerprint(run, 0) for run in study.experiments}]))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the repository after the page's edits."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("pcb", "configs", "workflow"):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.pth", "sprites.webp"),
        )
    (copy / "tests").mkdir()
    for patch in blocks("diff"):
        alone = {
            **os.environ,
            "GIT_CEILING_DIRECTORIES": str(copy.parent),
        }  # in whatever repository the temporary folder lies
        done = subprocess.run(
            ["git", "apply", "-"], input=patch, text=True, capture_output=True, cwd=copy, env=alone
        )
        assert done.returncode == 0, done.stderr
    for name, code in zip(
        ("pcb/losses/logit_adjustment.py", "tests/test_losses_logit_adjustment.py"),
        blocks("python"),
        strict=True,
    ):
        assert f"`{name}`" in PAGE
        (copy / name).write_text(code)
    return copy


def test_the_rows_resolve_and_the_loss_passes_its_test(followed):
    code = f"import sys; sys.path[:0] = [{str(followed)!r}, {str(followed / 'tests')!r}]\n{TELLS}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=followed
    )
    assert done.returncode == 0, done.stderr
    tables, trunk, prints = json.loads(done.stdout)
    assert tables["v05_r50_random_la_plain"] == ["table02"] and tables[
        "v05_r50_rfs_softmax_iterative_pcb-a0.3-g0.99"
    ] == ["table06"]
    assert trunk == "v05_r50_rfs_softmax_iterative"
    before = load_study("smoke")
    assert {
        run: before.fingerprint(run, 0) for run in before.experiments
    }.items() <= prints.items()  # nothing else is made again


def test_the_registration_reaches_mmdet(followed):
    assert (
        "losses.LogitAdjustedLoss"
        in (followed / "pcb/mmdet.py").read_text().partition("METHODS = (")[2].partition(")")[0]
    )


def test_the_commands_name_what_exists():
    study = load_study("smoke")
    for path in re.findall(r"(results/smoke/\S+)", "".join(blocks("sh"))):
        parts = Path(path).parts
        expected = (
            study.paths.metrics(parts[3], 0)
            if path.endswith("metrics.json")
            else study.paths.table(Path(path).stem, "md")
        )
        assert Path(path) == expected
