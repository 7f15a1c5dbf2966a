"""The way of the lvis scale, without a GPU: several ranks, loader workers, a detector that learns.

The trainings of the other tests have a frozen detector, one process and no workers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small_lvis
import torch
import training
from training import PLAIN

from pcb.files import ROOT, write_json
from pcb.losses import PCBCrossEntropyLoss
from pcb.study.records import read_record
from pcb.training.checkpoint import Checkpoints
from pcb.training.train import train

HELPERS = Path(small_lvis.__file__).parent


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


def test_every_kind_of_training_runs_on_two_ranks(tmp_path, datasets):
    (tmp_path / "datasets.json").write_text(json.dumps(datasets))
    study = small_lvis.small_study(tmp_path, datasets)
    runs = small_lvis.kinds(study)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(HELPERS / "small_lvis.py"), str(tmp_path), *runs]
    done = subprocess.run(
        [sys.executable, *torchrun, *script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for run in runs:
        record = read_record(study.paths.train(run, 0))
        stages = len(study.registry.stages(study.experiments[run].loss))
        assert record["batch"]["processes"] == 2 and record["iterations"] >= 3 * stages


@pytest.mark.parametrize(("processes", "whole_group"), [(1, True), (2, True), (2, False)])
def test_sigterm_saves_and_ends_with_143(tmp_path, datasets, processes, whole_group):
    """Also where the signal reaches the workers of the data loaders."""
    study = small_lvis.small_study(tmp_path, datasets, epochs=1000)
    study.scale["hardware"]["gpus_per_job"] = processes
    write_json(study.paths.study, study.resolved)
    job = subprocess.Popen(
        [sys.executable, "-m", "pcb", "train", PLAIN, "--study", str(study.paths.study)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "7,8", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout.readline().startswith("training from scratch")
    assert f"{PLAIN}  epoch 1/1000" in job.stdout.readline()
    (os.killpg if whole_group else os.kill)(job.pid, signal.SIGTERM)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 143 and "stopped on request, saved at iteration" in out
    assert "Warning" not in err and "Error" not in err and "Traceback" not in err
    saved = int(re.search(r"saved at iteration (\d+)", out)[1])
    state = Checkpoints(study.paths.work(study.fingerprint(PLAIN, 0))).newest()
    assert state["iter"] == saved >= 3
    with pytest.raises(ProcessLookupError):
        os.killpg(job.pid, 0)  # no process of the job is left


def test_an_overflow_in_float16_costs_one_step(tmp_path, datasets, monkeypatch):
    """The whole training in float16 with a loss scale, on the CPU."""
    amp = "mmengine.optim.optimizer.amp_optimizer_wrapper."
    monkeypatch.setattr(amp + "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp + "GradScaler", partial(torch.amp.GradScaler, "cpu", init_scale=64.0))
    on_cpu = partial(torch.autocast, "cpu")
    monkeypatch.setattr("mmengine.runner.amp.autocast", lambda dtype: on_cpu(dtype=dtype))
    study = small_lvis.small_study(tmp_path, datasets, epochs=2)
    study.scale["hardware"].update(workers=0, gpus_per_job=0)
    study.scale["train"]["amp"] = "fp16"
    calls, compute = [], PCBCrossEntropyLoss.compute

    def overflowing(self, logits, label, reduce, step):
        calls.append(logits.dtype)
        if len(calls) == 5:  # three steps an iteration: the second iteration
            spoiled = torch.zeros_like(logits)
            spoiled[(label < self.num_classes).nonzero()[0]] = float("inf")
            logits = logits + spoiled
        return compute(self, logits, label, reduce, step)

    monkeypatch.setattr(PCBCrossEntropyLoss, "compute", overflowing)
    run = "v05_r50_random_softmax_iterative_pcb-a0.4-g0.99"
    train(study, run, 0)
    state = training.final_state(study, run)
    bank = state["state_dict"]["roi_head.bbox_head.loss_cls.pcb.confusion.bank"]
    assert state["iter"] == 6 and bank.any()
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())
    lines = study.paths.training_log(run, 0).read_text().splitlines()
    first, last = map(json.loads, lines)
    assert first["loss_scale"] == last["loss_scale"] == 32.0 and first["loss"] > 0
