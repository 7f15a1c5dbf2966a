"""Leases on GPUs: jobs that run at the same time on one machine never share a device.

    with lease(2) as ids: ...  # takes two free devices and sets CUDA_VISIBLE_DEVICES to them

Snakemake's local executor counts GPUs but does not name them, so that two jobs could choose the
same one. A lease is a file lock: it is visible to all users of the machine, the kernel releases it
however the process ends, and it survives an `exec`. Devices, MIG instances too, are identified by
their UUID. Only those in CUDA_VISIBLE_DEVICES are considered, so that the assignment of a batch
scheduler is respected even if it renumbers devices. Enter a lease before CUDA is initialised.
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
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pcb.errors import UserError
from pcb.files import open_lock, try_lock

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")


@contextmanager
def lease(
    count: int, devices: dict[str, str] | None = None, folder: Path | None = None
) -> Generator[list[str]]:
    """Hold `count` devices and yield their ids; wait until so many are free, after one message.

    Args:
        count: Number of devices; 0 yields an empty list and changes nothing.
        devices: Id, as in CUDA_VISIBLE_DEVICES, to a name that all processes of the machine agree
            on. Default: `visible()`.
        folder: Folder of the locks. Default: one in the temporary folder, for all users.

    Raises:
        UserError: The machine has fewer than `count` devices.
    """
    if count == 0:
        yield []
        return
    devices = visible() if devices is None else devices
    if len(devices) < count:
        setting = os.environ.get(VARIABLE, "not set")
        raise UserError(
            f"the job needs {count} GPUs, but only {len(devices)} are visible "
            f"({VARIABLE}: {setting})",
            "lower hardware.gpus_per_job in the scale's YAML file, or use a machine with more; "
            f"where nvidia-smi is missing, set {VARIABLE} to the devices",
        )
    folder = folder or Path(tempfile.gettempdir()) / "pcb-gpus"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user made it
        folder.chmod(0o1777)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA then counts as nvidia-smi does
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
    """Lock `count` of the devices and return their ids.

    All at once or none: two jobs that each held some while waiting for more would deadlock.
    """
    announced = False
    while True:
        with ExitStack() as attempt:
            ids: list[str] = []
            for key, name in devices.items():
                if len(ids) < count and lock(folder / f"{name}.lock", attempt):
                    ids.append(key)
            if len(ids) == count:
                held.push(attempt.pop_all())
                return ids
        if not announced:
            print(
                f"waiting for {count} of the GPUs {', '.join(devices)}: "
                f"other jobs hold them by locks in {folder}",
                file=sys.stderr,
            )
            announced = True
        time.sleep(random.uniform(0.2, 1.0))


def lock(path: Path, held: ExitStack) -> bool:
    """Lock a file without waiting; return whether it was free.

    The lock lasts until `held` is closed, or the process and what it executes have ended.
    """
    descriptor = open_lock(path)
    if not try_lock(descriptor):
        os.close(descriptor)
        return False
    os.set_inheritable(descriptor, True)
    held.callback(os.close, descriptor)
    return True


def visible() -> dict[str, str]:
    """Return the devices that this process may use: id -> UUID, in order."""
    devices = installed()
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return devices
    ids = [key.strip() for key in allowed.split(",") if key.strip() not in ("", "-1")]
    names = {}
    for key in ids:  # an index, a UUID or, as CUDA allows, the beginning of a UUID
        matches = [uuid for uuid in devices.values() if uuid.startswith(key)]
        unique = matches[0] if len(matches) == 1 else key.replace("/", "_")
        names[key] = devices.get(key) or unique
    return names


def installed() -> dict[str, str]:
    """Return all GPUs that the driver shows, id -> UUID; empty without a driver.

    The id is the index or, of a MIG instance, the UUID.
    """
    if not shutil.which("nvidia-smi"):  # as in some containers
        text = "\n".join(
            path.read_text(encoding="utf-8") for path in sorted(DRIVER.glob("*/information"))
        )
        uuids = re.findall(r"^GPU UUID:\s*(GPU-[\w-]+)", text, flags=re.MULTILINE)
        return {str(index): uuid for index, uuid in enumerate(uuids)}
    command = ["nvidia-smi", "-L"]
    listing = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout
    line = re.compile(r"^(?:GPU (\d+)|\s+MIG ).*\(UUID: ([\w/-]+)\)", flags=re.MULTILINE)
    devices: dict[str, str] = {}
    gpu = ""
    for index, uuid in line.findall(listing):
        if index:
            gpu = index
        else:
            devices.pop(gpu, None)  # a GPU that is divided runs only its MIG instances
        devices[index or uuid] = uuid.replace("/", "_")
    return devices
