"""Bad input ends in one message with file, reason and fix, and status 2; earlier results stay.

Every case runs the real command in a process of its own. The units have their own tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from training import PLAIN, tiny_study

from pcb.files import ROOT, write_json
from pcb.study.records import write_record
from pcb.training.checkpoint import save_hashed, sha256

RECIPE = {"train_images": 24, "val_images": 2, "dev_images": 2, "head": 10}


def pcb(*arguments):
    """Run the command `pcb`; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "pcb", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_refused(result, *words):
    """One message with what and fix, status 2, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert message.count("error: ") == 1 and "\nfix: " in message, message
    for word in words:
        assert str(word) in message, message


def snapshot(folder):
    """Content of every file below a folder, except for work folders and the annotation index."""
    temporary = {"work", "index"}
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not temporary & set(path.parts)
    }


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A small data set, drawn once."""
    folder = tmp_path_factory.mktemp("scenes")
    scale = yaml.safe_load((ROOT / "configs/scale/smoke.yaml").read_text())
    scale["synthetic"].update(RECIPE)
    (folder / "scale.yaml").write_text(yaml.safe_dump({**scale, "results": str(folder)}))
    result = pcb("make-data", "v05", "--scale", folder / "scale.yaml")
    assert result.returncode == 0, result.stderr
    return folder / "smoke/data/v05"


def files(folder):
    """A data set in `folder`, as a scale's YAML names it."""
    return {
        "version": "v0.5",
        "images": str(folder / "images"),
        **{split: str(folder / f"{split}.json") for split in ("train", "val")},
    }


class Project:
    """A scale in a temporary folder, with its own data set and a result of an earlier run."""

    def __init__(self, folder, scenes):
        self.folder = folder
        self.data = Path(shutil.copytree(scenes, folder / "data"))
        self.train = self.data / "train.json"
        self.scale = yaml.safe_load((ROOT / "configs/scale/smoke.yaml").read_text())
        self.scale.update(
            results=str(folder / "results"),
            datasets={dataset: files(self.data) for dataset in ("v05", "v1")},
        )
        self.scale["train"]["rfs_threshold"] = 0.3
        self.earlier = folder / "results/smoke/data/v05.check.json"
        self.earlier.parent.mkdir(parents=True)
        self.earlier.write_text("an earlier result")

    @property
    def yaml(self):
        path = self.folder / "scale.yaml"
        path.write_text(yaml.safe_dump(self.scale))
        return path

    def annotations(self, change):
        value = json.loads(self.train.read_text())
        change(value)
        self.train.write_text(json.dumps(value))


@pytest.fixture
def project(tmp_path, scenes):
    return Project(tmp_path, scenes)


# Data


def missing_file(project):
    project.train.unlink()
    return project.train, "No such file"


def truncated_file(project):
    text = project.train.read_text()
    project.train.write_text(text[: len(text) // 2])
    return project.train, "JSON"


def missing_image(project):
    image = next((project.data / "images").rglob("*.jpg"))
    image.unlink()
    return image.name, "missing"


def unknown_image(project):
    project.annotations(lambda value: value["annotations"][0].update(image_id=10**9))
    return project.train, "name a missing image"


def unknown_category(project):
    project.annotations(lambda value: value["annotations"][0].update(category_id=4321))
    return project.train, "name a missing category"


def absent_class(project):
    name = {}

    def drop(value):
        category = value["categories"][0]
        name["is"] = category["name"]
        value["annotations"] = [
            a for a in value["annotations"] if a["category_id"] != category["id"]
        ]

    project.annotations(drop)
    return project.train, name["is"]


def idle_threshold(project):
    project.scale["train"]["rfs_threshold"] = 1e-6
    return project.train, "rfs_threshold", "1e-06"


DATA_FAULTS = [
    missing_file,
    truncated_file,
    missing_image,
    unknown_image,
    unknown_category,
    absent_class,
    idle_threshold,
]


@pytest.mark.parametrize("spoil", DATA_FAULTS)
def test_faulty_data_is_refused_before_anything_trains(project, spoil):
    words = spoil(project)
    assert_refused(pcb("check-data", "v05", "--scale", project.yaml), *words)
    assert project.earlier.read_text() == "an earlier result"


def test_faults_of_all_data_sets_are_reported_together(project):
    project.scale["datasets"]["v1"] = {
        **project.scale["datasets"]["v05"],
        "train": str(project.data / "nowhere.json"),
        "version": "v1.0",
    }
    missing_file(project)
    assert_refused(
        pcb("check-data", "--scale", project.yaml), project.train, project.data / "nowhere.json"
    )


def test_valid_data_pass(project):
    result = pcb("check-data", "v05", "--scale", project.yaml)
    assert result.returncode == 0, result.stderr
    assert json.loads(project.earlier.read_text())["dataset"] == "v05"


# YAML


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scale: scale["train"].update(momentumm=0.9), ["train.momentumm"]),
        (lambda scale: scale["train"].update(batch_size="eight"), ["train.batch_size", "'eight'"]),
        (lambda scale: scale.pop("hardware"), ["hardware"]),
    ],
)
def test_a_mistake_in_a_scale_s_yaml_is_refused(project, change, words):
    change(project.scale)
    assert_refused(pcb("plan", "--scale", project.yaml), project.folder / "scale.yaml", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--scale", "huge"], ["huge", "mini"]),
        (["train", "v05_r50"], ["'v05_r50'", "pcb plan"]),
        (["train", PLAIN, "--seed", "7"], ["seed 7", "seeds=0,7"]),
        (["gather", "table99"], ["table99", "table11"]),
        (["plan", "table99"], ["table99", "table11"]),
        (["reproduce", "tabel05"], ["tabel05", "table05"]),
        (["score", PLAIN, "--study", "nowhere/study.json"], ["nowhere/study.json"]),
    ],
)
def test_a_name_that_does_not_exist_is_refused(arguments, words):
    assert_refused(pcb(*arguments), *words)


# Checkpoints and losses


@pytest.fixture
def study(tmp_path, scenes):
    """A study of a few iterations in a temporary folder, with its own data and weights."""
    data = files(Path(shutil.copytree(scenes, tmp_path / "data")))
    study = tiny_study(tmp_path / "results", {"v05": data, "v1": data})
    write_json(study.paths.study, study.resolved)
    return study


def test_a_loss_that_is_not_finite_stops_the_training_and_leaves_earlier_results(study):
    study.scale["train"].update(lr=1e30, warmup_iters=1, clip_grad=None)
    write_json(study.paths.study, study.resolved)
    before = snapshot(study.paths.root)
    assert_refused(
        pcb("train", PLAIN, "--study", study.paths.study), PLAIN, "not finite", "train.lr"
    )
    assert snapshot(study.paths.root) == before


def test_a_checkpoint_of_another_class_count_is_refused_and_kept(study):
    work = study.paths.work(study.fingerprint(PLAIN, 0))
    path = save_hashed(work, "final", {"meta": {"run": PLAIN, "classes": 80}, "state_dict": {}})
    write_record(
        study.paths.train(PLAIN, 0),
        {"fingerprint": work.name, "checkpoint": str(path), "sha256": sha256(path)},
    )
    before = {**snapshot(study.paths.root), path: path.read_bytes()}
    assert_refused(pcb("infer", PLAIN, "--study", study.paths.study), path, "class count", "80")
    assert {**snapshot(study.paths.root), path: path.read_bytes()} == before
