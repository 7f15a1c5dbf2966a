"""Seconds and bytes of the parts of a training on this machine, measured or derived.

    timings = Timings.of(study)
    timings.get("iteration", "v05_r50", "softmax_iterative")  # seconds; None: not known

They come from the finished runs of the results folder, else from its timings.json, which
`pcb measure` writes. A method that was not measured on a data set and backbone is derived from
another pair where it was, by the mean ratio of the methods measured on both; else from plain
softmax on the same pair; else from the mean of all.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from pcb.errors import UserError
from pcb.formatting import counted
from pcb.planning.jobs import epochs_to_train
from pcb.planning.workload import detection_splits
from pcb.study.current import checkpoint_of, current_detections, current_training, current_trunk
from pcb.study.experiment import Experiment
from pcb.study.records import read_record
from pcb.study.study import Study

BASE = "softmax_plain"
# iteration: seconds, on all GPUs of a job. image: seconds on one GPU to detect on one image and,
# without a GPU, to score it. checkpoint, final: bytes of a resumable checkpoint, and of a finished
# training's. detections: bytes of one image's.
QUANTITIES = ("iteration", "image", "checkpoint", "final", "detections")
Values = dict[str, dict[str, dict[str, float]]]  # quantity -> setting -> method -> value


def setting(experiment: Experiment) -> str:
    """Data set and backbone of an experiment: `v05_r50`."""
    return f"{experiment.dataset}_{experiment.backbone}"


def method(experiment: Experiment, loss: str | None = None) -> str:
    """Loss and paradigm, on which an iteration's time depends beside the setting.

    Args:
        experiment: The experiment. Its sampler, α and γ cost no time.
        loss: The loss of one of its stages; None: its own.
    """
    suffix = "-each" if experiment.regression == "each" else ""
    return f"{loss or experiment.loss}_{experiment.paradigm}{suffix}"


class Timings:
    """The values of `QUANTITIES` on this machine.

    Args:
        values: Quantity -> setting -> method -> value.
        sources: Sentences on where the values are from.
        assumed: Quantity -> a value given by hand, for all settings and methods.
    """

    def __init__(
        self, values: Values, sources: list[str], assumed: dict[str, float] | None = None
    ) -> None:
        self.values, self.sources, self.assumed = values, sources, assumed or {}

    @classmethod
    def of(cls, study: Study, assumed: dict[str, float] | None = None) -> Timings:
        """The timings of a study's results folder."""
        finished, runs = from_finished_runs(study)
        stored = from_file(study)
        values: Values = stored.get("timings", {})
        for quantity, settings in finished.items():
            for key, methods in settings.items():
                values.setdefault(quantity, {}).setdefault(key, {}).update(methods)
        sources = []
        if by_hand := _by_hand(assumed or {}):
            sources.append(f"assumed, not measured: {', '.join(by_hand)}")
        if runs:
            sources.append(f"{counted(runs, 'finished training')} of this folder")
        if stored:
            only = "" if stored["timed"] else " (sizes only)"
            sources.append(f"measured {stored['date'][:10]} on {stored['machine']}{only}")
        return cls(values, sources, assumed)

    def get(self, quantity: str, setting: str, method: str) -> float | None:
        """The value of a quantity, measured or derived; None where nothing is known."""
        if quantity in self.assumed:
            return self.assumed[quantity]
        settings = self.values.get(quantity, {})
        here = settings.get(setting, {})
        if method in here:
            return here[method]
        for other in settings.values():
            ratios = [here[name] / other[name] for name in sorted(here.keys() & other.keys())]
            if method in other and ratios:
                return other[method] * fmean(ratios)
        if here:
            return here.get(BASE) or fmean(here.values())
        every = [value for methods in settings.values() for value in methods.values()]
        return fmean(every) if every else None


def _by_hand(assumed: dict[str, float]) -> list[str]:
    """The speeds given by hand, as text."""
    text = []
    if "iteration" in assumed:
        text.append(f"{assumed['iteration']:g} s an iteration")
    if "image" in assumed:
        text.append(f"{1 / assumed['image']:g} images a second")
    return text


def from_file(study: Study) -> dict:
    """Content of timings.json; {} where it is missing or incomplete."""
    try:
        stored = read_record(study.paths.timings) or {}
    except UserError:
        return {}
    complete = {"date", "machine", "timed"} <= stored.keys()
    return stored if complete and isinstance(stored.get("timings"), dict) else {}


def from_finished_runs(study: Study) -> tuple[Values, int]:
    """Mean values over the finished runs of the results folder, and the number of these runs."""
    lists: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    count = 0
    for seed in study.seeds:
        for run, experiment in study.experiments.items():
            measured = of_run(study, run, seed)
            count += measured is not None
            for quantity, value in (measured or {}).items():
                lists[quantity, setting(experiment), method(experiment)].append(value)
    values: Values = {}
    for (quantity, pair, name), numbers in lists.items():
        values.setdefault(quantity, {}).setdefault(pair, {})[name] = fmean(numbers)
    return values, count


def of_run(study: Study, run: str, seed: int) -> dict[str, float] | None:
    """Value of each known quantity in a finished run; None where the run is not finished."""
    paths, experiment = study.paths, study.experiments[run]
    record = current_training(study, run, seed)
    if not record:
        return None
    measured = {"final": _checkpoint_size(study, record)}
    if experiment.trunk:
        trunk = current_trunk(study, experiment.trunk, seed)
        measured["checkpoint"] = _checkpoint_size(study, trunk)
    one_stage = len(study.registry.stages(experiment.loss)) == 1
    if one_stage and record.get("iterations") and record.get("seconds"):
        iterations = record["iterations"] * epochs_to_train(study, run) / record["epochs"]
        measured["iteration"] = record["seconds"] / iterations
    splits = detection_splits(study, run)
    manifests = {s: current_detections(study, run, seed, s) for s in splits}
    done = {split: manifest for split, manifest in manifests.items() if manifest}
    if len(done) == len(manifests):
        # Of manifests before 0.1.0, one process made all.
        seconds = sum(m["seconds"] * m.get("processes", 1) for m in done.values())
        if study.scale["hardware"]["device"] == "cpu":
            seconds += _job_seconds(study, f"score/{run}/seed{seed}")
        measured["image"] = seconds / sum(done[split]["images"] for split in splits)
        shards = paths.detections(run, seed).parent / done["val"]["folder"]
        size = sum(path.stat().st_size for path in shards.glob("*"))
        measured["detections"] = size / done["val"]["images"]
    return {quantity: value for quantity, value in measured.items() if value}


def _checkpoint_size(study: Study, record: dict | None) -> float:
    """Bytes of the checkpoint that a record names; 0 where it does not exist."""
    if not record or "checkpoint" not in record:
        return 0
    path = checkpoint_of(study, record)
    return path.stat().st_size if path.exists() else 0


def _job_seconds(study: Study, job: str) -> float:
    """Seconds that a job took, from Snakemake's benchmark file; 0 where it was run by hand."""
    try:
        names, values = study.paths.benchmark(job).read_text(encoding="utf-8").splitlines()[:2]
        return float(dict(zip(names.split("\t"), values.split("\t"), strict=True))["s"])
    except (OSError, ValueError, KeyError):
        return 0.0
