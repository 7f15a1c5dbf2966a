#!/bin/sh
# Compile mmcv's CUDA operators on a machine without a GPU, by tools/setup.sh itself. Run by hand.
#
#     sh tests/manual/cuda_build.sh [FOLDER]        # FOLDER: the environment (default: a new one)
#
# Takes 5 GB of disk, and took 150 minutes on two busy cores. Proves that the locked torch's CUDA
# build, the nvcc from its own packages and mmcv's sources fit together, and that set-up's CUDA
# branch ends in operators that import and name their CUDA. Not that a kernel runs: that takes a GPU
# (gpu_day.sh).
set -eu
cd "$(dirname "$0")/../.."
env=${1:-$(mktemp -d)/env}
version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' requirements.lock)

[ -x "$env/bin/python" ] || python3 -m venv "$env"
# `===` takes the registry's CUDA build also where pip is configured to prefer a wheel named +cpu.
"$env/bin/python" -m pip install -q --disable-pip-version-check "torch===$version"
ENV="$env" FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0}" sh tools/setup.sh

"$env/bin/python" - <<'PYTHON'
import subprocess
from pathlib import Path

import mmcv._ext
import torch
from mmcv.ops import get_compiler_version, get_compiling_cuda_version

compiled = get_compiling_cuda_version()
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
print(f"mmcv.ops.get_compiling_cuda_version(): {compiled}, {get_compiler_version()}")
library = Path(mmcv._ext.__file__)
kernels = library.read_bytes().count(b".nv.info.")  # a section for each kernel and architecture
print(f"{library.name}: {library.stat().st_size / 1e6:.0f} MB, {kernels} sections of kernels")
needs = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
print("\n".join(sorted(line.split("=>")[0].strip() for line in needs.splitlines() if "cuda" in line)))
assert compiled.split(".")[0] == torch.version.cuda.split(".")[0], compiled
PYTHON
