"""What the study costs, job by job and table by table: epochs, device hours, disk; and which tables a budget pays for.

    costs = Costs(study, Pace.of(study), targets)
    costs.hours(costs.left(costs.needs("table05")))      # of table 5, with what is done already paid for

A job costs its devices (GPUs, or threads where there is no GPU) for as long as it takes. What several tables need is paid once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from pcb.errors import UserError
from pcb.planning.jobs import DONE, TRAINED, Job, jobs
from pcb.planning.timings import Pace, images, method, place, samples
from pcb.study.study import Study

JPEG = 1.2  # bytes of a pixel of a drawn scene, annotations included
Key = tuple[str, str, int]  # trunk, train or infer; run; seed


@dataclass(frozen=True)
class Item:
    """One job's cost. `seconds` of its own clock, `bytes` that it leaves behind; None where the pace is not known."""

    key: Key
    done: bool
    epochs: int
    seconds: float | None
    devices: int
    bytes: float | None

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.devices / 3600


class Costs:
    """`items`: every trunk, training and evaluation (inference and, without a GPU, scoring) behind `targets`."""

    def __init__(self, study: Study, pace: Pace, targets: Sequence[str] = ()):
        self.study, self.pace = study, pace
        self.targets = list(targets) or list(study.tables)
        hardware = study.scale["hardware"]
        self.gpu = hardware["device"] == "cuda"
        self.per_training = (
            max(1, hardware["gpus_per_job"]) if self.gpu else hardware["threads_per_job"]
        )
        self.per_evaluation = 1 if self.gpu else hardware["threads_per_job"]
        self.jobs = jobs(study, *self.targets)
        self.items: dict[Key, Item] = {}
        for job in self.jobs:
            item = self._training(job)
            self.items[item.key] = item
            if not job.trunk:
                item = self._evaluation(job)
                self.items[item.key] = item

    @property
    def device(self) -> str:
        """What its hours are of."""
        return "GPU" if self.gpu else "core"

    def needs(self, target: str) -> list[Key]:
        """The jobs behind a table or figure, whether done or not."""
        keys: dict[Key, None] = {}
        for run in self.study.runs(target):
            trunk = self.study.experiments[run].trunk
            for seed in self.study.seeds:
                keys |= dict.fromkeys([("trunk", trunk, seed)] if trunk else [])
                keys |= dict.fromkeys([("train", run, seed), ("infer", run, seed)])
        return list(keys)

    def left(self, keys: Iterable[Key], paid: Iterable[Key] = ()) -> list[Key]:
        """Those of `keys` that are neither done nor in `paid`."""
        paid = set(paid)
        return [key for key in keys if key not in paid and not self.items[key].done]

    def hours(self, keys: Iterable[Key]) -> float | None:
        return total(self.items[key].hours for key in keys)

    def epochs(self, keys: Iterable[Key]) -> int:
        return sum(self.items[key].epochs for key in keys)

    def bytes(self, keys: Iterable[Key]) -> float | None:
        return total(self.items[key].bytes for key in keys)

    def within(
        self, budget: float, cheapest: bool = False
    ) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(tables that `budget` device hours pay for, those that they do not), each with the hours that it adds.

        One table after the other, in the paper's order or the cheapest first, is taken if what it adds still fits. Raises `UserError`
        where the hours are not known.
        """
        if self.hours(self.left(self.items)) is None:
            raise UserError(
                "a budget needs hours, and how long an iteration and an image take is not known here",
                "add --measure, or --seconds-per-iteration and --images-per-second",
            )
        taken, rest, paid, spent = [], list(self.targets), [], 0.0

        def adds(target: str) -> float:
            return self.hours(self.left(self.needs(target), paid)) or 0.0

        while fits := [target for target in rest if spent + adds(target) <= budget]:
            target = min(fits, key=adds) if cheapest else fits[0]
            taken.append((target, adds(target)))
            spent += adds(target)
            paid += self.needs(target)
            rest.remove(target)
        return taken, [(target, adds(target)) for target in rest]

    def unsure(self) -> list[str]:
        """Data sets whose epochs are taken without the images that RFS repeats, because the data are not checked yet."""
        runs = [self.study.experiments[job.run] for job in self.jobs]
        return sorted(
            {experiment.dataset for experiment in runs if not samples(self.study, experiment)[1]}
        )

    def data_bytes(self) -> float:
        """Of the data sets that are drawn here; LVIS itself lies elsewhere."""
        recipe = self.study.scale.get("synthetic")
        if not recipe:
            return 0.0
        per_set = (
            recipe["size"] ** 2
            * JPEG
            * (recipe["train_images"] + recipe["val_images"] + recipe["dev_images"])
        )
        return per_set * len({self.study.experiments[job.run].dataset for job in self.jobs})

    def scratch(self) -> float | None:
        """Bytes of a training under way, which its end frees: two checkpoints to go on from, and a third while it is written."""
        states = [
            self.pace.get("state", place(e), method(e))
            for e in (self.study.experiments[job.run] for job in self.jobs)
        ]
        return None if None in states or not states else 3 * max(states)

    def _training(self, job: Job) -> Item:
        experiment = self.study.experiments[job.run]
        where, count = place(experiment), samples(self.study, experiment)[0]
        seconds = None
        if count is not None:
            steps = ceil(count / self.study.scale["train"]["batch_size"])
            parts = self._stages(job)
            paces = [self.pace.get("iteration", where, name) for name, _ in parts]
            seconds = (
                None
                if None in paces
                else sum(
                    steps * epochs * pace for pace, (_, epochs) in zip(paces, parts, strict=True)
                )
            )
        bytes_ = self.pace.get("state" if job.trunk else "final", where, method(experiment))
        done = job.state in (DONE, TRAINED)
        return Item(
            ("trunk" if job.trunk else "train", job.run, job.seed),
            done,
            job.epochs,
            seconds,
            self.per_training,
            bytes_,
        )

    def _stages(self, job: Job) -> list[tuple[str, int]]:
        """Method and epochs of each stage of a job."""
        experiment = self.study.experiments[job.run]
        each = self.study.registry.stages(experiment.loss)
        first = job.epochs - sum(stage.epochs or 0 for stage in each)
        return [(method(experiment, stage.loss), stage.epochs or first) for stage in each]

    def _evaluation(self, job: Job) -> Item:
        experiment, count = self.study.experiments[job.run], images(self.study, job.run)
        where, name = place(experiment), method(experiment)
        seconds, each = (
            self.pace.get("image", where, name),
            self.pace.get("detections", where, name),
        )
        return Item(
            ("infer", job.run, job.seed),
            job.state == DONE,
            0,
            None if None in (seconds, count) else seconds * count,
            self.per_evaluation,
            None if None in (each, count) else each * count,
        )


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None if any is not known."""
    values = list(values)
    return None if None in values else sum(values)
