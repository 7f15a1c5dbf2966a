#!/bin/sh
# Create .venv with the locked versions. Each finished step leaves a stamp, so an interrupted set-up
# resumes, and a changed lock repeats only the steps that it affects.
#   PYTHON  the interpreter (default: python3)
#   ENV     another environment than .venv, e.g. of conda and environment.yml: ENV=$CONDA_PREFIX
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${ENV:-.venv}

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2; exit 2; }
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" requirements.lock; }

command -v "$python" >/dev/null ||
    die "$python was not found" \
        "install Python 3.11 or 3.12, or name one: make demo PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' ||
    die "$("$python" --version 2>&1) is not supported" \
        "use Python 3.11 or 3.12: make demo PYTHON=python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "this Python cannot make virtual environments" \
        "on Debian or Ubuntu: apt-get install python3-venv"
command -v g++ >/dev/null ||
    die "no C++ compiler (g++) was found; mmcv's operators are built from source" \
        "on Debian or Ubuntu: apt-get install build-essential"
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    die "Python's C headers are missing" "on Debian or Ubuntu: apt-get install python3-dev"

# An interpreter that does not start comes from an interrupted or moved set-up.
if [ $venv = .venv ] && [ -d $venv ] && ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "Removing a broken .venv"
    rm -rf $venv
fi
if [ ! -x $venv/bin/python ]; then
    say "Creating .venv ($("$python" --version))"
    "$python" -m venv $venv
fi
pip() { $venv/bin/python -m pip "$@" --disable-pip-version-check; }

# A stamp holds the version that is installed.
torch="torch==$(pinned torch)"
if [ "$(cat $venv/.torch 2>/dev/null || echo none)" != "$torch" ]; then
    say "Installing $torch (about 200 MB for the CPU build, some GB with CUDA)"
    needed='^(pip|setuptools|wheel|packaging|ninja|psutil|numpy|cython)=='
    pip install "$torch" $(grep -iE "$needed" requirements.lock)
    echo "$torch" >$venv/.torch
fi

cuda=0
if [ "${PCB_CPU_ONLY:-0}" != 1 ] && command -v nvidia-smi >/dev/null &&
    nvidia-smi -L >/dev/null 2>&1; then
    version='import torch; print(torch.version.cuda or "that matches your driver")'
    command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] ||
        die "this machine has an NVIDIA GPU but no nvcc, which mmcv's CUDA operators need" \
            "install the CUDA toolkit $($venv/bin/python -c "$version") \
(conda: environment.yml includes it), or set PCB_CPU_ONLY=1 for a CPU build"
    cuda=1
fi

mmcv="onedl-mmcv==$(pinned onedl-mmcv) cuda=$cuda"
if [ "$(cat $venv/.mmcv 2>/dev/null || echo none)" != "$mmcv" ]; then
    jobs=$(getconf _NPROCESSORS_ONLN)
    if [ $cuda = 1 ]; then minutes=$((45 / jobs + 2)); else minutes=$((22 / jobs + 1)); fi
    say "Building mmcv's operators from source: about $minutes minutes on $jobs cores" \
        "(once: pip caches the result)"
    MMCV_WITH_OPS=1 FORCE_CUDA=$cuda MAX_JOBS=$jobs \
        pip install --no-deps --no-build-isolation "${mmcv% cuda=*}"
    echo "$mmcv" >$venv/.mmcv
fi

say "Installing the other packages of requirements.lock (two minutes)"
pip install -qq --no-deps --no-build-isolation -r requirements.lock
pip install -qq --no-deps --no-build-isolation --editable .
$venv/bin/python -c 'import torch, mmcv.ops, mmdet' ||
    die "the installed packages do not import" \
        "remove $venv and run this again; the lines above show the cause"
date >$venv/.ready
say "Set-up is complete"
