"""Write both locks and environment.yml from the installed versions. Run after an upgrade.

Usage: .venv/bin/python tools/lock.py
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXCLUDED = {"pcb", "triton"}  # this project, and what comes with torch's CUDA build
BUILT = ("onedl-mmcv==", "onedl-mmdetection==", "pip==")  # not for conda: tools/setup.sh adds them

LOCK_HEADER = """\
# Exact versions for Linux with Python 3.11 or 3.12. Written by tools/lock.py and installed without
# dependency resolution by tools/setup.sh: first torch (its CUDA libraries come along where the
# registry's build has them), then onedl-mmcv from source. The headless OpenCV replaces
# opencv-python, which needs libGL.
"""

# The newest torch whose builds from the registry are for CUDA 12: for drivers from 525 on.
CUDA_12 = {"torch": "2.10.0"}
CUDA_12_HEADER = """\
# requirements.lock with a torch for CUDA 12.8, for machines whose driver is older than 580 or whose
# GPUs are of the Volta generation: `make setup LOCK=requirements-cuda12.lock`. Written by
# tools/lock.py. nvcc 12 has to be on the machine (docs/scaling.md).
"""

CONDA_HEADER = """\
# The conda equivalent of requirements.lock: interpreter and compilers from conda, every Python
# package in the locked version.
#   conda env create -f environment.yml && conda activate pcb && make setup ENV=$CONDA_PREFIX
# The last command adds what pip cannot build within conda's own step: mmcv's operators, compiled
# against this torch. Where they are compiled for CUDA, it takes nvcc from the packages of torch's
# CUDA libraries, so that compiler and headers are of one version; conda's are not needed.
name: pcb
channels: [conda-forge]
dependencies:
  - python=3.11
  - gxx_linux-64=14
  - gxx=14
  - make
  - git
  - pip
  - pip:
"""


def main() -> None:
    """Write the three files."""
    names = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in EXCLUDED and not key.startswith(("nvidia-", "cuda-")):
            names[key] = distribution.version.split("+")[0]
    pins = [f"{name}=={version}" for name, version in sorted(names.items())]
    write("requirements.lock", LOCK_HEADER + "".join(f"{pin}\n" for pin in pins))
    older = [f"{name}=={CUDA_12.get(name, version)}" for name, version in sorted(names.items())]
    write("requirements-cuda12.lock", CUDA_12_HEADER + "".join(f"{pin}\n" for pin in older))
    conda = "".join(f"      - {pin}\n" for pin in pins if not pin.startswith(BUILT))
    write("environment.yml", CONDA_HEADER + conda)


def write(name: str, text: str) -> None:
    """Write a file of the repository."""
    (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
