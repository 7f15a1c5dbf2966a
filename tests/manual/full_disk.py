"""Every job on a full disk and in a read-only folder: one message with the reason and a fix.

    sudo python tests/manual/full_disk.py      # some minutes on one core

Not part of `make test`, since it mounts a small tmpfs and a read-only bind of it. The jobs run in
order. Before each, the disk is filled to the last block (for a training almost, so that it fails
during the training) and then made read-only; afterwards the job runs to its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pcb.files import write_json  # noqa: E402
from pcb.study import load_study  # noqa: E402

RUN = "v05_r50_random_softmax_plain"
STAGES = [
    ["make-data", "v05"],
    ["check-data", "v05"],
    ["pretrain", "r50"],
    ["train", RUN],
    ["infer", RUN],
    ["score", RUN],
    ["gather", "table02"],
    ["render", "table02"],
    ["site"],
]
LEFT = {"train": 3_000_000}  # bytes: two checkpoints fit


def pcb(study: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pcb", *words, "--study", study],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for `left` bytes."""
    stuffing = disk / "stuffing"
    with open(stuffing, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            file.truncate(max(0, file.tell() - left))
    return stuffing


def verdict(done: subprocess.CompletedProcess) -> str:
    message = done.stderr.strip()
    clear = (
        done.returncode == 2
        and message.count("error: ") == 1
        and "\nfix: " in message
        and "Traceback" not in message + done.stdout
    )
    if clear:
        return f"ok  {message[message.find('error: ') :]}"
    return f"NOT CLEAR  {done.stdout[-1000:]}{message[-3000:]}"


def main() -> int:
    top = Path(tempfile.mkdtemp(prefix="pcb-full-disk-"))
    disk, locked = top / "disk", top / "locked"
    disk.mkdir()
    locked.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk], check=True)
    verdicts = []
    try:
        studies = {}
        for folder in (disk, locked):  # study.json lies elsewhere: it is there before any job
            study = load_study("smoke", overrides={"results": str(folder / "results")})
            studies[folder] = top / f"{folder.name}.json"
            write_json(studies[folder], study.resolved)
        for stage in STAGES:
            stuffing = fill(disk, LEFT.get(stage[0], 0))
            verdicts.append(verdict(pcb(studies[disk], *stage)))
            print(f"{stage[0]:10} full       {verdicts[-1]}", flush=True)
            stuffing.unlink()
            subprocess.run(["mount", "--bind", "-o", "ro", disk, locked], check=True)
            verdicts.append(verdict(pcb(studies[locked], *stage)))
            subprocess.run(["umount", locked], check=True)
            print(f"{stage[0]:10} read-only  {verdicts[-1]}", flush=True)
            done = pcb(studies[disk], *stage)
            assert done.returncode == 0, done.stdout + done.stderr
        left = [str(path) for path in disk.rglob(".*") if path.is_file() and path.name != ".lock"]
        print("half-written files left:", ", ".join(left) or "none")
    finally:
        subprocess.run(["umount", disk], check=False)
        shutil.rmtree(top, ignore_errors=True)
    return 0 if all(v.startswith("ok") for v in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
