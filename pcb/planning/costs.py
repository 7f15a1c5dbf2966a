"""What a study costs, job by job and table by table: epochs, device hours and disk.

    costs = Costs(study, Timings.of(study), targets)
    costs.hours(costs.remaining(costs.needs("table05")))  # of Table 5, without what is done

A job costs its devices (GPUs, or threads where there is no GPU) for as long as it takes. Work that
several tables share is paid once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from pcb.errors import UserError
from pcb.planning.jobs import DONE, TRAINED, Job, jobs
from pcb.planning.timings import Timings, method, setting
from pcb.planning.workload import evaluated_images, images_per_epoch
from pcb.study.experiment import Experiment
from pcb.study.study import Study

BYTES_PER_PIXEL = 1.2  # of a generated image, its annotations included
Key = tuple[str, str, int]  # ("trunk" | "train" | "infer", run, seed)


@dataclass(frozen=True)
class Item:
    """The cost of one job; None where it is not known.

    Attributes:
        key: Stage, run and seed.
        done: Whether the job is done.
        epochs: Epochs that it trains; 0 for an evaluation.
        seconds: Its duration.
        devices: GPUs or threads that it holds.
        bytes: Size of the files that it leaves.
    """

    key: Key
    done: bool
    epochs: int
    seconds: float | None
    devices: int
    bytes: float | None

    @property
    def hours(self) -> float | None:
        """Device hours."""
        return None if self.seconds is None else self.seconds * self.devices / 3600


class Costs:
    """The costs of everything behind some targets.

    Args:
        study: The study.
        timings: Seconds and bytes on this machine.
        targets: Tables, figures and pages; all tables and figures by default.

    Attributes:
        jobs: The trainings and trunks.
        items: Key -> cost of each trunk, training and evaluation (inference and, without a GPU,
            scoring).
        gpu: Whether jobs run on GPUs.
        per_training, per_evaluation: Devices that a job holds.
    """

    def __init__(self, study: Study, timings: Timings, targets: Sequence[str] = ()) -> None:
        self.study, self.timings = study, timings
        self.targets = list(targets) or list(study.tables)
        hardware = study.scale["hardware"]
        self.gpu: bool = hardware["device"] == "cuda"
        threads = hardware["threads_per_job"]
        self.per_training: int = max(1, hardware["gpus_per_job"]) if self.gpu else threads
        self.per_evaluation: int = self.per_training
        self.jobs = jobs(study, *self.targets)
        self.items: dict[Key, Item] = {}
        for job in self.jobs:
            items = [self._training(job), *([] if job.trunk else [self._evaluation(job)])]
            self.items |= {item.key: item for item in items}

    @property
    def device(self) -> str:
        """The unit of the hours: 'GPU' or 'core'."""
        return "GPU" if self.gpu else "core"

    def needs(self, target: str) -> list[Key]:
        """The jobs behind a target, done or not."""
        keys: dict[Key, None] = {}
        for run in self.study.runs(target):
            trunk = self.study.experiments[run].trunk
            for seed in self.study.seeds:
                if trunk:
                    keys["trunk", trunk, seed] = None
                keys["train", run, seed] = keys["infer", run, seed] = None
        return list(keys)

    def remaining(self, keys: Iterable[Key], paid: Collection[Key] = ()) -> list[Key]:
        """Those of `keys` that are neither done nor in `paid`."""
        paid = set(paid)
        return [key for key in keys if key not in paid and not self.items[key].done]

    def hours(self, keys: Iterable[Key]) -> float | None:
        """Device hours of some jobs; None if any are not known."""
        return total(self.items[key].hours for key in keys)

    def epochs(self, keys: Iterable[Key]) -> int:
        """Epochs of some jobs."""
        return sum(self.items[key].epochs for key in keys)

    def bytes(self, keys: Iterable[Key]) -> float | None:
        """Bytes that some jobs leave; None if any are not known."""
        return total(self.items[key].bytes for key in keys)

    def affordable(
        self, budget: float, cheapest: bool = False
    ) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Choose targets that fit into a budget, one after the other, while the next still fits.

        Args:
            budget: Device hours.
            cheapest: Whether the next target is the cheapest, not the next in the paper's order.

        Returns:
            Chosen and other targets, each with the device hours that it adds to the chosen ones.

        Raises:
            UserError: The hours are not known.
        """
        if self.hours(self.remaining(self.items)) is None:
            raise UserError(
                "a budget needs hours, and the times of an iteration and an image are not known",
                "add --measure, or --seconds-per-iteration and --images-per-second",
            )
        chosen: list[tuple[str, float]] = []
        rest, paid, spent = list(self.targets), list[Key](), 0.0

        def adds(target: str) -> float:
            return self.hours(self.remaining(self.needs(target), paid)) or 0.0

        while fits := [target for target in rest if spent + adds(target) <= budget]:
            target = min(fits, key=adds) if cheapest else fits[0]
            chosen.append((target, adds(target)))
            spent += adds(target)
            paid += self.needs(target)
            rest.remove(target)
        return chosen, [(target, adds(target)) for target in rest]

    def inexact(self) -> list[str]:
        """Data sets whose epochs are counted without the images that RFS repeats."""
        runs = [self.study.experiments[job.run] for job in self.jobs]
        return sorted({e.dataset for e in runs if not images_per_epoch(self.study, e)[1]})

    def data_bytes(self) -> float:
        """Bytes of the data sets that are generated; 0 for files that exist already."""
        recipe = self.study.scale.get("synthetic")
        if not recipe:
            return 0.0
        images = recipe["train_images"] + recipe["val_images"] + recipe["dev_images"]
        datasets = {self.study.experiments[job.run].dataset for job in self.jobs}
        return recipe["size"] ** 2 * BYTES_PER_PIXEL * images * len(datasets)

    def work_bytes(self) -> float | None:
        """Bytes of a running training's checkpoints: two, and a third while it is written."""
        sizes = [self._timing("checkpoint", self.study.experiments[j.run]) for j in self.jobs]
        known = [size for size in sizes if size is not None]
        return 3 * max(known) if known and len(known) == len(sizes) else None

    def _training(self, job: Job) -> Item:
        experiment = self.study.experiments[job.run]
        count, _ = images_per_epoch(self.study, experiment)
        seconds = None
        if count is not None:
            steps = ceil(count / self.study.scale["train"]["batch_size"])
            times = [
                (epochs, self._timing("iteration", experiment, loss))
                for loss, epochs in self._stages(job)
            ]
            seconds = total(None if s is None else steps * epochs * s for epochs, s in times)
        return Item(
            key=("trunk" if job.trunk else "train", job.run, job.seed),
            done=job.state in (DONE, TRAINED),
            epochs=job.epochs,
            seconds=seconds,
            devices=self.per_training,
            bytes=self._timing("checkpoint" if job.trunk else "final", experiment),
        )

    def _evaluation(self, job: Job) -> Item:
        experiment = self.study.experiments[job.run]
        count = evaluated_images(self.study, job.run)
        seconds = self._timing("image", experiment)
        size = self._timing("detections", experiment)
        ranks = self.per_evaluation if self.gpu else 1  # which share out the images
        return Item(
            key=("infer", job.run, job.seed),
            done=job.state == DONE,
            epochs=0,
            seconds=None if seconds is None or count is None else seconds * count / ranks,
            devices=self.per_evaluation,
            bytes=None if size is None or count is None else size * count,
        )

    def _stages(self, job: Job) -> list[tuple[str, int]]:
        """Loss and epochs of each stage of a training."""
        stages = self.study.registry.stages(self.study.experiments[job.run].loss)
        first = job.epochs - sum(stage.epochs or 0 for stage in stages)
        return [(stage.loss, stage.epochs or first) for stage in stages]

    def _timing(
        self, quantity: str, experiment: Experiment, loss: str | None = None
    ) -> float | None:
        return self.timings.get(quantity, setting(experiment), method(experiment, loss))


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None if any value is not known."""
    known = 0.0
    for value in values:
        if value is None:
            return None
        known += value
    return known
