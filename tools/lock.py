"""Write requirements.lock and environment.yml from the installed versions. Run after an upgrade.

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

CONDA_HEADER = """\
# The conda equivalent of requirements.lock: interpreter and compilers from conda, every Python
# package in the locked version.
#   conda env create -f environment.yml && conda activate pcb && make setup ENV=$CONDA_PREFIX
# The last command adds what pip cannot build within conda's own step: mmcv's operators, compiled
# against this torch.
name: pcb
channels: [conda-forge]
dependencies:
  - python=3.11
  - gxx_linux-64=14
  - cuda-nvcc=13.0
  - make
  - git
  - pip
  - pip:
"""


def main() -> None:
    """Write both files."""
    names = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in EXCLUDED and not key.startswith(("nvidia-", "cuda-")):
            names[key] = distribution.version.split("+")[0]
    pins = [f"{name}=={version}" for name, version in sorted(names.items())]
    (ROOT / "requirements.lock").write_text(
        LOCK_HEADER + "".join(f"{pin}\n" for pin in pins), encoding="utf-8"
    )
    conda = "".join(f"      - {pin}\n" for pin in pins if not pin.startswith(BUILT))
    (ROOT / "environment.yml").write_text(CONDA_HEADER + conda, encoding="utf-8")


if __name__ == "__main__":
    main()
