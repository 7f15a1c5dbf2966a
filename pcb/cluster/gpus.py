"""Leases on GPUs: jobs that run at the same time on one machine never share a device by accident.

`with lease(2) as ids: ...` takes two free devices and shows only these to the process (`CUDA_VISIBLE_DEVICES`), waiting
until enough are free. Snakemake's local executor counts GPUs but does not name them; this does. A lease is a file lock, so
the kernel gives it back when the process ends, however it ends; it outlives an `exec`. The locks are for all users of the
machine. Devices are known by their UUID, MIG instances too, and only those that `CUDA_VISIBLE_DEVICES` allows are considered: what
a batch scheduler assigned is respected, also where it renumbers. Must be entered before CUDA is initialised. `launch` turns a
job with several devices into torchrun.
"""

from __future__ import annotations

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
from pcb.files import try_lock

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")


@contextmanager
def lease(
    count: int, devices: dict[str, str] | None = None, folder: Path | None = None
) -> Iterator[list[str]]:
    """Hold `count` devices and yield their ids; waits until that many are free, says so once.

    `devices` maps an id, as CUDA_VISIBLE_DEVICES spells it, to a name that is the same for every process of the machine
    (default: what `visible()` finds); `folder` holds the locks (default: one below the temporary folder, for all users).
    Raises `UserError` when the machine has fewer devices at all. `count` 0 yields an empty list and changes nothing.
    """
    if count == 0:
        yield []
        return
    devices = visible() if devices is None else devices
    if len(devices) < count:
        setting = os.environ.get(VARIABLE, "not set")
        raise UserError(
            f"GPUs that the job needs: {count}; that it can see here: {len(devices)} ({VARIABLE}: {setting})",
            "lower hardware.gpus_per_job in the scale's YAML file, or run where there are more; "
            f"where nvidia-smi is missing, name the devices in {VARIABLE}",
        )
    folder = folder or Path(tempfile.gettempdir()) / "pcb-gpus"
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA's numbers are nvidia-smi's then
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
            print(
                f"waiting for {count} of the GPUs {', '.join(devices)}: other jobs hold them, by locks in {folder}",
                file=sys.stderr,
            )
            told = True
        time.sleep(random.uniform(0.2, 1.0))


def lock(path: Path, held: ExitStack) -> bool:
    """Lock a file without waiting; whether it was free. The lock lasts until `held` is closed or the process ends."""
    try:
        file = os.open(
            path, os.O_RDONLY
        )  # to read is enough to lock, and allowed where another user made the file
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    if not try_lock(file):
        os.close(file)
        return False
    os.set_inheritable(file, True)
    held.callback(os.close, file)
    return True


def visible() -> dict[str, str]:
    """Devices that this process may use: id -> UUID, in order, from the driver and CUDA_VISIBLE_DEVICES."""
    found = installed()
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return found
    ids = [key.strip() for key in allowed.split(",") if key.strip() not in ("", "-1")]
    whole = {
        key: [uuid for uuid in found.values() if uuid.startswith(key)] for key in ids
    }  # CUDA takes the first digits of a UUID too
    return {
        key: found.get(key) or (whole[key][0] if len(whole[key]) == 1 else key.replace("/", "_"))
        for key in ids
    }


def installed() -> dict[str, str]:
    """Id -> UUID of every GPU that the driver shows: its index or, of a MIG instance, its UUID. Empty without a driver."""
    if not shutil.which("nvidia-smi"):  # as in some containers
        about = "\n".join(path.read_text() for path in sorted(DRIVER.glob("*/information")))
        return {
            str(index): uuid
            for index, uuid in enumerate(
                re.findall(r"^GPU UUID:\s*(GPU-[\w-]+)", about, flags=re.MULTILINE)
            )
        }
    listing = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=False
    ).stdout
    found: dict[str, str] = {}
    for index, uuid in re.findall(
        r"^(?:GPU (\d+)|\s+MIG ).*\(UUID: ([\w/-]+)\)", listing, flags=re.MULTILINE
    ):
        if index:
            gpu = index
        else:
            found.pop(gpu, None)  # nothing runs on a GPU that is divided but its parts
        found[index or uuid] = uuid.replace("/", "_")
    return found
