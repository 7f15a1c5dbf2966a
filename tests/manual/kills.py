"""Kill trainings, inferences and scorings at random moments, resume and compare them.

    python tests/manual/kills.py                       # 20 trials; about half an hour on one core
    python tests/manual/kills.py --trials 3 --seed 7   # fewer, at other moments
    python tests/manual/kills.py --write               # and results/benchmarks/kills.json

`make test` contains a cheap version (test_train_resume.py, test_method_resume.py). A trial is one
experiment through the command `pcb` at the smoke scale. Its training, its inference and its scoring
are killed once each (kill -9), at a random moment in the life of its processes, imports included;
every other kill then waits for a file that is being written. The same commands resume. Do not
change the code meanwhile.

Equal: the tensors of the final checkpoint bit for bit (of a trunk with optimiser, schedules and the
state of the loss), and detections, confusion matrix and metrics to the last digit.
Lost: it did not resume from the last checkpoint, or repeated a shard that was complete.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pcb.cluster import provenance  # noqa: E402
from pcb.files import write_json  # noqa: E402
from pcb.study import Study, load_study  # noqa: E402
from pcb.study.records import read_record  # noqa: E402
from pcb.training.checkpoint import Checkpoints  # noqa: E402

TRUNK = "v05_r50_rfs_softmax_iterative"
PCB = f"{TRUNK}_pcb-a0.4-g0.99"
BAGS, LOCE = "v05_r50_random_bags_plain", "v05_r50_random_loce_plain"
# An iterative training with PCB that branches from a trunk, and the two methods with two stages.
TURNS = [PCB, PCB, BAGS, PCB, LOCE]
IMAGES = 300  # to detect on: two shards
STAGES = ("training", "inference", "scoring")
CLOCKS = {"seconds", "cpu_seconds"}


def commands(run: str, stage: str) -> list[list[str]]:
    trunk = [["trunk", TRUNK]] if run == PCB else []
    return {
        "training": [*trunk, ["train", run]],
        "inference": [["infer", run]],
        "scoring": [["score", run]],
    }[stage]


@dataclass
class Kill:
    """One line of the table; `moment` of the `life` seconds of an uninterrupted stage."""

    trial: int
    run: str
    stage: str
    moment: float
    life: float
    torn: str  # the file that was being written, if any
    said: str  # what the command that resumed found done
    lost: bool
    equal: bool


class Project:
    """A results folder with the data, starting weights and study of one trial."""

    def __init__(self, folder: Path, data: Path | None = None):
        scale = {"results": str(folder), "synthetic": {"val_images": IMAGES}}
        self.study: Study = load_study("smoke", overrides=scale)
        self.paths = self.study.paths
        write_json(self.paths.study, self.study.resolved)
        if data is None:
            self.finish([["make-data", "v05"], ["pretrain", "r50"]])
        else:
            for name in ("data", "pretrained"):
                (self.paths.root / name).symlink_to(data / name)

    def start(self, command: list[str]) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "pcb", *command, "--study", str(self.paths.study)],
            cwd=ROOT,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self, todo: list[list[str]]) -> tuple[str, float]:
        """Run commands to their end; return their output and duration in s."""
        began, output = time.monotonic(), ""
        for command in todo:
            process = self.start(command)
            output += process.communicate(timeout=600)[0]
            assert process.returncode == 0, output
        return output, time.monotonic() - began

    def kill(
        self, todo: list[list[str]], moment: float, at_a_write: bool
    ) -> tuple[int, float] | None:
        """Run commands and kill the one that runs at `moment`, or at the first write after it.

        Returns:
            Its index among the commands and the time; None if all had ended before.
        """
        began = time.monotonic()
        for index, command in enumerate(todo):
            process = self.start(command)
            while process.poll() is None:
                now = time.monotonic() - began
                if now >= moment and (not at_a_write or self.half_written()):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    return index, now
                time.sleep(
                    0.0002 if at_a_write and now >= moment else max(0.0, min(0.05, moment - now))
                )
            assert process.communicate()[0] is not None and process.returncode == 0
        return None

    def half_written(self) -> list[str]:
        """Files of this project that are being written, or were when their process was killed."""
        folders = [
            *self.paths.root.glob("work/*"),
            *self.paths.root.glob("work/*/first"),
            *self.paths.root.glob("runs/*/seed0"),
            *self.paths.root.glob("runs/*/seed0/*/"),
        ]
        return [
            name
            for folder in folders
            if folder.is_dir()
            for name in os.listdir(folder)
            if name.startswith(".") and name != ".lock"
        ]

    def clear(self, run: str, stage: str) -> None:
        """As before the stage began."""
        if stage == "training":
            shutil.rmtree(self.paths.root / "work", ignore_errors=True)
            shutil.rmtree(self.paths.root / "runs", ignore_errors=True)
        for path in self.paths.run(run, 0).glob(
            "detections*" if stage == "inference" else "metrics*"
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def saved(self, run: str) -> int | None:
        """Iteration of the newest checkpoint to resume from, of the second stage if it has one."""
        work = self.paths.work(self.study.fingerprint(run, 0))
        files = Checkpoints(work).files() or (
            [] if Checkpoints(work).load_named("trunk") else Checkpoints(work / "first").files()
        )
        return int(files[-1].name[4:12]) if files else None

    def shards(self, run: str) -> dict[str, int]:
        """Shards of detections that are there, with the time when each was written."""
        return {
            path.name: path.stat().st_mtime_ns
            for path in self.paths.run(run, 0).glob("detections/images*.parquet")
        }

    def result(self, run: str, stage: str) -> dict:
        """All that the stage leaves, except for times and digests of files with times in them."""
        if stage == "training":
            records = [
                self.paths.train(run, 0),
                *([self.paths.trunk(TRUNK, 0)] if run == PCB else []),
            ]
            return {
                path.name: weights(json.loads(path.read_text(encoding="utf-8"))) for path in records
            }
        if stage == "scoring":
            return {**read_record(self.paths.metrics(run, 0)), "evaluation": None}
        with np.load(self.paths.confusion(run, 0)) as matrix:
            out = {
                key: (value.dtype.str, value.shape, value.tobytes())
                for key, value in matrix.items()
                if key != "checkpoint"
            }
        shards = sorted(self.paths.run(run, 0).glob("detections/*.parquet"))
        return out | {
            path.name: pq.read_table(path).replace_schema_metadata().to_pylist() for path in shards
        }


def weights(record: dict) -> dict:
    """Everything in the checkpoint of a record: tensors as bytes."""
    state = torch.load(record["checkpoint"], weights_only=True)
    recorded = {
        key: record[key]
        for key in (
            "iterations",
            "epochs",
            "repeat_factors",
            "gate_opened_at_iteration",
            "fingerprint",
        )
    }
    state.pop("record", None)
    return {"recorded": recorded} | flat(state)


def flat(value: object, name: str = "") -> dict:
    if isinstance(value, torch.Tensor):
        return {
            name: (
                str(value.dtype),
                tuple(value.shape),
                value.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
            )
        }
    if isinstance(value, dict):
        return {
            k: v
            for key, part in value.items()
            if key not in CLOCKS
            for k, v in flat(part, f"{name}/{key}").items()
        }
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{name}/{i}").items()}
    return {name: value}


def one(
    trial: int,
    run: str,
    stage: str,
    project: Project,
    whole: Project,
    life: float,
    draw: random.Random,
    at_a_write: bool,
) -> Kill:
    todo = commands(run, stage)
    while True:
        moment = draw.uniform(0, life)
        if struck := project.kill(todo, moment, at_a_write):
            break
        project.clear(run, stage)  # this time it was over sooner
    index, now = struck
    torn, saved, shards = project.half_written(), project.saved(todo[index][1]), project.shards(run)
    output, _ = project.finish(todo[index:])
    resumed = [int(n) for n in re.findall(r"resumes from iteration (\d+)", output)]
    if stage == "training":
        lost = saved is not None and resumed[:1] != [saved]
        words = f"resumes from iteration {resumed[0]}" if resumed else "starts: nothing was saved"
    else:
        again = [
            name for name, written in shards.items() if project.shards(run).get(name) != written
        ]
        lost, words = (
            bool(again),
            f"{len(shards)} of 2 shards were there" if stage == "inference" else "scores again",
        )
    equal = project.result(run, stage) == whole.result(run, stage)
    return Kill(
        trial, run, stage, round(now, 3), round(life, 3), " ".join(torn), words, lost, equal
    )


def line(kill: Kill) -> str:
    where = f"{kill.moment:6.2f} of {kill.life:5.2f} s"
    name = {PCB: "PCB iterative", BAGS: "BAGS", LOCE: "LOCE"}[kill.run]
    torn = f"{kill.torn.split('-')[0].split('.')[1]}, half written" if kill.torn else ""
    return (
        f"{kill.trial:>3}  {name:13}  {kill.stage:9}  {where}  {torn:26.26}  {kill.said:31.31}  "
        f"{'LOST' if kill.lost else 'no':4}  {'yes' if kill.equal else 'NO'}"
    )


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--trials", type=int, default=20)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--folder", type=Path, help="default: a temporary one, removed afterwards")
    parse.add_argument("--write", action="store_true", help="write results/benchmarks/kills.json")
    given = parse.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="pcb-kills-"))
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(given.seed)
    turns = [TURNS[i % len(TURNS)] for i in range(given.trials)]
    whole, lives = Project(folder / "whole"), {}
    for run in dict.fromkeys(turns):
        for stage in STAGES:
            lives[run, stage] = whole.finish(commands(run, stage))[1]
    print(
        f"seed {given.seed}\ntry  what           killed in    after                 "
        "half written                the same command then           lost  equal"
    )
    kills = []
    for trial, run in enumerate(turns, 1):
        project = Project(folder / f"trial{trial:02d}", whole.paths.root)
        for index, stage in enumerate(STAGES):
            kills.append(
                one(
                    trial,
                    run,
                    stage,
                    project,
                    whole,
                    lives[run, stage],
                    draw,
                    (trial + index) % 2 == 0,
                )
            )
            print(line(kills[-1]), flush=True)
        shutil.rmtree(project.paths.root)
    good = [kill for kill in kills if kill.equal and not kill.lost]
    for stage in STAGES:
        count = sum(kill.stage == stage for kill in good)
        print(f"{stage}: {count} of {given.trials} killed, resumed, nothing lost, equal")
    if given.write:
        write_json(
            ROOT / "results/benchmarks/kills.json",
            {
                "seed": given.seed,
                "kills": [asdict(kill) for kill in kills],
                "versions": provenance.versions(),
                "git": provenance.git(),
                "hardware": provenance.hardware("cpu"),
                "date": provenance.now(),
            },
        )
    if not given.folder:
        shutil.rmtree(folder)
    return 0 if len(good) == len(kills) else 1


if __name__ == "__main__":
    raise SystemExit(main())
