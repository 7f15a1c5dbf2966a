"""Small experiments on the causes of findings: variations of a scale, scored on `dev`.

    python benchmarks/experiments.py configs/experiments/eqlv2.yaml --results /tmp/experiments

An experiment is a YAML file with

    question:     what it should answer
    overlay:      a study with further runs, relative to the file (docs/adding-a-row.md); optional
    seeds:        [0, 1, 2]
    rows:         label: run, or run/variant
    conditions:   label: changes of the mini scale and of `schedule`, and `rows`, if not all
    differences:  label: [row, row], the first minus the second

Trainings, detections and scores are those of the pipeline. Conditions that do not change a training
share it. The result, results/benchmarks/experiments/<name>.json, has the metrics of every row and
seed, by LVIS's rule and with every absent class verified, and the differences within each seed; a
table is printed. Val is not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pcb.cluster import provenance
from pcb.cluster.instructions import use_same_instructions
from pcb.evaluation.ground_truth import GroundTruth
from pcb.evaluation.matches import group_means, match_columns
from pcb.evaluation.score import score
from pcb.evaluation.shards import Shards
from pcb.files import ROOT, write_json
from pcb.inference.infer import infer, train_confusion
from pcb.study import Study, load_study
from pcb.study.load import read_yaml
from pcb.study.variants import NORCAL
from pcb.synthetic.generate import generate
from pcb.training.pretrain import pretrain
from pcb.training.train import train

SPLIT = "dev"
METRICS = ("AP", "APr", "APc", "APf", "APb")
VERIFIED = tuple(f"{metric}, verified" for metric in METRICS[:4])  # every absent class counts
SHARED = ("data", "pretrained", "work")  # folders that all conditions use
OUT = ROOT / "results/benchmarks/experiments"


def condition_study(file: Path, spec: dict, condition: str, results: Path) -> Study:
    """Load the study of one condition, with a results folder of its own.

    Args:
        file: The experiment's file.
        spec: Its content.
        condition: Label of the condition.
        results: Folder of the results of all experiments.
    """
    changes = dict(spec["conditions"][condition] or {})
    schedule = changes.pop("schedule", {})
    changes.pop("rows", None)
    folder = results / file.stem / condition.replace(" ", "_").replace("/", "_")
    overlay = file.parent / spec["overlay"] if "overlay" in spec else None
    study = load_study("mini", overlay, {**changes, "results": str(folder)})
    if schedule:
        study = Study({**study.resolved, "schedule": {**study.schedule, **schedule}})
    study.paths.root.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        shared = results / "shared" / name
        shared.mkdir(parents=True, exist_ok=True)
        link = study.paths.root / name
        if not link.exists():
            link.symlink_to(shared.resolve())
    return study


def prepare(study: Study, runs: list[str]) -> None:
    """Make data and starting weights where they are missing."""
    for run in runs:
        experiment = study.experiments[run]
        if not study.paths.data_manifest(experiment.dataset).exists():
            generate(study, experiment.dataset)
        if not study.paths.weights(experiment.backbone).exists():
            pretrain(study, experiment.backbone)


def evaluate(study: Study, run: str, seed: int, variants: list[str]) -> dict:
    """Train a run if it is not trained, and return its metrics on `dev`: variant -> metrics."""
    path = study.paths.metrics(run, seed, SPLIT)
    if not path.exists():
        trunk = study.experiments[run].trunk
        if trunk and not study.paths.trunk(trunk, seed).exists():
            train(study, trunk, seed, trunk=True)
        train(study, run, seed)
        if "cm-train" in variants:
            train_confusion(study, run, seed)
        infer(study, run, seed, SPLIT, variants=variants)
        score(study, run, seed, SPLIT)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    column = {v: v if v != NORCAL else metrics["norcal"][SPLIT]["column"] for v in variants}
    verified = score_verified(study, run, seed, list(column.values()))
    found = {
        v: {m: metrics["variants"][v][m] for m in METRICS} | verified[column[v]] for v in variants
    }
    found["plain"]["PwB"] = metrics["variants"]["plain"]["PwB"]
    if NORCAL in found:
        found[NORCAL]["gamma"] = metrics["norcal"][SPLIT]["gamma"]
    return found


def score_verified(study: Study, run: str, seed: int, columns: list[str]) -> dict[str, dict]:
    """Metrics of columns of scores with every absent class of every image verified."""
    path = study.paths.detections(run, seed, SPLIT)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    shards = Shards(path.parent / manifest["folder"], manifest["shards"])
    gt = GroundTruth(study.scale["datasets"][study.experiments[run].dataset][SPLIT])
    limits = {
        "per_image": study.scale["test"]["max_per_image"],
        "score_thr": study.scale["test"]["score_thr"],
    }
    out = {}
    for (column, _), matches in match_columns(gt, shards, columns, ["segm"]).items():
        known = np.ones((matches.images, len(matches.groups)), bool)
        means = group_means(matches.average_precision(known, **limits), matches.groups)
        out[column] = {f"{metric}, verified": float(value) for metric, value in means.items()}
    return out


def run_experiment(file: Path, results: Path, jobs: int, seeds: list[int] | None = None) -> dict:
    """Run what is missing of an experiment and collect its result.

    Args:
        file: The YAML file.
        results: Folder of trainings and detections.
        jobs: Processes at a time.
        seeds: In place of those of the file.
    """
    spec = read_yaml(file)
    seeds = seeds or spec["seeds"]
    rows = {label: tuple(f"{row}/plain".split("/")[:2]) for label, row in spec["rows"].items()}
    studies = {c: condition_study(file, spec, c, results) for c in spec["conditions"]}
    tasks: dict[tuple, list] = defaultdict(list)  # runs of one trunk are one task
    shown = {c: (spec["conditions"][c] or {}).get("rows", list(rows)) for c in studies}
    for condition, study in studies.items():
        variants: dict[str, list[str]] = defaultdict(lambda: ["plain"])
        for run, variant in (rows[label] for label in shown[condition]):
            variants[run] += [variant] * (variant not in variants[run])
        prepare(study, list(variants))
        for seed in seeds:
            for run, names in variants.items():
                trunk = study.experiments[run].trunk or run
                tasks[seed, trunk].append((condition, study, run, names))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {key: pool.submit(evaluate_all, of, key[0]) for key, of in tasks.items()}
        found = {}
        for (seed, _), future in futures.items():
            found |= {(*key, seed): metrics for key, metrics in future.result().items()}
    values = {
        condition: {
            label: by_seed([found[(condition, run, seed)][variant] for seed in seeds])
            for label, (run, variant) in rows.items()
            if label in shown[condition]
        }
        for condition in studies
    }
    return {
        "question": spec["question"],
        "file": str(file.resolve().relative_to(ROOT)),
        "split": SPLIT,
        "scale": "mini",
        "seeds": seeds,
        "rows": {label: "/".join(row) for label, row in rows.items()},
        "conditions": {c: spec["conditions"][c] or {} for c in studies},
        "metrics": values,
        "differences": {
            condition: {
                label: {m: difference(of_rows, a, b, m) for m in METRICS + VERIFIED}
                for label, (a, b) in spec["differences"].items()
                if a in of_rows and b in of_rows
            }
            for condition, of_rows in values.items()
        },
        "git": provenance.git(),
    }


def by_seed(metrics: list[dict]) -> dict:
    """Turn metrics of each seed into lists by metric."""
    return {key: [of_seed[key] for of_seed in metrics] for key in metrics[0]}


def evaluate_all(tasks: list[tuple[str, Study, str, list[str]]], seed: int) -> dict:
    """Evaluate some runs one after another: (condition, run) -> variant -> metrics."""
    return {(c, run): evaluate(study, run, seed, names) for c, study, run, names in tasks}


def difference(values: dict, a: str, b: str, metric: str) -> dict:
    """Row `a` minus row `b` within each seed, with mean and standard deviation."""
    pairs = zip(values[a][metric], values[b][metric], strict=True)
    each = [round(x - y, 3) for x, y in pairs]
    deviation = statistics.stdev(each) if len(each) > 1 else None
    return {"mean": statistics.mean(each), "sd": deviation, "seeds": each}


def table(result: dict) -> str:
    """Format the differences of a result as a Markdown table."""
    lines = [
        "| condition | difference | " + " | ".join(METRICS + VERIFIED) + " |",
        "|---|---|" + "---:|" * len(METRICS + VERIFIED),
    ]
    for condition, differences in result["differences"].items():
        for label, by_metric in differences.items():
            cells = [
                f"{d['mean']:+.1f}" + (f" ± {d['sd']:.1f}" if d["sd"] is not None else "")
                for d in by_metric.values()
            ]
            lines.append(f"| {condition} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the experiments that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results/experiments")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    use_same_instructions()
    for file in arguments.files:
        result = run_experiment(file, arguments.results, arguments.jobs, arguments.seeds)
        print(f"{file.stem}: {result['question']}\n\n{table(result)}\n")
        if arguments.write:
            write_json(OUT / f"{file.stem}.json", result)


if __name__ == "__main__":
    main()
