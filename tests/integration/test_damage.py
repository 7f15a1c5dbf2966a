"""A damaged file is refused with a fix that works when it is followed literally, or made again.

The files of one evaluated run are damaged one by one, scoring runs again, and the commands in its
errors are followed. The metrics must be those of the undamaged files.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from pcb import cli
from pcb.files import sha256, write_json
from pcb.study import load_study
from pcb.study.load import study_json
from pcb.study.records import read_record, write_record
from pcb.synthetic.generate import Recipe, write_dataset
from pcb.training import build
from pcb.training.checkpoint import save_hashed

RUN = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"


def study_in(results, data):
    files = {"version": "v0.5", "images": str(data / "images")}
    files |= {split: str(data / f"{split}.json") for split in ("train", "val", "dev")}
    overrides = {"results": str(results), "datasets": {"v05": files, "v1": files}, "seeds": [0]}
    study = load_study("smoke", overrides=overrides)
    study.scale["test"]["max_per_image"] = 12
    write_json(study.paths.study, study_json(study))
    return study


def run(study, *command):
    """The exit status of a verb on the study."""
    return cli.main([*command, "--study", str(study.paths.study)])


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Results with one run of random weights, detected and scored."""
    root = tmp_path_factory.mktemp("scored")
    recipe = Recipe(train_images=24, val_images=10, dev_images=6, head=10)
    write_dataset(recipe, "v05", root / "data")
    study = study_in(root / "results", root / "data")
    torch.manual_seed(0)
    model = build.detector(study, RUN)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.3)
    fingerprint = study.fingerprint(RUN, 0)
    state = {"state_dict": model.state_dict(), "meta": {"classes": 60}}
    path = save_hashed(study.paths.work(fingerprint), "final", state)
    record = {"fingerprint": fingerprint, "checkpoint": str(path), "sha256": sha256(path)}
    write_record(study.paths.train(RUN, 0), record)
    assert run(study, "infer", RUN) == run(study, "score", RUN) == 0
    return root


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def cut(data):
    return data[: len(data) // 2]


FILES = [
    "runs/*/*/detections.json",
    "runs/*/*/detections/*.parquet",
    "runs/*/*/confusion.npz",
    "runs/*/*/confusion-images.npz",
    "data/index/val-*.arrow",
    "data/index/val-*.json",
]


@pytest.mark.parametrize("damage", [flip, cut, lambda data: b"{}"], ids=["flip", "cut", "other"])
@pytest.mark.parametrize("pattern", FILES)
def test_the_fix_of_a_damaged_file_works_when_followed(scored, tmp_path, capsys, pattern, damage):
    shutil.copytree(scored / "results", tmp_path / "results")
    study = study_in(tmp_path / "results", scored / "data")
    expected = read_record(study.paths.metrics(RUN, 0))["variants"]
    study.paths.metrics(RUN, 0).unlink()
    (file,) = study.paths.root.glob(pattern)
    file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    followed = []
    while run(study, "score", RUN):
        error = capsys.readouterr().err
        what, fix = re.search(r"error: (.*)\nfix: (.*)", error).groups()
        assert str(file) in what, "the damaged file is named"
        (command,) = re.findall(r"`pcb ([^`]*)`", fix)
        if fix.startswith("delete it"):
            Path(what.split()[0]).unlink()
        assert command not in followed, error
        followed.append(command)
        assert cli.main(shlex.split(command)) == 0
    assert read_record(study.paths.metrics(RUN, 0))["variants"] == expected
    assert followed or "index" in pattern
