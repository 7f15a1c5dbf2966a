"""What things cost on this machine: seconds of an iteration and of an image, bytes of what is written.

    pace = Pace.of(study)                          # finished runs of the results folder, then results/<scale>/pace.json
    pace.get("iteration", "v05_r50", "softmax_iterative")     # seconds, or None where nothing is known

`pcb measure` writes pace.json. What was not measured itself is taken from the same method on another data set or backbone, times
what the methods measured in both places take here and there; else from the plain softmax of the same place, or the mean of all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from pcb.data.lvis.releases import RELEASES
from pcb.planning.jobs import epochs_to_train
from pcb.study.experiment import Experiment
from pcb.study.records import current_record
from pcb.study.study import Study
from pcb.study.variants import (
    NORCAL,
    TRAIN_SUBSET,
    TRAIN_SUBSET_IMAGES,
    annotation_split,
    confusion_splits,
    gamma_split,
)

BASE = "softmax_plain"
# `iteration`: seconds of one, on all the GPUs of a job. `image`: seconds to detect on one, and without a GPU to score it too.
# Bytes: `state`, a checkpoint to go on from; `final`, one of a finished training; `detections` of an image.
WHAT = ("iteration", "image", "state", "final", "detections")


def place(experiment: Experiment) -> str:
    return f"{experiment.dataset}_{experiment.backbone}"


def method(experiment: Experiment, loss: str | None = None) -> str:
    """What an iteration's time depends on beside the place; neither the sampler nor α and γ."""
    each = "-each" if experiment.regression == "each" else ""
    return f"{loss or experiment.loss}_{experiment.paradigm}{each}"


class Pace:
    """`figures`: {place: {method: {what: value}}}. `assumed`: values given by hand, the same for all methods. `sources`: words for both."""

    def __init__(self, figures: dict, sources: list[str], assumed: dict[str, float] | None = None):
        self.figures, self.sources, self.assumed = figures, sources, assumed or {}

    @classmethod
    def of(cls, study: Study, assumed: dict[str, float] | None = None) -> Pace:
        finished, runs = from_finished(study)
        measured = from_file(study)
        figures = measured.get("figures", {})
        for where, methods in finished.items():
            for name, found in methods.items():
                figures.setdefault(where, {}).setdefault(name, {}).update(found)
        said = []
        if assumed:
            words = {
                "iteration": lambda s: f"{s:g} s an iteration",
                "image": lambda s: f"{1 / s:g} images a second",
            }
            said.append(
                "assumed, not measured: "
                + ", ".join(words[what](value) for what, value in assumed.items() if what in words)
            )
        if runs:
            said.append(f"{runs} finished training{'s' * (runs > 1)} of this folder")
        if measured:
            said.append(
                f"measured {measured['date'][:10]} on {measured['machine']}"
                + ("" if measured["timed"] else " (sizes only)")
            )
        return cls(figures, said, assumed)

    def get(self, what: str, where: str, name: str) -> float | None:
        if what in self.assumed:
            return self.assumed[what]
        here = self._measured(what, where)
        if name in here:
            return here[name]
        for other in self.figures:
            there = self._measured(what, other)
            both = [here[m] / there[m] for m in here.keys() & there.keys()]
            if name in there and both:
                return there[name] * fmean(both)
        if here:
            return here.get(BASE) or fmean(here.values())
        everything = [
            value for other in self.figures for value in self._measured(what, other).values()
        ]
        return fmean(everything) if everything else None

    def _measured(self, what: str, where: str) -> dict[str, float]:
        return {
            name: found[what]
            for name, found in self.figures.get(where, {}).items()
            if found.get(what)
        }


def from_file(study: Study) -> dict:
    """What `pcb measure` wrote; nothing where the file is not there or not whole."""
    try:
        found = json.loads(study.paths.pace.read_text())
        return (
            found
            if isinstance(found["figures"], dict) and found["date"] and found["machine"]
            else {}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def from_finished(study: Study) -> tuple[dict, int]:
    """The means over the finished runs of the results folder, and how many there are."""
    lists: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    count = 0
    for seed in study.seeds:
        for run, experiment in study.experiments.items():
            fingerprint = study.fingerprint(run, seed)
            record = current_record(study.paths.train(run, seed), fingerprint)
            if not record:
                continue
            count += 1
            found = lists[place(experiment)][method(experiment)]
            add_size(found["final"], record.get("checkpoint"))
            if experiment.trunk:
                trunk = current_record(
                    study.paths.trunk(experiment.trunk, seed),
                    study.fingerprint(experiment.trunk, seed),
                )
                add_size(found["state"], (trunk or {}).get("checkpoint"))
            if (
                len(study.registry.stages(experiment.loss)) == 1
                and record.get("iterations")
                and record.get("seconds")
            ):
                own = record["iterations"] * epochs_to_train(study, run) / record["epochs"]
                found["iteration"].append(record["seconds"] / own)
            splits = detection_splits(study, run)
            manifests = {
                split: current_record(study.paths.detections(run, seed, split), fingerprint)
                for split in splits
            }
            manifest = manifests["val"]
            if manifest and all(m and m.get("images") for m in manifests.values()):
                scoring = (
                    benchmarked(study, "score", run, seed)
                    if study.scale["hardware"]["device"] == "cpu"
                    else 0.0
                )
                seconds = sum(m["seconds"] for m in manifests.values()) + scoring
                found["image"].append(seconds / sum(manifests[s]["images"] for s in splits))
                folder = study.paths.detections(run, seed).parent / manifest["folder"]
                found["detections"].append(
                    sum(path.stat().st_size for path in folder.glob("*")) / manifest["images"]
                )
    return {
        where: {
            name: {what: fmean(values) for what, values in found.items() if values}
            for name, found in methods.items()
        }
        for where, methods in lists.items()
    }, count


def add_size(sizes: list[int], checkpoint: str | None) -> None:
    if checkpoint and Path(checkpoint).exists():
        sizes.append(Path(checkpoint).stat().st_size)


def benchmarked(study: Study, stage: str, run: str, seed: int) -> float:
    """Seconds that a job took, by Snakemake's benchmark file; 0 where it was run by hand."""
    try:
        names, values = (
            study.paths.benchmark(f"{stage}/{run}/seed{seed}").read_text().splitlines()[:2]
        )
        return float(dict(zip(names.split("\t"), values.split("\t"), strict=True))["s"])
    except (OSError, ValueError, KeyError):
        return 0.0


# How many images there are -----------------------------------------------------------------------------------------------


def images_of(study: Study, dataset: str, split: str) -> int | None:
    """Images of a split: by the check of the data, the recipe that draws them, or the release; None where none of them says."""
    found = report(study, dataset).get("splits", {}).get(split, {}).get("images")
    if found is None and "synthetic" in study.scale:
        return study.scale["synthetic"][f"{split}_images"]
    if found is None:
        release = RELEASES[study.scale["datasets"][dataset]["version"]]
        return release.sizes.get(split, (None,))[0]
    return found


def samples(study: Study, experiment: Experiment) -> tuple[int | None, bool]:
    """Images of a training's epoch, and whether that is known: before the data is checked nobody knows how often RFS repeats one."""
    found = (
        report(study, experiment.dataset)
        .get("repeat_factors", {})
        .get("epoch" if experiment.sampler == "rfs" else "images")
    )
    return (
        (found, True)
        if found
        else (images_of(study, experiment.dataset, "train"), experiment.sampler != "rfs")
    )


def detection_splits(study: Study, run: str) -> list[str]:
    """The splits that a run's detector passes over to detect; val twice where it is counted first.

    Val is counted first for the calibrations by its own confusion matrix; a small one stays in
    memory meanwhile. NorCal's γ is also chosen on another split.
    """
    variants, splits = study.variants(run), ["val"]
    if "val" in confusion_splits(variants) and "synthetic" not in study.scale:
        splits.append("val")
    if NORCAL in variants:
        splits.append(gamma_split(study, run))
    return splits


def images(study: Study, run: str) -> int | None:
    """Images that the detector sees in all jobs of a run's evaluation; None where not known."""
    splits, dataset = detection_splits(study, run), study.experiments[run].dataset
    if "train" in confusion_splits(study.variants(run)):
        splits.append("train")
    total = 0
    for split in splits:
        count = images_of(study, dataset, annotation_split(split))
        if count is None:
            return None
        total += min(TRAIN_SUBSET_IMAGES, count) if split == TRAIN_SUBSET else count
    return total


def report(study: Study, dataset: str) -> dict:
    try:
        return json.loads(study.paths.data_check(dataset).read_text())
    except (OSError, ValueError):
        return {}
