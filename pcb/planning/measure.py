"""`pcb measure`: time each kind of training on this machine, and write timings.json.

For every loss and paradigm on the paper's first data set and backbone, and for one method on each
other pair, it trains a few iterations of the first epoch with PCB and detects on a batch of images.
`pcb.planning.timings` derives the others. Each batch comes twice and the second pass counts, when
caches are warm and worker processes run. Generated data that do not exist yet are drawn into a
temporary folder. Without the scale's GPU or LVIS only sizes are measured, on detectors that take
no memory.
"""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from mmdet.registry import LOOPS, MODELS
from mmengine.dist import barrier, is_main_process
from torch.utils.data import DataLoader

from pcb.cluster import provenance
from pcb.data.lvis.releases import RELEASES
from pcb.errors import UserError
from pcb.evaluation.shards import ShardWriter
from pcb.files import temporary_folder
from pcb.formatting import size
from pcb.inference.calibrations import score_functions
from pcb.inference.infer import BATCH, SplitDetector, detect_shard
from pcb.planning.timings import Values, method, setting
from pcb.study import Study
from pcb.study.records import write_record
from pcb.synthetic.generate import generate
from pcb.training import build, weights
from pcb.training.checkpoint import serialise
from pcb.training.hooks import print_once
from pcb.training.loop import ResumableLoop, end_workers
from pcb.training.model import model_overrides
from pcb.training.pretrain import pretrain
from pcb.training.runner import Runner, release_memory
from pcb.training.sampler import EpochSampler
from pcb.training.train import finished

if TYPE_CHECKING:  # `import pcb.training` imports mmdet faster than mmdet itself does
    from mmdet.models.detectors import TwoStageDetector

# Bytes of a detection with its mask, where none can be measured: a shard of 256 LVIS images with
# 300 detections each takes about 15 MB.
BYTES_PER_DETECTION = 200
BYTES_WITHOUT_MASK = 30


def measure(study: Study, iterations: int = 10) -> Path:
    """Measure the quantities of `pcb.planning.timings.QUANTITIES`.

    Args:
        study: The study.
        iterations: Number of timed iterations of each kind of training.

    Returns:
        The path of the timings.json that it wrote.

    Raises:
        UserError: Nothing can be measured here.
    """
    why = missing_gpu(study) or missing_data(study)
    if why and "synthetic" in study.scale:
        raise UserError(
            why, "measure on another machine, or give `pcb plan` the speeds with its two options"
        )
    if why:
        print_once(f"only sizes are measured, no times: {why}")
    timings: Values = {}
    with temporary_folder() as folder:
        ready = study if why or not missing_files(study) else with_data(study, Path(folder))
        for run in representatives(study):
            measured = sizes(study, run) if why else timed(ready, run, iterations)
            key = setting(study.experiments[run])
            for quantity, value in measured.items():
                methods = timings.setdefault(quantity, {}).setdefault(key, {})
                methods[method(study.experiments[run])] = value
            print_once(f"{run}: {summary(measured)}")
            release_memory()
    hardware = provenance.hardware("cpu" if why else study.scale["hardware"]["device"])
    machine = ", ".join(sorted(set(hardware.get("gpus", [])))) or hardware["cpu"]
    if is_main_process():
        write_record(
            study.paths.timings,
            {
                "timings": timings,
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
    return study.paths.timings


def summary(measured: dict[str, float]) -> str:
    """What was measured of a run, in one line."""
    texts = [f"{measured[key]:.3g} s an {key}" for key in ("iteration", "image") if key in measured]
    texts.append(f"checkpoint {size(measured['final'])}")
    return ", ".join([*texts, f"detections {size(measured['detections'])} an image"])


def representatives(study: Study) -> list[str]:
    """One run for each method on the first data set and backbone, and one for each other pair."""
    experiments = {run: study.experiments[run] for run in study.runs()}
    first = setting(next(iter(experiments.values())))
    chosen: dict[tuple[str, str], str] = {}
    for run, experiment in experiments.items():
        if len(study.registry.stages(experiment.loss)) > 1:
            continue  # a second stage trains fewer parameters of the same detector
        pair = setting(experiment)
        chosen.setdefault((pair, method(experiment) if pair == first else ""), run)
    return list(chosen.values())


def missing_gpu(study: Study) -> str | None:
    """Why the scale's device cannot be used here; None where it can."""
    try:
        build.device(study)
    except UserError as error:
        return error.what
    return None


def missing_data(study: Study) -> str | None:
    """Which file of a scale without generated data does not exist; None if all do."""
    missing = [] if "synthetic" in study.scale else missing_files(study)
    return f"{missing[0]} does not exist" if missing else None


def missing_files(study: Study) -> list[str]:
    """Files and folders of the data sets that do not exist."""
    files = [
        entry[key]
        for entry in study.scale["datasets"].values()
        for key in ("train", "val", "images")
    ]
    return [file for file in files if not Path(file).exists()]


def with_data(study: Study, folder: Path) -> Study:
    """The same study with `folder` as results folder, its data generated and its weights there."""
    root = study.paths.root
    text = json.dumps(study.resolved).replace(f"{root}/", f"{folder / root.name}/")
    resolved = json.loads(text)
    resolved["scale"]["results"] = str(folder)
    other = Study(resolved)
    for dataset in filter(other.contents.is_generated, other.scale["datasets"]):
        generate(other, dataset)
    for backbone, spec in other.scale["backbones"].items():
        if spec["weights"] != "pretrain":
            pretrain(other, backbone)
    return other


# Times ----------------------------------------------------------------------------------------


@LOOPS.register_module()
class TimedLoop(ResumableLoop):
    """Trains on the first batches of an epoch, twice.

    Args:
        batches: Number of timed batches; one more comes before them.
        epoch: 0-based epoch to train in.
        *args: Those of `ResumableLoop`.
        **kwargs: Those of `ResumableLoop`.

    Attributes:
        seconds: Seconds of an iteration, mean of the second pass without its first iteration.
    """

    def __init__(self, *args, batches: int = 10, epoch: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.seconds = min(batches, self.epoch_length - 1), 0.0
        self.set_iteration(epoch * self.epoch_length)

    def run(self) -> torch.nn.Module:
        """Train, and set `seconds`."""
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, -1)
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        dataloader = cast(DataLoader, self.dataloader)
        try:
            for _ in range(2):
                cast(EpochSampler, dataloader.sampler).set_position(self._epoch, 0)
                loaded = iter(dataloader)
                self.run_iter(0, islice(loaded, self.micro_batches))
                began = now()
                for index in range(1, self.batches + 1):
                    self.run_iter(index, islice(loaded, self.micro_batches))
                self.seconds = (now() - began) / max(1, self.batches)
        finally:
            end_workers(dataloader)
        return self.runner.model


def now() -> float:
    """The clock, in seconds, after the GPU has finished its queue."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(study: Study, run: str, iterations: int) -> dict[str, float]:
    """Train and detect briefly, and return the value of each quantity; leaves no files."""
    torch.set_num_threads(study.scale["hardware"]["threads_per_job"])
    with temporary_folder() as folder:
        cfg = build.config(study, run, 0, folder)
        cfg.train_cfg = dict(
            type="TimedLoop",
            max_epochs=study.schedule["epochs"],
            seed=0,
            batches=iterations,
            epoch=study.trunk_epochs,
        )
        cfg.custom_hooks = [dict(type="PCBEpochHook"), dict(type="FiniteLossHook", interval=10**9)]
        runner = cast(Runner, Runner.from_cfg(cfg))  # mmengine annotates its base class
        runner.begin = lambda runner: start(runner, study, run)
        runner.train()
        state, loop = runner.state(), cast(TimedLoop, runner.loop)
        measured = {
            "iteration": loop.seconds,
            "checkpoint": serialise(state).getbuffer().nbytes,
            "final": serialise(finished(state)).getbuffer().nbytes,
        }
        if is_main_process():
            measured |= detections(study, run, runner.bare_model, Path(folder))
        barrier()
    return measured


def start(runner: Runner, study: Study, run: str) -> None:
    """Load the weights that the training starts from, if they exist.

    A randomly initialised detector makes equally many proposals, at other places.
    """
    path = study.paths.weights(study.experiments[run].backbone)
    if path.exists():
        weights.initialise(runner.bare_model, study, study.experiments[run].backbone)
    else:
        print_once(f"{run}: timed from random weights, because {path} does not exist yet")


def detections(study: Study, run: str, model: TwoStageDetector, folder: Path) -> dict[str, float]:
    """Seconds and bytes of an image in an inference pass, for the variant `plain`."""
    detector = SplitDetector(study, run, "val", {}, model.eval())
    ids = list(detector.index)[: 2 * BATCH]
    writer = ShardWriter(folder, "measured", ["plain"])
    for _ in range(2):
        began = now()
        functions = score_functions(model, ["plain"])
        path = writer.write(ids, detect_shard(detector, detector.batches(ids), functions))
        seconds = now() - began
    return {"image": seconds / len(ids), "detections": path.stat().st_size / len(ids)}


# Sizes ----------------------------------------------------------------------------------------


def classes_of(study: Study, dataset: str) -> int:
    """The number of classes: of LVIS's releases, of other data as `pcb check-data` found it.

    Raises:
        UserError: Own data were not checked yet.
    """
    if version := study.scale["datasets"][dataset].get("version"):
        return RELEASES[version].classes
    if (report := study.contents.check(dataset)) is None:
        raise UserError(
            f"the number of classes of {dataset} is not known", f"run `pcb check-data {dataset}`"
        )
    return report["classes"]


def sizes(study: Study, run: str) -> dict[str, float]:
    """Bytes of checkpoints, from the detector's shapes, and of an image's detections."""
    experiment, scale = study.experiments[run], study.scale
    classes = classes_of(study, experiment.dataset)
    cfg = build.base_config(study, experiment.backbone)
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
        "checkpoint": final + momentum,
        "final": final,
        "detections": scale["test"]["max_per_image"] * BYTES_PER_DETECTION
        + scale["test"]["keep_per_image"] * BYTES_WITHOUT_MASK,
    }
