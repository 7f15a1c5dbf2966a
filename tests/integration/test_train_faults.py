"""A fault in a training ends in one message with a fix, and leaves earlier checkpoints intact."""

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
import training
from training import BRANCH, PLAIN, TRUNK, assert_same_bits, final_state, interrupted, tiny_study

from pcb.data.lvis.index import LVISIndex
from pcb.errors import UserError
from pcb.files import locked
from pcb.study import load_study
from pcb.synthetic.frozen_backbone import FrozenBackboneMaskRCNN
from pcb.training import build, checkpoint
from pcb.training.checkpoint import Checkpoints
from pcb.training.hooks import StopRequest
from pcb.training.pretrain import pretrain
from pcb.training.train import train


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def halfway(tmp_path_factory, datasets):
    """A plain training stopped after 7 of its 12 iterations, with checkpoints after 6 and 7."""
    study = tiny_study(tmp_path_factory.mktemp("halfway"), datasets)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, study, PLAIN, 7)
    return study


def copy(halfway, datasets, folder):
    shutil.copytree(halfway.paths.root, folder / "smoke")
    return tiny_study(folder, datasets)


@pytest.fixture
def study(tmp_path, datasets, halfway):
    """A copy of the half-way training that a test may damage."""
    return copy(halfway, datasets, tmp_path)


def work(study):
    return study.paths.work(study.fingerprint(PLAIN, 0))


def test_a_truncated_checkpoint_is_skipped_with_a_message(
    tmp_path, study, datasets, halfway, capsys
):
    older, newest = Checkpoints(work(study)).files()
    assert (older.name[:12], newest.name[:12]) == ("iter00000006", "iter00000007")
    newest.write_bytes(newest.read_bytes()[:-100])
    train(study, PLAIN, 0)
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out and "resumes from iteration 6" in out
    undamaged = copy(halfway, datasets, tmp_path / "undamaged")
    train(undamaged, PLAIN, 0)
    assert_same_bits(final_state(study, PLAIN), final_state(undamaged, PLAIN))


def test_an_image_that_is_deleted_during_a_training_is_named(tmp_path, datasets, halfway):
    scenes = Path(shutil.copytree(Path(datasets["v05"]["images"]).parent, tmp_path / "scenes"))
    splits = {split: str(scenes / f"{split}.json") for split in ("train", "val", "dev")}
    files = datasets["v05"] | {"images": str(scenes / "images"), **splits}
    study = copy(halfway, {"v05": files, "v1": files}, tmp_path)
    image = next(iter(LVISIndex(files["train"], files["images"]).image_paths.values()))
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(UserError) as caught:
        train(study, PLAIN, 0)
    assert caught.value.what.startswith(f"{image} cannot be read: No such file or directory (image")
    assert files["train"] in caught.value.what and "restore this file" in caught.value.fix
    image.write_bytes(content)
    train(study, PLAIN, 0)  # resumes
    assert final_state(study, PLAIN)["iter"] == 12


def flip_a_bit(content):
    """Of a weight: torch would load it."""
    at = content.index(torch.full((100,), 7.0).numpy().tobytes()) + 201
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut short": lambda content: content[: random.Random(0).randrange(1, len(content))],
    "one bit": flip_a_bit,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_detected(tmp_path, how):
    checkpoints, messages = Checkpoints(tmp_path), []
    for iteration in (3, 6):
        path = checkpoints.save({"iter": iteration, "weight": torch.full((100,), 7.0)}, iteration)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    (tmp_path / ".iter00000009.0-x.pth").write_bytes(b"what a killed process was writing")
    assert checkpoints.newest(messages.append)["iter"] == 3
    assert messages == [
        f"{path} is damaged (an interrupted write?): using the checkpoint before it"
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_final_checkpoint_is_named_and_not_used(tmp_path):
    checkpoints, messages = Checkpoints(tmp_path), []
    path = checkpoints.save_named("final", {"iter": 12})
    path.write_bytes(b"")
    assert checkpoints.load_named("final", messages.append) is None
    assert messages == [f"{path} is damaged: repeating the training that led to it"]


def test_the_digest_of_a_training_is_that_of_its_result_alone():
    def state(value=1.0, lr=0.1, seconds=1.0):
        weights = {"a": torch.tensor([[value, 2.0]]), "b": torch.tensor(3)}
        result = {"state_dict": weights, "optimizer": {"groups": [{"lr": lr}]}, "iter": 4}
        return {**result, "notes": {"seconds": seconds}, "record": {"seconds": seconds}}

    digest = checkpoint.digest_of(state())
    assert digest == checkpoint.digest_of(state(seconds=2.0))
    others = [state(value=1.5), state(lr=0.2), {**state(), "iter": 5}]
    others.append({**state(), "state_dict": {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}})
    assert digest not in {checkpoint.digest_of(other) for other in others}


def test_ctrl_c_requests_a_stop_and_a_later_one_ends_the_process():
    with StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a terminal and torchrun both send it
        assert stop.agreed() == signal.SIGINT
        stop.patience = -1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


def test_a_closed_terminal_requests_a_stop_unless_it_is_ignored():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.agreed() == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "results=FOLDER")]
)
def test_a_checkpoint_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch, number, fix):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pcb.files.os.fsync", fsync)
    with pytest.raises(
        UserError, match=rf"iter00000003\.\w+\.pth could not be written: {os.strerror(number)}"
    ) as error:
        Checkpoints(tmp_path).save({"iter": 3}, 3)
    assert fix in error.value.fix and not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_leaves_checkpoints_intact(study, monkeypatch):
    loss = FrozenBackboneMaskRCNN.loss

    def spoiled(self, *args):
        losses = loss(self, *args)
        return {**losses, "loss_mask": losses["loss_mask"] * float("nan")}

    monkeypatch.setattr(FrozenBackboneMaskRCNN, "loss", spoiled)
    before = {path.name: checkpoint.sha256(path) for path in Checkpoints(work(study)).files()}
    with pytest.raises(UserError, match=r"not finite at iteration 8 \(.*loss_mask nan") as error:
        train(study, PLAIN, 0)
    assert "train.lr" in error.value.fix
    assert {
        path.name: checkpoint.sha256(path) for path in Checkpoints(work(study)).files()
    } == before


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickled_payload_is_refused_and_not_run(tmp_path, study):
    planted = checkpoint.Checkpoints(work(study)).folder / "planted.pth"
    torch.save({"state_dict": {}, "extra": Payload(tmp_path / "owned")}, planted)
    with pytest.raises(UserError, match=r"planted\.pth is refused"):
        build.detector(study, PLAIN, planted)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_class_count_is_named(tmp_path, study):
    state = Checkpoints(work(study)).newest()
    state["meta"]["classes"] = 80
    other = checkpoint.save_hashed(tmp_path, "other", state)
    with pytest.raises(UserError, match="another class count: 80 classes, this data set has 60"):
        build.detector(study, PLAIN, other)


def test_a_checkpoint_of_another_model_is_named(tmp_path, study):
    path = Checkpoints(work(study)).files()[-1]
    with pytest.raises(UserError, match=r"another model: it differs in .*mlp"):
        build.detector(study, TRUNK, path)


def test_missing_weights_are_named_with_a_way_to_get_them(tmp_path):
    lvis = load_study("lvis", overrides={"results": str(tmp_path)})
    lvis.scale["backbones"]["r50"]["weights"] = str(tmp_path / "resnet50-0676ba61.pth")
    with pytest.raises(
        UserError, match=r"resnet50-0676ba61\.pth: no pretrained weights for r50"
    ) as error:
        pretrain(lvis, "r50")
    assert "pcb download resnet50-0676ba61.pth" in error.value.fix and "random" in error.value.fix
    torch.save({}, tmp_path / "resnet50-0676ba61.pth")
    with pytest.raises(UserError, match="not 0676ba61 as in its name"):
        pretrain(lvis, "r50")


def test_a_training_without_starting_weights_does_not_start(study):
    shutil.rmtree(work(study))
    study.paths.weights("r50").unlink()
    with pytest.raises(UserError, match="no starting weights"):
        train(study, PLAIN, 0)


def test_exchanged_starting_weights_are_refused(study):
    """A valid file of this configuration, but not the one that was provided."""
    shutil.rmtree(work(study))
    path = study.paths.weights("r50")
    checkpoint.save(path, {**checkpoint.load(path), "state_dict": {"a": torch.ones(1)}})
    with pytest.raises(UserError, match="its content is not what was written") as error:
        train(study, PLAIN, 0)
    assert "delete it and run `pcb pretrain r50`" in error.value.fix


def test_training_from_scratch_is_announced(study, capsys):
    shutil.rmtree(work(study))
    train(study, PLAIN, 0)
    assert "training from scratch" in capsys.readouterr().out


def test_a_branch_needs_its_trunk(study):
    with pytest.raises(UserError, match=r"trunk\.json does not exist") as error:
        train(study, BRANCH, 0)
    assert f"pcb trunk {TRUNK}" in error.value.fix


def test_repeat_factor_sampling_that_repeats_nothing_is_an_error(study):
    study.scale["train"]["rfs_threshold"] = 1e-6
    with pytest.raises(UserError, match="rfs_threshold 1e-06 repeats none of the 24 images"):
        train(study, TRUNK, 0, trunk=True)


def test_two_processes_cannot_train_in_one_folder(study):
    held = f"another process is working on {PLAIN}: process {os.getpid()} on "
    with locked(work(study) / ".lock", PLAIN), pytest.raises(UserError, match=held):
        train(study, PLAIN, 0)
