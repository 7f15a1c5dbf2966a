"""Results that were never measured: records as the jobs leave them, for tests of reporting."""

import sys

import numpy as np

from pcb.evaluation.bootstrap import write_bootstrap
from pcb.files import sha256
from pcb.reporting.current import MADE_FROM, SITE, gathered_from, page_from, record_page, site_from
from pcb.study import METRICS, fingerprint, load_study
from pcb.study.records import read_record, write_record
from pcb.study.variants import ORACLE_PARTS, detected_variants, gamma_split

RFS_PCB = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
SOFTMAX = "v05_r50_random_softmax_plain"
CLASSES = [
    {
        "id": i + 1,
        "name": f"class {i}",
        "frequency": "rcf"[i // 4],
        "train_images": 3 * i + 1,
        "AP": 5.0 * i,
    }
    for i in range(12)
]


def study_in(folder, seeds=(0,)):
    """The mini study with its results in `folder`."""
    return load_study("mini", overrides={"results": str(folder), "seeds": list(seeds)})


def evaluated(study, run, seed=0, split="val"):
    """The identity in the record of an evaluation, of weights with the digest in `fabricate`."""
    return {
        "fingerprint": study.fingerprint(run, seed),
        "evaluation": study.evaluation(run, seed, split),
        "gamma_evaluation": study.evaluation(run, seed, gamma_split(study, run)),
        "checkpoint": f"weights of {run}",
    }


def fabricate(study, run, seed=0, **metrics):
    """Write metrics.json, run.json and the files of the confusion matrix of one run.

    `metrics` are values of every variant; the others are 90, 91, ... in the order of `METRICS`.
    """
    values = {metric: 90.0 + i for i, metric in enumerate(METRICS)} | metrics
    about = {"run": run, "seed": seed, "fingerprint": study.fingerprint(run, seed)}
    trunk = study.experiments[run].trunk
    write_record(
        study.paths.metrics(run, seed),
        {
            **about,
            **evaluated(study, run, seed),
            "images": 24,
            "variants": dict.fromkeys(study.variants(run), values),
            "classes": {"plain": CLASSES},
        },
    )
    write_record(
        study.paths.train(run, seed),
        {
            **about,
            "sha256": f"weights of {run}",
            "trunk": {"run": trunk, "sha256": f"trunk of {trunk}"} if trunk else None,
            "git": {"commit": "0123456789abcdef", "changed": True},
            "finished": "2030-01-02T03:04:05+00:00",
            "seconds": 40.0,
        },
    )
    write_confusion(study, run, seed, np.random.default_rng(0).dirichlet(np.ones(12), 12))
    shape = {"image": 0, "label": 0, "image_sums": (0, 12)}
    arrays = {name: np.zeros(size) for name, size in shape.items()}
    np.savez(study.paths.confusion_images(run, seed), **arrays)


def resample(study, run, seed, bootstrap):
    """Write bootstrap.npz of a run, and name it in its metrics.json."""
    metrics = read_record(study.paths.metrics(run, seed))
    digest = write_bootstrap(study.paths.bootstrap(run, seed), bootstrap)
    metrics["bootstrap"] = {"resamples": 50, "sha256": digest}
    write_record(study.paths.metrics(run, seed), metrics)


def write_confusion(study, run, seed, matrix):
    """Write the confusion matrix of a run; every class was seen five times."""
    seen = np.full(len(matrix), 5)
    np.savez(study.paths.confusion(run, seed), matrix=matrix.astype(np.float32), seen=seen)


def finish(study):
    """Write the record of every job, as if all had run; the files behind them are missing."""
    paths = study.paths
    for dataset in study.scale["datasets"]:
        manifest = {"fingerprint": fingerprint(study.data_job(dataset)), "files": {}}
        write_record(paths.data_manifest(dataset), manifest)
        report = {"fingerprint": fingerprint(study.check_job(dataset)), "splits": {}}
        write_record(paths.data_check(dataset), report)
    for backbone in study.scale["backbones"]:
        job = fingerprint(study.pretrain_job(backbone))
        path = paths.weights(backbone)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        record = {"fingerprint": job, "sha256": sha256(path)}
        write_record(paths.weights_record(backbone), record)
    for seed in study.seeds:
        for trunk in study.trunks:
            record = {
                "fingerprint": study.fingerprint(trunk, seed),
                "sha256": f"trunk of {trunk}",
                "seconds": 20.0,
            }
            write_record(paths.trunk(trunk, seed), record)
        for run in study.experiments:
            fabricate(study, run, seed)
            for split in ("val", gamma_split(study, run)):
                manifest = {
                    **evaluated(study, run, seed, split),
                    "variants": detected_variants(study, run, split),
                    "folder": "detections",
                    "images": 24,
                    "seconds": 2.0,
                }
                write_record(paths.detections(run, seed, split), manifest)
            matrix = evaluated(study, run, seed, "train")
            write_record(paths.train_confusion_record(run, seed), matrix)
            parts = {str(number): count for number, count in ORACLE_PARTS.items()}
            oracle = evaluated(study, run, seed) | {"parts_of_val": parts}
            write_record(paths.oracle(run, seed), oracle)


def finish_pages(study):
    """Write the records of all pages, as if they had been made from the present results."""
    paths = study.paths
    for target in study.targets:
        write_record(paths.gathered(target), {MADE_FROM: gathered_from(study, target)})
        files = [paths.notebook(target), paths.html(target), paths.figure(target)]
        files += [paths.table(target, suffix) for suffix in ("csv", "md", "tex")]
        there = [path for path in files if path.exists()]
        record_page(study, target, there, page_from(study, target))
    files = [paths.index, paths.download("metrics.csv")]
    record_page(study, SITE, files, site_from(study))


if __name__ == "__main__":
    (finish_pages if "pages" in sys.argv else finish)(load_study())
