"""Two processes train as one: they share each batch, end with one set of weights, and write one record and one line an epoch."""

import subprocess
import sys
from pathlib import Path

import torch
import training
from training import PLAIN, final_state, tiny_study

from pcb.study.load import read_json

HERE = Path(__file__).resolve().parent
SCRIPT = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from pcb.distributed import join
join("cpu")
import torch, torch.distributed as dist
from training import PLAIN, tiny_study
from pcb.engine import loop
from pcb.engine.train import train
study = tiny_study({results!r}, {datasets!r})
study.schedule.update(epochs=2, milestones=[1], pcb_start_epoch=2)
saved = []
run = loop.ResumableLoop.run
loop.ResumableLoop.run = lambda self: saved.append(run(self).module)
train(study, PLAIN, 0)
weight = saved[0].roi_head.bbox_head.fc_cls.weight.detach()
both = [torch.empty_like(weight) for _ in range(2)]
dist.all_gather(both, weight)
assert torch.equal(*both)
"""


def test_two_processes_train_as_one(tmp_path):
    datasets = training.scenes(tmp_path / "scenes")
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(here=str(HERE), root=str(HERE.parent), results=str(tmp_path), datasets=datasets))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{PLAIN}  epoch") == 2
    study = tiny_study(tmp_path, datasets)
    study.schedule.update(epochs=2, milestones=[1], pcb_start_epoch=2)
    assert read_json(study.paths.train(PLAIN, 0))["iterations"] == 6
    state = final_state(study, PLAIN)["state_dict"]
    seen = state["roi_head.bbox_head.loss_cls.pcb.confusion.seen"]
    assert 100 < seen.sum() < 2 * 24 * 6 + 1  # of the batch's images of both processes, at most 6 positives each
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
