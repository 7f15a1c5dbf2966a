"""The index of LVIS v1.0 train: time to make and to open it, memory of 8 ranks with 8 workers each.

Measured on a twin of the released file (benchmarks/twin.py). The reference is MMDetection's own
`LVISV1Dataset`, which parses the file in every rank with lvis-api and keeps the annotations as
pickles. Its memory is measured in one rank and multiplied by the number of ranks: eight do not fit
into a common machine. Memory is the proportional set size (/proc/PID/smaps_rollup) of all processes
after each has read samples, minus that of the same processes before they opened the data set. Takes
about ten minutes, most of them for the reference, and 10 GiB.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import twin
from harness import Figure, main

SAMPLES = 500  # read by every worker
GIB = 2**30


def proportional_set_size() -> int:
    """Return bytes of this process; shared pages are divided by the number of their users."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def build(kind: str, annotations: str, images: str, cache: str):
    """Open a data set: `ours` with the cache, or mmdet's."""
    from mmdet.registry import DATASETS

    options = dict(ann_file=annotations, data_prefix=dict(img=images), pipeline=[])
    if kind == "ours":
        return DATASETS.build(dict(type="PCBLVISDataset", index_cache=cache, **options))
    options["data_prefix"]["img"] += "/"
    return DATASETS.build(
        dict(type="LVISV1Dataset", filter_cfg=dict(filter_empty_gt=True, min_size=32), **options)
    )


def run_rank(kind: str, annotations: str, images: str, cache: str, workers: int) -> None:
    """Act as one training process and its workers.

    It reports its memory before it opens the data set (what is imported is not counted), then each
    process reports its memory after it has read samples.
    """
    import mmdet.datasets  # noqa: F401

    import pcb.data.lvis.dataset  # noqa: F401

    before = proportional_set_size()
    start, cpu = time.perf_counter(), time.process_time()
    data = build(kind, annotations, images, cache)
    report(
        seconds=time.perf_counter() - start,
        cpu=time.process_time() - cpu,
        before=before,
        images=len(data),
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    for _ in range(workers):
        if os.fork() == 0:
            break
    for position in random.sample(range(len(data)), min(SAMPLES, len(data))):
        data.get_data_info(position)
    report(read=True)
    os.read(0, 1)  # one byte for each process, sent when all have read
    report(after=proportional_set_size())
    end = select.poll()
    end.register(0, select.POLLHUP)  # unlike a read, takes no byte that another process waits for
    end.poll()
    os._exit(0)


def report(**values) -> None:
    """Send values to the benchmark in one write, so that lines of several processes do not mix."""
    os.write(1, (json.dumps(values) + "\n").encode())


def run_ranks(kind: str, files: list[str], ranks: int, workers: int) -> dict:
    """Run several ranks at once.

    Returns:
        What the first rank reported (`seconds`, `cpu`, `images`, `peak` in bytes), and `memory`
        of all processes in bytes.
    """
    command = [sys.executable, __file__, "--rank", kind, *files, str(workers)]
    started = []
    for _ in range(ranks):  # opened one after the other, so that the time is that of one
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        opened = json.loads(next(line for line in process.stdout if line.startswith("{")))
        for _ in range(1 + workers):
            process.stdout.readline()
        started.append((process, opened))
    memory = 0
    for process, _ in started:
        process.stdin.write("\n" * (1 + workers))
        process.stdin.flush()
    for process, opened in started:
        after = [json.loads(process.stdout.readline())["after"] for _ in range(1 + workers)]
        memory += sum(after) - opened["before"]
    for process, _ in started:
        process.stdin.close()
        process.wait()
    return {**started[0][1], "memory": memory}


def measure(quick: bool) -> list[Figure]:
    """Measure both data sets; `quick`: a twentieth of the file, two ranks with two workers."""
    ranks, workers = (2, 2) if quick else (8, 8)
    with tempfile.TemporaryDirectory() as folder:
        annotations, images, cache = (
            str(Path(folder) / name) for name in ("train.json", "images", "cache")
        )
        twin.write(
            Path(annotations),
            images=5_000 if quick else None,
            annotations=60_000 if quick else None,
        )
        files = [annotations, images, cache]
        made = run_ranks("ours", files, 1, 0)
        opened = run_ranks("ours", files, ranks, workers)
        stored = sum(path.stat().st_size for path in Path(cache).glob("*.arrow"))
        theirs = run_ranks("mmdet", files, 1, workers)
        size = f"{Path(annotations).stat().st_size / GIB:.2f} GiB of JSON"
        return [
            Figure(
                "the first process: parse, check, write the index"
                f" ({size}, {opened['images']:,} images)",
                made["seconds"],
                theirs["seconds"],
                "s",
                None if quick else 60 / theirs["seconds"],
            ),
            Figure("the same, CPU seconds", made["cpu"], theirs["cpu"], "s"),
            Figure(
                "peak memory of that process, mapped files included",
                made["peak"] / GIB,
                theirs["peak"] / GIB,
                "GiB",
            ),
            Figure(
                "every other process: open the data set", opened["seconds"], theirs["seconds"], "s"
            ),
            Figure(
                f"memory of {ranks} ranks x {workers} workers (the file: {stored / GIB:.2f} GiB)",
                opened["memory"] / GIB,
                ranks * theirs["memory"] / GIB,
                "GiB",
            ),
        ]


if __name__ == "__main__":
    if "--rank" in sys.argv:
        run_rank(*sys.argv[2:6], int(sys.argv[6]))
    main("index", measure)
