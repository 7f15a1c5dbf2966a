"""Deal the task classes of emoji-LVIS to the ranks of the power law so that rare ones are as hard as frequent ones.

Run by hand, about ten minutes of one core, when the classes, the drawings or the detector change much:

    python tools/deal_classes.py --weights results/mini/pretrained/r50.pth

If rare classes happened to be the easy drawings, AP_r above AP_c would mean nothing. So a softmax detector is trained
on a set with the same number of images for every class, and the classes are sorted by their AP on scenes that are
neither train nor val. Each three neighbours in that order are dealt to frequent, common and rare at random. Of many
such deals the one is taken where every cluster has rare and frequent classes and the groups' mean APs are closest.
Prints the `order` section of pcb/synthetic/assets/classes.yaml, with the APs that it follows from.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np

from pcb.evaluation.score import score
from pcb.inference.infer import infer
from pcb.study import load_study
from pcb.synthetic.generate import Recipe, classes, clusters, write_dataset
from pcb.synthetic.scenes import random_state
from pcb.training.train import train

DEALS = 2000
RUN = "v05_r50_random_softmax_plain"


def difficulty(weights: Path, seeds: list[int], folder: Path) -> dict[str, float]:
    """Class -> mask AP on balanced data, mean over the flavours that have the class and over seeds."""
    study = load_study("mini", overrides={"results": str(folder)})
    synthetic = {
        **study.scale["synthetic"],
        "head": 15,
        "tail": 15,
        "dev_images": 480,
        "val_images": 13,
    }
    study.scale["synthetic"] = synthetic
    found = defaultdict(list)
    for dataset in ("v05", "v1"):
        home = study.paths.data(dataset)
        write_dataset(Recipe.read(synthetic), dataset, home)
        study.scale["datasets"]["v05"] = {
            "version": {"v05": "v0.5", "v1": "v1.0"}[dataset],
            "images": str(home / "images"),
            **{split: str(home / f"{split}.json") for split in ("train", "val", "dev")},
        }
        path = study.paths.weights("r50")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, path)
        for seed in seeds:
            if study.experiments[RUN].trunk:
                train(study, RUN, seed, trunk=True)
            train(study, RUN, seed)
            infer(study, RUN, seed, split="dev")
            for entry in score(study, RUN, seed, split="dev")["classes"]["plain"]:
                found[entry["name"]].append(entry["AP"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def deal(names: list[str], ap: dict[str, float], seed: int) -> list[str]:
    """Most frequent first: one of each three neighbours in difficulty to each group."""
    rng = random_state("deal", seed)
    ranked = sorted(names, key=ap.__getitem__)
    groups: list[list[str]] = [[], [], []]
    for start in range(0, len(ranked), 3):
        for group, place in zip(groups, rng.permutation(3), strict=True):
            group += ranked[start : start + 3][place : place + 1]
    return [group[i] for group in groups for i in rng.permutation(len(group))]


def unevenness(order: list[str], ap: dict[str, float]) -> float:
    """Spread of the groups' mean APs; infinite where a cluster lacks rare or frequent classes."""
    third = len(order) // 3
    parts = [order[:third], order[third : 2 * third], order[2 * third :]]
    everywhere = set(map(clusters().get, order))
    if any(set(map(clusters().get, part)) != everywhere for part in (parts[0], parts[2])):
        return np.inf
    means = [np.mean([ap[name] for name in part]) for part in parts]
    return float(max(means) - min(means))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="pretrained weights of the mini scale"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ap = difficulty(args.weights, args.seeds, Path(folder))
    print(
        "# AP on balanced data:",
        ", ".join(f"{name} {value:.0f}" for name, value in sorted(ap.items(), key=lambda x: x[1])),
    )
    print("order:")
    for dataset in ("v05", "v1"):
        deals = [deal(classes(dataset), ap, seed) for seed in range(DEALS)]
        best = min(deals, key=lambda order: unevenness(order, ap))
        print(f"  # spread of the three groups' mean AP: {unevenness(best, ap):.2f}")
        print(
            textwrap.fill(
                f"  {dataset}: [{', '.join(best)}]",
                120,
                subsequent_indent=" " * 8,
                break_on_hyphens=False,
            )
        )


if __name__ == "__main__":
    main()
