"""The CPU's vector instructions: the same ones on every machine, so that results are equal.

torch, oneDNN and MKL choose their kernels by the CPU. Another kernel adds in another order, and a
training ends with other weights; docs/experiments.md tells by how much. AVX2 is what nearly all
x86 CPUs have: Intel's since 2013, AMD's since 2015.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Of torch, of oneDNN (convolutions) and of MKL (matrix products), which read them at first use.
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
}


def use_same_instructions() -> None:
    """Let this process and its children use AVX2 where the CPU has it; call before torch computes.

    A variable that the user has set stays.
    """
    if has_avx2():
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)


def has_avx2() -> bool:
    """Whether this is an x86 CPU with AVX2. torch would believe the variable on any other."""
    try:
        text = CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
    return platform.machine() in ("x86_64", "AMD64") and bool(re.search(r"\bavx2\b", text))
