"""Order the task classes of emoji-LVIS so that rare classes are as difficult as frequent ones.

Run by hand when the classes, the drawings or the detector change much; about ten minutes of one
core:

    python tools/order_classes.py --weights results/mini/pretrained/r50.pth

If rare classes happened to be the easy drawings, AP_r above AP_c would mean nothing. So a softmax
detector is trained on a data set with the same number of images for every class, and the classes
are sorted by their AP on the dev split. Each three neighbours of that order are assigned to the
frequent, common and rare group at random. Of many such assignments the one is chosen in which every
cluster has rare and frequent classes and the mean APs of the groups are closest. Prints the `order`
section of pcb/synthetic/assets/classes.yaml, with the APs that it follows from.
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
from pcb.synthetic.generate import classes, clusters, generate
from pcb.synthetic.scenes import random_state
from pcb.training.train import train

TRIALS = 2000
FLAVOURS = ("v05", "v1")
RUN = "v05_r50_random_softmax_plain"
BALANCED = {"head": 15, "tail": 15, "dev_images": 480, "val_images": 13}


def difficulty(weights: Path, seeds: list[int], folder: Path) -> dict[str, float]:
    """Mask AP in percent of each class on balanced data, the mean over flavours and seeds."""
    study = load_study("mini", overrides={"results": str(folder), "synthetic": BALANCED})
    start = study.paths.weights("r50")
    start.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights, start)
    by_class = defaultdict(list)
    for dataset in FLAVOURS:
        generate(study, dataset)
        study.scale["datasets"]["v05"] = study.scale["datasets"][dataset]  # RUN trains on it
        for seed in seeds:
            if study.experiments[RUN].trunk:
                train(study, RUN, seed, trunk=True)
            train(study, RUN, seed)
            infer(study, RUN, seed, split="dev", variants=["plain"])
            for entry in score(study, RUN, seed, split="dev")["classes"]["plain"]:
                by_class[entry["name"]].append(entry["AP"])
    return {name: float(np.mean(values)) for name, values in by_class.items()}


def assign(names: list[str], ap: dict[str, float], seed: int) -> list[str]:
    """Order classes, most frequent first: of each three neighbours by AP, one to each group."""
    rng = random_state("deal", seed)
    ranked = sorted(names, key=ap.__getitem__)
    groups: list[list[str]] = [[], [], []]
    for start in range(0, len(ranked), 3):
        for group, k in zip(groups, rng.permutation(3), strict=True):
            group += ranked[start : start + 3][k : k + 1]
    return [group[i] for group in groups for i in rng.permutation(len(group))]


def unevenness(order: list[str], ap: dict[str, float]) -> float:
    """Range of the groups' mean APs; infinite if a cluster lacks rare or frequent classes."""
    third = len(order) // 3
    groups = [order[:third], order[third : 2 * third], order[2 * third :]]
    cluster = clusters()
    everywhere = {cluster[name] for name in order}
    if any({cluster[name] for name in group} != everywhere for group in (groups[0], groups[2])):
        return np.inf
    means = [np.mean([ap[name] for name in group]) for group in groups]
    return float(max(means) - min(means))


def main() -> None:
    """Measure, order and print."""
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
    by_ap = sorted(ap.items(), key=lambda item: item[1])
    print("# AP on balanced data:", ", ".join(f"{name} {value:.0f}" for name, value in by_ap))
    print("order:")
    for dataset in FLAVOURS:
        orders = [assign(classes(dataset), ap, seed) for seed in range(TRIALS)]
        best = min(orders, key=lambda order: unevenness(order, ap))
        print(f"  # range of the three groups' mean AP: {unevenness(best, ap):.2f}")
        entry = f"  {dataset}: [{', '.join(best)}]"
        print(textwrap.fill(entry, 100, subsequent_indent="    ", break_on_hyphens=False))


if __name__ == "__main__":
    main()
