"""`pcb measure`: a few real iterations and a batch of detections of each kind of training, timed on this machine; and the bytes they leave.

    measure(study)  ->  results/<scale>/pace.json, which `pcb plan` reads

Every loss and paradigm is measured on the first data set and backbone of the paper, one on each other pair; `pcb.planning.timings` derives
the rest. The epoch is the first with PCB. Each batch comes twice and the second time counts: caches are warm and workers are up by then.
Scenes of emoji-LVIS that are not drawn yet are drawn for it and thrown away. Where the scale's GPU or LVIS is missing, only sizes are
measured, from detectors without memory behind them.
"""

from __future__ import annotations

import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from mmdet.registry import LOOPS, MODELS
from mmengine.dist import barrier, is_main_process

from pcb.cluster import provenance
from pcb.data.lvis.releases import RELEASES
from pcb.errors import UserError
from pcb.evaluation.shards import ShardWriter
from pcb.files import write_json
from pcb.formatting import size
from pcb.inference.calibrations import score_functions
from pcb.inference.infer import BATCH, SplitDetector, detect_shard
from pcb.planning.timings import method, place
from pcb.study import Study
from pcb.synthetic.generate import generate
from pcb.training import build, weights
from pcb.training.checkpoint import packed
from pcb.training.hooks import say
from pcb.training.loop import ResumableLoop
from pcb.training.model import model_overrides
from pcb.training.pretrain import pretrain
from pcb.training.runner import Runner
from pcb.training.train import finished

DETECTION = 200  # bytes of one with its mask, where none was made: a shard of 256 LVIS images with 300 detections each takes about 15 MB


def measure(study: Study, iterations: int = 10) -> Path:
    """Measure, and write `study.paths.pace`. Returns that path. Raises `UserError` where nothing at all can be measured."""
    why = no_gpu(study) or no_data(study)
    if why and "synthetic" in study.scale:
        raise UserError(why, "measure where there is one, or give `pcb plan` a pace by hand")
    if why:
        say(f"no times, only sizes: {why}")
    figures: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        ready = study if why or not undrawn(study) else drawn(study, Path(folder))
        for run in representatives(study):
            experiment = study.experiments[run]
            found = sizes(study, run) if why else timed(ready, run, iterations)
            figures.setdefault(place(experiment), {})[method(experiment)] = found
            say(f"{run}: {worded(found)}")
    hardware = provenance.hardware("cpu" if why else study.scale["hardware"]["device"])
    machine = ", ".join(sorted(set(hardware.get("gpus", [])))) or hardware["cpu"]
    if is_main_process():
        write_json(
            study.paths.pace,
            {
                "figures": figures,
                "timed": not why,
                "iterations": iterations,
                "machine": machine,
                "hardware": hardware,
                "date": provenance.now(),
                "git": provenance.git(),
                "versions": provenance.versions(),
            },
        )
    barrier()
    return study.paths.pace


def worded(found: dict[str, float]) -> str:
    times = [f"{found[what]:.3g} s an {what}" for what in ("iteration", "image") if what in found]
    return ", ".join(
        [
            *times,
            f"checkpoint {size(found['final'])}",
            f"detections {size(found['detections'])} an image",
        ]
    )


def representatives(study: Study) -> list[str]:
    """One run for each loss and paradigm of the first data set and backbone, and one for each other pair."""
    first = place(next(iter(study.experiments.values())))
    found: dict[tuple[str, str], str] = {}
    for run, experiment in study.experiments.items():
        if (
            len(study.registry.stages(experiment.loss)) == 1
        ):  # a second stage trains less of the same detector
            where = place(experiment)
            found.setdefault((where, method(experiment) if where == first else ""), run)
    return list(found.values())


def no_gpu(study: Study) -> str | None:
    try:
        build.device(study)
    except UserError as error:
        return error.what
    return None


def no_data(study: Study) -> str | None:
    missing = [] if "synthetic" in study.scale else undrawn(study)
    return f"{missing[0]} does not exist" if missing else None


def undrawn(study: Study) -> list[str]:
    """Files of the data sets that are not there."""
    files = [
        entry[key]
        for entry in study.scale["datasets"].values()
        for key in ("train", "val", "images")
    ]
    return [file for file in files if not Path(file).exists()]


def drawn(study: Study, folder: Path) -> Study:
    """The same study with its results in `folder`, its scenes drawn and its weights in place."""
    text = json.dumps(study.resolved).replace(
        f"{study.paths.root}/", f"{folder / study.paths.root.name}/"
    )
    other = Study(json.loads(text))
    other.scale["results"] = str(folder)
    other = Study(other.resolved)
    for dataset in other.scale["datasets"]:
        generate(other, dataset)
    for backbone, spec in other.scale["backbones"].items():
        if spec["weights"] != "pretrain":
            pretrain(other, backbone)
    return other


# Times -----------------------------------------------------------------------------------------------------------------


@LOOPS.register_module()
class TimedLoop(ResumableLoop):
    """Trains on the first `batches` of an epoch, twice; `pace` is then the second pass's seconds an iteration, without its first."""

    def __init__(self, *args, batches: int = 10, epoch: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.pace = min(batches, self.epoch_length - 1), 0.0
        self.set_iteration(epoch * self.epoch_length)

    def run(self) -> torch.nn.Module:
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, -1)
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for _ in range(2):
            self.dataloader.sampler.set_position(self._epoch, 0)
            loaded = iter(self.dataloader)
            for index in range(self.batches + 1):
                self.run_iter(index, islice(loaded, self.micro_batches))
                if index == 0:
                    began = now()
            self.pace = (now() - began) / max(1, self.batches)
        return self.runner.model


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(study: Study, run: str, iterations: int) -> dict[str, float]:
    """What `pcb.planning.timings.WHAT` lists, of a run; training leaves nothing behind."""
    torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    with tempfile.TemporaryDirectory() as folder:
        cfg = build.config(study, run, 0, folder)
        cfg.train_cfg = dict(
            type="TimedLoop",
            max_epochs=study.schedule["epochs"],
            seed=0,
            batches=iterations,
            epoch=study.trunk_epochs,
        )
        cfg.custom_hooks = [dict(type="PCBEpochHook"), dict(type="FiniteLossHook", interval=10**9)]
        runner = Runner.from_cfg(cfg)
        runner.begin = lambda runner: start(runner, study, run)
        runner.train()
        state = runner.state()
        found = {
            "iteration": runner.train_loop.pace,
            **{
                what: packed(kept).getbuffer().nbytes
                for what, kept in (("state", state), ("final", finished(state)))
            },
        }
        if is_main_process():
            found |= detections(study, run, runner.bare_model, Path(folder))
        barrier()
    return found


def start(runner: Runner, study: Study, run: str) -> None:
    """From the weights that a training starts from, if they are there: what a random detector proposes is as much, but elsewhere."""
    backbone = study.experiments[run].backbone
    if study.paths.weights(backbone).exists():
        weights.initialise(runner.bare_model, study, backbone)
    else:
        say(
            f"{run}: timed from random weights, for {study.paths.weights(backbone)} is not there yet"
        )


def detections(study: Study, run: str, model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """Seconds and bytes of an image, for the plain variant."""
    detector = SplitDetector(study, run, "val", {}, model.eval())
    ids = list(detector.index)[: 2 * BATCH]
    writer = ShardWriter(folder, "measured", ["plain"])
    for _ in range(2):
        began = now()
        functions = score_functions(model, ["plain"])
        path = writer.write(ids, detect_shard(detector, detector.batches(ids), functions))
        seconds = now() - began
    return {"image": seconds / len(ids), "detections": path.stat().st_size / len(ids)}


# Sizes -----------------------------------------------------------------------------------------------------------------


def sizes(study: Study, run: str) -> dict[str, float]:
    """Bytes of checkpoints, from the detector's shapes; of detections, by `DETECTION`."""
    experiment, scale = study.experiments[run], study.scale
    version = scale["datasets"][experiment.dataset]["version"]
    classes = RELEASES[version].classes
    cfg = build.base(study, experiment.backbone)
    overrides = model_overrides(
        experiment,
        num_classes=classes,
        momenta=study.momenta(run),
        registry=study.registry,
        hidden=scale["pcb"]["hidden"],
        instance_counts=[1] * classes,
        soft_labels=study.keeps_soft_labels(run),
    )
    cfg.merge_from_dict({"model": overrides})
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    final = sum(value.nbytes for value in model.state_dict().values())
    momentum = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    return {
        "state": final + momentum,
        "final": final,
        "detections": scale["test"]["max_per_image"] * DETECTION,
    }
