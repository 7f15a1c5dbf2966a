"""`pcb pretrain`: provide the weights that a backbone's trainings start from."""

from __future__ import annotations

from pathlib import Path

from pcb.cluster import provenance
from pcb.files import locked, sha256
from pcb.study import Study, fingerprint
from pcb.study.records import write_record
from pcb.training import build
from pcb.training.checkpoint import Checkpoints, save
from pcb.training.train import execute
from pcb.training.weights import from_file


def pretrain(study: Study, backbone: str) -> Path:
    """Write a backbone's starting weights, as `backbones.<name>.weights` in the scale selects them.

    `pretrain` trains the whole detector on a class-balanced set of classes outside all experiments,
    in place of ImageNet; it is resumed like `train`. `random` writes a file without weights. A path
    is checked and copied.

    Returns:
        `paths.weights(backbone)`.

    Raises:
        UserError: The file is missing or damaged.
    """
    spec, path = study.scale["backbones"][backbone], study.paths.weights(backbone)
    source, job = spec["weights"], fingerprint(study.pretrain_job(backbone))
    if source == "random":
        save(path, {"meta": {"kind": "random", "fingerprint": job}, "state_dict": {}})
    elif source != "pretrain":
        content = from_file(Path(source), backbone, spec.get("sha256"))
        content["meta"]["fingerprint"] = job
        save(path, content)
    else:
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
    record = {"fingerprint": fingerprint(study.pretrain_job(backbone)), "sha256": sha256(path)}
    write_record(study.paths.weights_record(backbone), record)
    return path
