"""`pretrain`: the weights that a backbone's trainings start from.

Where the scale says `pretrain`, the base detector learns, whole, on a class-balanced set of classes that no experiment
sees: it stands in for ImageNet. Else the weights are a file's, checked, or none at all.
"""

from __future__ import annotations

from pathlib import Path

from pcb.cluster import provenance
from pcb.files import locked
from pcb.study import Study
from pcb.study.study import fingerprint
from pcb.training import build
from pcb.training.checkpoint import Checkpoints, save
from pcb.training.train import execute
from pcb.training.weights import from_file


def pretrain(study: Study, backbone: str) -> Path:
    """Write `paths.weights(backbone)` and return it. Resumable as `train` is. Raises `UserError` for a missing or damaged file."""
    start, path = study.scale["backbones"][backbone], study.paths.weights(backbone)
    source = start["weights"]
    if source == "random":
        save(path, {"meta": {"kind": "random"}, "state_dict": {}})
    elif source != "pretrain":
        save(path, from_file(Path(source), backbone, start.get("sha256")))
    else:
        job = fingerprint(study.pretrain_job(backbone))
        work = study.paths.work(job)
        with locked(work / ".lock", f"the pretraining of {backbone}"):
            runner = execute(build.pretraining(study, backbone, work), study, lambda runner: None)
            record = {
                "kind": "detector",
                "fingerprint": job,
                "iterations": runner.iter,
                **runner.notes,
                **provenance.record(study, runner.started),
            }
            save(path, {"meta": record, "state_dict": runner.state()["state_dict"]})
            Checkpoints(work).clear()
    return path
