"""The index of LVIS v1.0 train: time to make it, to open it, and the memory of eight ranks with eight workers each.

Measured on a twin of the released file (benchmarks/twin.py). The reference is MMDetection's own `LVISV1Dataset`, which parses the file in
every rank with lvis-api and keeps the annotations as pickles. Its memory is measured in one rank, times the ranks: on a common machine
eight do not fit. Memory is the proportional set size (/proc/PID/smaps_rollup) of all processes after each has read samples, less what the
same processes took before they opened the data set. About ten minutes, of which the reference takes most; 10 GiB.
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

SAMPLES = 500  # that every worker reads


def pss() -> int:
    """Bytes of this process, shared pages divided by the number of those who share them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def build(kind: str, annotations: str, images: str, cache: str):
    """The data set with what it imports already imported: `ours` with the cache, or mmdet's."""
    from mmdet.registry import DATASETS

    options = dict(ann_file=annotations, data_prefix=dict(img=images), pipeline=[])
    if kind == "ours":
        return DATASETS.build(dict(type="PCBLVISDataset", index_cache=cache, **options))
    options["data_prefix"]["img"] += "/"
    return DATASETS.build(
        dict(type="LVISV1Dataset", filter_cfg=dict(filter_empty_gt=True, min_size=32), **options)
    )


def rank(kind: str, annotations: str, images: str, cache: str, workers: int) -> None:
    """A training process and its workers: what it takes before it opens the data, and what each takes after it has read."""
    import mmdet.datasets  # noqa: F401

    import pcb.data.lvis.dataset  # noqa: F401

    before = pss()
    start, cpu = time.perf_counter(), time.process_time()
    data = build(kind, annotations, images, cache)
    say(
        seconds=time.perf_counter() - start,
        cpu=time.process_time() - cpu,
        before=before,
        images=len(data),
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    for _ in range(workers):
        if os.fork() == 0:
            break
    for place in random.sample(range(len(data)), min(SAMPLES, len(data))):
        data.get_data_info(place)
    say(read=True)
    os.read(0, 1)  # all have read; one byte for each
    say(after=pss())
    end = select.poll()
    end.register(0, select.POLLHUP)  # which takes no byte that another waits for
    end.poll()
    os._exit(0)


def say(**values) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())


def ranks(kind: str, files: list[str], count: int, workers: int) -> dict:
    """Run that many ranks: seconds, CPU seconds and peak of the first one, `memory` of all in bytes."""
    command = [sys.executable, __file__, "--rank", kind, *files, str(workers)]
    everyone = []
    for _ in range(count):  # one after the other, as far as opening goes: the time is that of one
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        opened = json.loads(next(line for line in process.stdout if line.startswith("{")))
        for _ in range(1 + workers):
            process.stdout.readline()
        everyone.append((process, opened))
    memory = 0
    for process, _ in everyone:
        process.stdin.write("\n" * (1 + workers))
        process.stdin.flush()
    for process, opened in everyone:
        memory += (
            sum(json.loads(process.stdout.readline())["after"] for _ in range(1 + workers))
            - opened["before"]
        )
    for process, _ in everyone:
        process.stdin.close()
        process.wait()
    return {**everyone[0][1], "memory": memory}


def measure(quick: bool) -> list[Figure]:
    count, workers = (2, 2) if quick else (8, 8)
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
        made = ranks("ours", files, 1, 0)
        opened = ranks("ours", files, count, workers)
        stored = sum(path.stat().st_size for path in Path(cache).glob("*.arrow"))
        theirs = ranks("mmdet", files, 1, workers)
        size, about = Path(annotations).stat().st_size, f"{opened['images']:,} images"
        gib = 2**30
        return [
            Figure(
                f"the first process: parse, check, write the index ({size / gib:.2f} GiB of JSON, {about})",
                made["seconds"],
                theirs["seconds"],
                "s",
                None if quick else 60 / theirs["seconds"],
            ),
            Figure("the same, CPU seconds", made["cpu"], theirs["cpu"], "s"),
            Figure(
                "peak memory of that process, mapped files included",
                made["peak"] / gib,
                theirs["peak"] / gib,
                "GiB",
            ),
            Figure(
                "every other process: open the data set", opened["seconds"], theirs["seconds"], "s"
            ),
            Figure(
                f"memory of {count} ranks x {workers} workers (the file: {stored / gib:.2f} GiB)",
                opened["memory"] / gib,
                count * theirs["memory"] / gib,
                "GiB",
            ),
        ]


if __name__ == "__main__":
    if "--rank" in sys.argv:
        rank(*sys.argv[2:6], int(sys.argv[6]))
    main("index", measure)
