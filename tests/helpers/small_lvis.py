"""The lvis scale in a test: its detector made tiny (`lvis_small.py`), workers, trained on CPU.

As a script it is one of several ranks, and trains a kind of experiment after the other:

    python -m torch.distributed.run --nproc-per-node 2 tests/helpers/small_lvis.py FOLDER RUN ...
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
STAGE = {"epochs": 1, "milestones": (1,)}


def small_study(results: Path, datasets: dict, epochs: int = 1):
    """A study of 3 iterations an epoch; PCB is active from the first on."""
    from training import pretrain, tiny_study

    study = tiny_study(results, datasets)
    hardware = {"workers": 2, "channels_last": True, "gpus_per_job": 2}
    study.scale["hardware"].update(hardware)
    study.scale["train"]["rfs_threshold"] = 0.1
    for backbone in study.scale["backbones"].values():
        backbone["config"] = str(HELPERS / "lvis_small.py")
    study.schedule.update(epochs=epochs, milestones=list(range(1, epochs))[-1:], pcb_start_epoch=1)
    for run, experiment in study.experiments.items():
        study.experiments[run] = dataclasses.replace(experiment, trunk=None)
    losses = dict(study.registry.losses)
    for name, loss in losses.items():
        if loss.second_stage:
            short = dataclasses.replace(loss.second_stage, **STAGE)
            losses[name] = dataclasses.replace(loss, second_stage=short)
    study.registry = dataclasses.replace(study.registry, losses=losses)
    pretrain(study, "r50")
    return study


def kinds(study) -> list[str]:
    """One run of each loss and paradigm, with and without PCB."""
    chosen: dict[tuple, str] = {}
    for run, e in study.experiments.items():
        chosen.setdefault((e.loss, e.paradigm, e.regression, bool(e.pcb)), run)
    return list(chosen.values())


def main(folder: Path, runs: list[str]) -> None:
    """Train as a rank; the ranks must end every stage with the same weights and statistics."""
    sys.path[:0] = [str(HELPERS.parents[1]), str(HELPERS)]
    from pcb.cluster.launcher import join

    join("cpu")
    import torch
    import torch.distributed as dist

    from pcb.losses import Regulariser
    from pcb.training import build
    from pcb.training.loop import ResumableLoop
    from pcb.training.train import train

    torch.set_num_threads(1)
    Regulariser.unseen_classes = lambda self: []
    whole = ResumableLoop.run

    def run_and_compare(loop):
        model = whole(loop)
        state = model.module.state_dict()
        flat = torch.cat(
            [v.double().flatten() for k, v in state.items() if build.FEATURE_MEMORY not in k]
        )
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        assert flat.isfinite().all() and torch.equal(*both)
        return model

    ResumableLoop.run = run_and_compare
    study = small_study(folder, json.loads((folder / "datasets.json").read_text()))
    for run in runs:
        if dist.get_rank() == 0:
            time.sleep(0.2)  # the other rank is early
        train(study, run, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
