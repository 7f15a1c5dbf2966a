"""Leases on GPUs: jobs that run at the same time on one machine never share a device by accident.

`with lease(2) as ids: ...` takes two free devices and shows only these to the process (`CUDA_VISIBLE_DEVICES`), waiting
until enough are free. Snakemake's local executor counts GPUs but does not name them; this does. A lease is a file lock, so
the kernel gives it back when the process ends, however it ends; it outlives an `exec`. Devices are known by their UUID, and
only those that `CUDA_VISIBLE_DEVICES` allows are considered: what a batch scheduler assigned is respected, also where it
renumbers. Must be entered before CUDA is initialised. `launch` turns a job with several devices into torchrun.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pcb.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def lease(count: int, devices: dict[str, str] | None = None, folder: Path | None = None) -> Iterator[list[str]]:
    """Hold `count` devices and yield their ids; waits until that many are free, says so once.

    `devices` maps an id, as CUDA_VISIBLE_DEVICES spells it, to a name that is the same for every process of the machine
    (default: what `visible()` finds); `folder` holds the locks (default: one per user below the temporary folder).
    Raises `UserError` when the machine has fewer devices at all. `count` 0 yields an empty list and changes nothing.
    """
    if count == 0:
        yield []
        return
    devices = visible() if devices is None else devices
    if len(devices) < count:
        setting = os.environ.get(VARIABLE, "not set")
        raise UserError(f"GPUs that the job needs: {count}; that it can see here: {len(devices)} ({VARIABLE}: {setting})",
                        "lower hardware.gpus_per_job in the scale's YAML file, or run where there are more")
    folder = folder or Path(tempfile.gettempdir()) / f"pcb-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(VARIABLE)
    with ExitStack() as held:
        ids = wait_for(count, devices, folder, held)
        os.environ[VARIABLE] = ",".join(ids)
        try:
            yield ids
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def wait_for(count: int, devices: dict[str, str], folder: Path, held: ExitStack) -> list[str]:
    """Lock `count` of the devices. All or nothing: a job that holds some while it waits for more could wait for ever."""
    told = False
    while True:
        with ExitStack() as attempt:
            ids: list[str] = []
            for key, name in devices.items():
                if len(ids) < count and lock(folder / f"{name}.lock", attempt):
                    ids.append(key)
            if len(ids) == count:
                held.push(attempt.pop_all())
                return ids
        if not told:
            print(f"waiting for {count} of the GPUs {', '.join(devices)}: other jobs hold them, by locks in {folder}", file=sys.stderr)
            told = True
        time.sleep(random.uniform(0.2, 1.0))


def lock(path: Path, held: ExitStack) -> bool:
    """Lock a file without waiting; whether it was free. The lock lasts until `held` is closed or the process ends."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    os.set_inheritable(file.fileno(), True)
    held.callback(file.close)
    return True


def launch(ranks: int, arguments: list[str]) -> None:
    """Become torchrun with `ranks` processes of `pcb ARGUMENTS` on this machine, on a port of its own. Does not return.

    Called inside a lease, which the new program keeps. The job's threads are shared out among the ranks.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ.get("OMP_NUM_THREADS", ranks)) // ranks))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "pcb"]
    sys.stdout.flush()
    os.execv(sys.executable, [*torchrun, *arguments])


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def visible() -> dict[str, str]:
    """Devices that this process may use: id -> UUID, in order, from nvidia-smi and CUDA_VISIBLE_DEVICES."""
    found = installed()
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return found
    ids = [key.strip() for key in allowed.split(",") if key.strip() not in ("", "-1")]
    return {key: found.get(key, key.replace("/", "_")) for key in ids}


def installed() -> dict[str, str]:
    """Index -> UUID of every GPU that the driver shows; empty without a driver."""
    if not shutil.which("nvidia-smi"):
        return {}
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return dict(re.findall(r"^GPU (\d+):.*\(UUID: ([\w-]+)\)", listing, flags=re.MULTILINE))
