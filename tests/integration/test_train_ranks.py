"""Two processes train as one: one set of weights, one record, one line an epoch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training
from training import BRANCH, final_state, tiny_study, without_trunk

from pcb.study.records import read_record
from pcb.training.train import train

TESTS = Path(__file__).resolve().parents[1]
PATHS = [str(TESTS.parent), str(TESTS / "helpers"), str(TESTS / "integration")]
EPOCHS = 3  # PCB acts in the last
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pcb.cluster.launcher import join
join("cpu")
import torch, torch.distributed as dist
from test_train_ranks import short_study
from training import BRANCH
from pcb.training import loop
from pcb.training.train import train
saved = []
run = loop.ResumableLoop.run
loop.ResumableLoop.run = lambda self: saved.append(run(self).module)
train(short_study({results!r}, {datasets!r}), BRANCH, 0)
weight = saved[0].roi_head.bbox_head.fc_cls.weight.detach()
both = [torch.empty_like(weight) for _ in range(2)]
dist.all_gather(both, weight)
assert torch.equal(*both)
"""


def short_study(results, datasets):
    """RFS, iterative head and PCB, in one piece."""
    study = without_trunk(tiny_study(results, datasets), BRANCH)
    study.schedule.update(epochs=EPOCHS, milestones=[2])
    return study


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return training.scenes(tmp_path_factory.mktemp("scenes"))


def test_two_processes_train_as_one(tmp_path, datasets):
    """The reference is one process that takes each batch in two micro-batches."""
    alone = short_study(tmp_path / "alone", datasets)
    alone.scale["hardware"]["accumulate"] = 2
    train(alone, BRANCH, 0)

    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(paths=PATHS, results=str(tmp_path / "two"), datasets=datasets))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{BRANCH}  epoch") == EPOCHS
    two = short_study(tmp_path / "two", datasets)
    records = [read_record(study.paths.train(BRANCH, 0)) for study in (alone, two)]
    assert records[0]["iterations"] == records[1]["iterations"]
    assert [record["batch"] for record in records] == [
        {"images": 8, "processes": n, "micro_batches": 3 - n} for n in (1, 2)
    ]
    assert records[0]["gate_opened_at_iteration"] == records[1]["gate_opened_at_iteration"] >= 0
    one, both = (final_state(study, BRANCH)["state_dict"] for study in (alone, two))
    seen = "roi_head.bbox_head.loss_cls.pcb.confusion.seen"
    assert one[seen].sum() > 100 and torch.equal(one[seen], both[seen])
    # While PCB acts, the targets of the second micro-batch lag behind by one update.
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-5, msg=key)
