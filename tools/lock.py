"""Write requirements.lock and environment.yml from the versions installed in this environment. Run by hand after an upgrade.

Usage: .venv/bin/python tools/lock.py
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LOCK_HEADER = """\
# Every version exact, on Linux with Python 3.11 or 3.12. Written by tools/lock.py; installed without dependency resolution by
# tools/setup.sh, torch first (its CUDA libraries come along where the registry's build has them), then onedl-mmcv from source.
# The headless OpenCV stands in for opencv-python, which needs libGL.
"""

CONDA_HEADER = """\
# The conda twin of requirements.lock: the interpreter and the compilers here, every Python package in the locked version.
#   conda env create -f environment.yml && conda activate pcb && make setup ENV=$CONDA_PREFIX
# The last command adds what pip cannot build inside conda's own step: mmcv's operators, compiled against this torch.
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
    names = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in {"pcb", "triton"} and not key.startswith(("nvidia-", "cuda-")):
            names[key] = distribution.version.split("+")[0]
    pins = [f"{name}=={version}" for name, version in sorted(names.items())]
    (ROOT / "requirements.lock").write_text(LOCK_HEADER + "".join(f"{pin}\n" for pin in pins))
    conda = [
        pin for pin in pins if not pin.startswith(("onedl-mmcv==", "onedl-mmdetection==", "pip=="))
    ]
    (ROOT / "environment.yml").write_text(
        CONDA_HEADER + "".join(f"      - {pin}\n" for pin in conda)
    )


if __name__ == "__main__":
    main()
