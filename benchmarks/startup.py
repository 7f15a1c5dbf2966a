"""Start-up: `pcb --help`, a dry run of the whole workflow, a training up to its first step.

Wall-clock seconds, the least of a few starts. The training is one of the mini scale on a few
generated scenes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import Figure, by_turns, main

ROOT = Path(__file__).resolve().parents[1]
RUN = "v05_r50_rfs_softmax_iterative"
# The command itself, ended where the first iteration would begin.
UP_TO_THE_FIRST_STEP = """
import os, sys
from pcb.cli import main
import pcb.training.build
from pcb.training.loop import ResumableLoop
ResumableLoop.run_iter = lambda *_: os._exit(77)
main(sys.argv[1:])
"""


def run(command: list[str], code: int = 0) -> None:
    """Run a command. Raises `RuntimeError` if its exit status is not `code`."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=env)
    if done.returncode != code:
        output = done.stdout[-2000:] + done.stderr[-2000:]
        raise RuntimeError(f"{' '.join(command[:4])}: exit status {done.returncode}\n{output}")


def prepare(folder: Path, scenes: int = 24) -> Path:
    """Write scenes, starting weights and study.json of a mini training; return study.json."""
    from pcb.files import write_json
    from pcb.study import load_study
    from pcb.synthetic.generate import Recipe, write_dataset
    from pcb.training.pretrain import pretrain

    write_dataset(
        Recipe(train_images=scenes, val_images=2, dev_images=2, head=60 if scenes == 200 else 10),
        "v05",
        folder / "data",
    )
    splits = {split: str(folder / f"data/{split}.json") for split in ("train", "val", "dev")}
    files = {"version": "v0.5", "images": str(folder / "data/images"), **splits}
    study = load_study(
        "mini",
        overrides={
            "results": str(folder / "results"),
            "datasets": {"v05": files, "v1": files},
            "train": {"rfs_threshold": 0.03 if scenes == 200 else 0.3},
        },
    )
    pretrain(study, "r50")
    write_json(folder / "study.json", study.resolved)
    return folder / "study.json"


def measure(quick: bool) -> list[Figure]:
    """Time the three starts."""
    starts = 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        study = prepare(Path(folder))
        dry = [
            sys.executable,
            "-m",
            "snakemake",
            "--cores",
            "2",
            "-n",
            "--quiet",
            "all",
            "--config",
            "scale=mini",
            f"results={folder}/dry",
        ]
        seconds = by_turns(
            starts,
            help=partial(run, [sys.executable, "-m", "pcb", "--help"]),
            dry=partial(run, dry),
            train=partial(
                run,
                [
                    sys.executable,
                    "-c",
                    UP_TO_THE_FIRST_STEP,
                    "trunk",
                    "--study",
                    str(study),
                    RUN,
                    "--seed",
                    "0",
                ],
                77,
            ),
        )
    return [
        Figure("pcb --help", seconds["help"], unit="s", target=0.3),
        Figure("dry run of the whole mini paper", seconds["dry"], unit="s", target=2),
        Figure("start of a training, up to its first step", seconds["train"], unit="s", target=5),
    ]


if __name__ == "__main__":
    main("startup", measure)
