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
from pathlib import Path

import pytest
import small_lvis
import training
from training import PLAIN

from pcb.files import ROOT, write_json
from pcb.study.records import read_record
from pcb.training.checkpoint import Checkpoints

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
