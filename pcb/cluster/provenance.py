"""The origin of a result: code, versions, machine, time. Part of every run.json."""

from __future__ import annotations

import os
import platform
import resource
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pcb.study import Study
from pcb.study.records import git

PACKAGES = (
    "torch",
    "onedl-mmcv",
    "onedl-mmengine",
    "onedl-mmdetection",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of those `PACKAGES` that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def hardware(device: str) -> dict:
    """Return the CPU, its cores, what torch uses of it and, for "cuda", the GPUs' names."""
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        count = torch.cuda.device_count()
        return {**machine, "gpus": [torch.cuda.get_device_name(i) for i in range(count)]}
    return machine


def cpu_name() -> str:
    """Return the CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def peak_memory(device: str) -> dict[str, int]:
    """Return the peak memory in MiB so far of this process and, with "cuda", of its GPU."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if device == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def record(study: Study, started: str) -> dict:
    """Return the provenance of a job that began at `started`, ISO 8601, and ends now."""
    device = study.scale["hardware"]["device"]
    return {
        "git": git(),
        "versions": versions(),
        "hardware": hardware(device),
        "peak_memory_mib": peak_memory(device),
        "started": started,
        "finished": now(),
    }


def now() -> str:
    """Return the time, UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
