"""Where a result comes from: code, versions, machine, time. Goes into every run.json."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pcb.files import ROOT
from pcb.study import Study

PACKAGES = (
    "torch",
    "onedl-mmcv",
    "onedl-mmengine",
    "onedl-mmdetection",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
)


def git() -> dict | None:
    """Commit of the code, and whether files were changed since, results aside; None outside a git checkout."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ":!results")
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict:
    """What computed: the GPUs if it was GPUs, and the CPU."""
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device == "cuda":
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def peak_memory(device: str) -> dict[str, int]:
    """Largest use so far in MiB: of this process, and of the GPU if there is one."""
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if device == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def record(study: Study, started: str) -> dict:
    """What run.json says of a job that `started` then and ends now."""
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
    return datetime.now(UTC).isoformat(timespec="seconds")
