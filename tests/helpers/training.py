"""A study small enough to train within a test.

24 scenes, 3 iterations an epoch, PCB from epoch 3 of 4, training from scratch.
"""

from __future__ import annotations

import dataclasses
import os
import signal

import torch

from pcb.study import load_study
from pcb.study.records import read_record
from pcb.synthetic.generate import Recipe, write_dataset
from pcb.training.hooks import SaveHook
from pcb.training.pretrain import pretrain
from pcb.training.train import train

SaveHook.apart = 0.0  # an epoch here takes less than a second

PLAIN = "v05_r50_random_softmax_plain"
TRUNK = "v05_r50_rfs_softmax_iterative"
BRANCH = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.9"


def scenes(folder):
    """Generate the data once; returns the scale's `datasets` entry."""
    write_dataset(Recipe(train_images=24, val_images=2, dev_images=2, head=10), "v05", folder)
    splits = {split: str(folder / f"{split}.json") for split in ("train", "val", "dev")}
    files = {"version": "v0.5", "images": str(folder / "images"), **splits}
    return {"v05": files, "v1": files}


def tiny_study(results, datasets, **train_settings):
    """The smoke scale on these scenes, trained from scratch, with its results in `results`."""
    study = load_study("smoke", overrides={"results": str(results), "datasets": datasets})
    for backbone in study.scale["backbones"].values():
        backbone["weights"] = "random"
    study.scale["train"].update(warmup_iters=4, rfs_threshold=0.3, **train_settings)
    study.schedule.update(epochs=4, milestones=[2, 3], pcb_start_epoch=3)
    pretrain(study, "r50")
    return study


def without_trunk(study, run):
    """The same study, in which `run` is trained in one piece."""
    study.experiments[run] = dataclasses.replace(study.experiments[run], trunk=None)
    return study


def final_state(study, run):
    return torch.load(read_record(study.paths.train(run, 0))["checkpoint"], weights_only=True)


def assert_same_bits(a, b):
    assert a["iter"] == b["iter"] and a["state_dict"].keys() == b["state_dict"].keys()
    different = [
        key
        for key in a["state_dict"]
        if not torch.equal(a["state_dict"][key], b["state_dict"][key])
    ]
    assert not different


class EndAt:
    """End a training after so many iterations: by SIGTERM, or by an error in place of kill -9."""

    def __init__(self, monkeypatch, iteration, clean):
        from pcb.training.hooks import ProgressHook

        between = ProgressHook.between_iterations

        def then_end(hook, runner):
            between(hook, runner)
            if runner.iter == iteration:
                if not clean:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(ProgressHook, "between_iterations", then_end)


def interrupted(monkeypatch, study, run, iteration, clean=True, **kwargs):
    """Start `train` and end it after `iteration`; returns what it raised."""
    return interrupt(monkeypatch, lambda: train(study, run, 0, **kwargs), iteration, clean)


def interrupt(monkeypatch, job, iteration, clean=True):
    with monkeypatch.context() as patch:
        EndAt(patch, iteration, clean)
        try:
            job()
        except (SystemExit, KeyboardInterrupt) as error:
            return error
    raise AssertionError("the training was not interrupted")
