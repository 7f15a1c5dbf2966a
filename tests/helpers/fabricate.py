"""Results that were never measured: records as the jobs leave them, for tests of reporting."""

import numpy as np

from pcb.evaluation.bootstrap import write_bootstrap
from pcb.study import METRICS, load_study
from pcb.study.records import read_record, write_record

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


def fabricate(study, run, seed=0, **metrics):
    """Write metrics.json, run.json and confusion.npz of one run.

    `metrics` are values of every variant; the others are 90, 91, ... in the order of `METRICS`.
    """
    values = {metric: 90.0 + i for i, metric in enumerate(METRICS)} | metrics
    about = {"run": run, "seed": seed, "fingerprint": study.fingerprint(run, seed)}
    write_record(
        study.paths.metrics(run, seed),
        {
            **about,
            "images": 24,
            "variants": dict.fromkeys(study.variants(run), values),
            "classes": {"plain": CLASSES},
        },
    )
    write_record(
        study.paths.train(run, seed),
        {
            **about,
            "git": {"commit": "0123456789abcdef", "changed": True},
            "finished": "2030-01-02T03:04:05+00:00",
            "seconds": 40.0,
        },
    )
    write_confusion(study, run, seed, np.random.default_rng(0).dirichlet(np.ones(12), 12))


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
