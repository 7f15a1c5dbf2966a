"""docs/adding-a-row.md followed literally: its files load, its loss trains, its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pcb.files import ROOT
from pcb.study import load_study
from pcb.training.model import model_overrides

PAGE = (ROOT / "docs/adding-a-row.md").read_text()
ALPHA = "v05_r50_rfs_softmax_iterative_pcb-a0.3-g0.99"
COUNTS = [1, 10, 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the files of the page."""
    folder = tmp_path_factory.mktemp("study")
    blocks = [
        block
        for lang in ("yaml", "python")
        for block in re.findall(rf"```{lang}\n(.*?)```", PAGE, re.S)
    ]
    for name, text in zip(
        ("my_alpha.yaml", "my_loss.yaml", "logit_adjustment.py"), blocks, strict=True
    ):
        assert f"`{name}`" in PAGE
        (folder / name).write_text(text)
    return folder


def commands() -> list[list[str]]:
    lines = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).splitlines()
    return [shlex.split(line) for line in lines]


def test_the_row_resolves_and_nothing_else_is_made_again(folder):
    shipped, study = load_study("smoke"), load_study("smoke", overlay=folder / "my_alpha.yaml")
    assert [row.id for row in study.tables["table06"].rows if row.run == ALPHA] == ["a0.3"]
    assert study.experiments[ALPHA].trunk == "v05_r50_rfs_softmax_iterative"
    for run in shipped.experiments:
        assert study.fingerprint(run, 0) == shipped.fingerprint(run, 0)


@pytest.fixture(scope="module")
def loss(folder):
    """A function that builds the page's loss as a training does."""
    study = load_study("smoke", overlay=folder / "my_loss.yaml")
    head = model_overrides(
        study.experiments["v05_r50_random_la_plain"],
        num_classes=3,
        instance_counts=COUNTS,
        registry=study.registry,
    )["roi_head"]["bbox_head"]["loss_cls"]
    arguments = {key: value for key, value in head.items() if key not in ("type", "_delete_")}
    cls = study.registry.losses["la"].load()
    return lambda **changes: cls(**{**arguments, **changes})


def test_the_loss_is_the_formula_with_background_left_alone(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    label = torch.arange(8) % 4
    share = torch.tensor([*(n / 10 for n in COUNTS), 1], dtype=torch.float64)  # geometric mean: 10
    odds = logits.exp() * share
    expected = -(odds[torch.arange(8), label] / odds.sum(1)).log().mean()
    torch.testing.assert_close(loss()(logits, label), expected)
    torch.testing.assert_close(loss().get_activation(logits), logits.softmax(1))


def test_the_loss_without_tau_or_with_equal_counts_is_cross_entropy(loss):
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    label = torch.arange(8) % 4
    plain = torch.nn.functional.cross_entropy(logits, label)
    for adjusted in (loss(instance_counts=[7, 7, 7]), loss(tau=0.0)):
        torch.testing.assert_close(adjusted(logits, label), plain)


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "snakemake"])
def test_the_commands_train_only_what_is_new(command, folder, tmp_path):
    """As dry runs; test_commands.py follows every command of the page."""
    command = [re.sub(r"paper=(.*)", rf"paper={folder}/\1", word) for word in command]
    position = command.index("--config") + 1
    command[position:position] = [f"results={tmp_path}"]
    command = [word.replace("results/smoke", f"{tmp_path}/smoke") for word in command]
    done = subprocess.run(
        [sys.executable, "-m", command[0], "--dry-run", *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^train +[12]$", done.stdout, re.M), done.stdout


def test_the_paths_of_the_commands_are_those_of_the_study():
    study = load_study("smoke")
    for path in re.findall(r"(results/smoke/\S+)", "\n".join(map(" ".join, commands()))):
        parts = Path(path).parts
        if path.endswith("metrics.json"):
            assert Path(path) == study.paths.metrics(parts[3], 0)
        else:
            assert Path(path) == study.paths.table(Path(path).stem, "md")
