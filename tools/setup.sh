#!/bin/sh
# Create .venv with the locked versions. Each finished step leaves a stamp, so an interrupted set-up
# resumes, and a changed lock repeats only the steps that it affects; the compilation of mmcv's
# operators resumes with the files that are missing (tools/build_operators.py). A step shows one line
# that moves; the output behind it is in .venv/setup.log.
#   PYTHON      the interpreter (default: python3)
#   ENV         another environment than .venv, e.g. of conda and environment.yml: ENV=$CONDA_PREFIX
#   LOCK        the versions: requirements-cuda12.lock for older drivers (default: those of the last
#               set-up, at first requirements.lock)
#   FORCE_CUDA  1: mmcv's operators for CUDA, without a GPU too, as in a container or on a login
#               node; 0: for the CPU only. Default: for CUDA where nvidia-smi finds a GPU
#   PCB_CPU_ONLY  1: mmcv's operators for the CPU only, also where there is a GPU; before FORCE_CUDA
#   TORCH_CUDA_ARCH_LIST  GPU generations to compile for, such as "8.0;9.0". Default: the GPUs of
#               this machine; without one, all that torch supports, which takes longer
#   CUDA_HOME   the CUDA toolkit to compile with. Default: that of nvcc, else /usr/local/cuda; where
#               it does not fit torch, nvcc is installed from the packages of torch's libraries
#   MAX_JOBS    files that are compiled at once (default: one for each core)
#   CFLAGS      further options of the C++ compiler, after -O2 -g0 -DNDEBUG
#   PIP_NO_CACHE_DIR  1: keep neither pip's downloads nor the compiled operators (~/.cache)
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${ENV:-.venv}
venv=${venv%/}
lock=${LOCK:-$(cat "$venv/.lock" 2>/dev/null || echo requirements.lock)}

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2; exit 2; }
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$lock"; }

[ -f "$lock" ] || die "there is no file $lock" "leave out LOCK, or choose one of: $(echo *.lock)"
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

# One set-up at a time: a second one would take the first one's unfinished .venv for a broken one.
# The kernel releases the lock when this shell and its children end. The file is beside the
# environment, which may be removed, and stays.
mkdir -p "$(dirname "$venv")"
guard=$venv.setup-lock
[ -w "$(dirname "$venv")" ] || guard=$venv/.setup-lock
exec 9>>"$guard"
"$python" -c '
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    raise SystemExit(1)
except OSError:
    pass  # a file system without locks' 9>&9 ||
    die "another set-up of $venv runs here: process $(cat "$guard")" \
        "wait until it has ended, then run the same command again"
echo $$ >"$guard"

# An interpreter that does not start comes from an interrupted or moved set-up.
if [ "$venv" = .venv ] && [ -d .venv ] && ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "Removing a broken .venv"
    rm -rf .venv
fi
if [ ! -x "$venv/bin/python" ]; then
    say "Creating $venv ($("$python" --version))"
    "$python" -m venv "$venv"
fi
rm -f "$venv/.ready"
echo "$lock" >"$venv/.lock"
# Run pip with one line that moves. Arguments: what it does, pip's arguments.
pip() {
    about=$1
    shift
    "$venv/bin/python" tools/moving_line.py "$about" "$venv/setup.log" \
        "$venv/bin/python" -m pip "$@" --disable-pip-version-check
}
network="the lines above show the cause; what was downloaded is kept, so run the same command again"
doctor() { PYTHONPATH=. "$venv/bin/python" -m pcb doctor "$@"; }

# A stamp holds what is installed.
stamp() { cat "$venv/.$1" 2>/dev/null || echo none; }

torch="torch==$(pinned torch)"
if [ ! -f "$venv/.mmcv" ]; then
    say "Set-up installs torch, $(grep -c == "$lock") packages and mmcv's operators, which it compiles"
    echo "   2.5 GB of disk, several more with CUDA. If you stop it, what is finished is kept."
fi
if [ "$(stamp torch)" != "$torch" ]; then
    needed='^(pip|setuptools|wheel|packaging|ninja|psutil|numpy|cython)=='
    pip "Installing $torch (200 MB for the CPU build, some GB with CUDA)" \
        install "$torch" $(grep -iE "$needed" "$lock") || die "pip could not install $torch" "$network"
    echo "$torch" >"$venv/.torch"
fi

packages=$(cksum <"$lock")-$(cksum <pyproject.toml)
if [ "$(stamp packages)" != "$packages" ]; then
    grep -vE '^(torch|onedl-mmcv)==' "$lock" >"$venv/.others"
    pip "Installing the $(grep -c == "$venv/.others") other packages of $lock" \
        install --no-deps --no-build-isolation -r "$venv/.others" ||
        die "pip could not install the packages of $lock" "$network"
    pip "Installing this project" install --no-deps --no-build-isolation --editable . ||
        die "pip could not install this project" "$network"
    echo "$packages" >"$venv/.packages"
fi

# What is to be built, and what is there ------------------------------------------------------

gpu=0
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then gpu=1; fi
if [ "${PCB_CPU_ONLY:-0}" = 1 ]; then cuda=0; else cuda=${FORCE_CUDA:-$gpu}; fi
facts=$("$venv/bin/python" -c '
import torch
from importlib import metadata
def version(name):
    return next((d.version for d in metadata.distributions(name=name)), "none")
flags = (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else []
names = [f[3:-1] + "." + f[-1] for f in flags if f.startswith("sm_")]
print(torch.__version__, torch.version.cuda or "none", version("onedl-mmcv"),
      version("cuda-toolkit"), ";".join(names) or "none")')
set -- $facts
torch_version=$1 torch_cuda=$2 mmcv_version=$3 toolkit=$4 all_archs=$5

if [ "$cuda" = 1 ]; then
    # A CPU build of torch and an old driver would be noticed by the first job only.
    if [ "$gpu" = 1 ]; then checks="torch driver"; else checks=torch; fi
    doctor --device cuda --only $checks ||
        die "mmcv's operators cannot be built for this machine's GPUs" \
            "follow the lines above, or set PCB_CPU_ONLY=1 for operators that run on the CPU only"
    if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
        TORCH_CUDA_ARCH_LIST=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
            grep -E '^[0-9]+\.[0-9]+$' | sort -u | paste -sd ';') || true
    fi
    export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$all_archs}"
    want="torch=$torch_version cuda=$torch_cuda archs=$TORCH_CUDA_ARCH_LIST"
else
    want="torch=$torch_version cuda=none"
fi
mmcv="onedl-mmcv==$(pinned onedl-mmcv)"
want="$mmcv $want"

# mmcv's operators ----------------------------------------------------------------------------

# nvcc has to be of the same major version as torch's CUDA, with the headers that torch includes.
fits() {
    [ -x "$1/bin/nvcc" ] || return 1
    release=$("$1/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [ "${release%%.*}" = "${torch_cuda%%.*}" ] || return 1
    for header in cusparse.h cublas_v2.h cusolverDn.h; do
        [ -f "$1/include/$header" ] || [ -f "$1/targets/x86_64-linux/include/$header" ] || return 1
    done
}

find_toolkit() {
    on_path=$(command -v nvcc || true)
    given=${CUDA_HOME:-${CUDA_PATH:-}}
    for home in "$given" "${on_path%/bin/nvcc}" /usr/local/cuda; do
        if [ -n "$home" ] && fits "$home"; then
            export CUDA_HOME="$home"
            return
        fi
    done
    found=${given:-${on_path:-nothing}}
    say "No complete CUDA ${torch_cuda%%.*} toolkit ($found found): taking nvcc from the packages" \
        "of torch's CUDA libraries (150 MB)"
    load="load or install CUDA $torch_cuda and set CUDA_HOME to it (module load cuda/$torch_cuda)"
    [ "$toolkit" != none ] ||
        die "torch $torch_version is built for CUDA $torch_cuda, and no nvcc of it was found" "$load"
    pip "Installing nvcc $torch_cuda" install "cuda-toolkit[nvcc,cccl]==$toolkit" ||
        die "nvcc $torch_cuda could not be installed" "$load"
    export CUDA_HOME=$("$venv/bin/python" -c '
import importlib.util, sys
print(*importlib.util.find_spec("nvidia.cu" + sys.argv[1]).submodule_search_locations)' \
        "${torch_cuda%%.*}")
    ln -sf "libcudart.so.${torch_cuda%%.*}" "$CUDA_HOME/lib/libcudart.so" # what -lcudart looks for
    fits "$CUDA_HOME" || die "$CUDA_HOME is not a complete CUDA $torch_cuda toolkit" "$load"
}

# Optimised, without debug symbols, which cost half of the time. CFLAGS replaces all of Python's own
# options, the optimisation level too. Arguments: options of build_operators.py.
build() {
    jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    say "Building mmcv's operators from source on $jobs cores ($want)"
    FORCE_CUDA=$cuda MAX_JOBS=$jobs CFLAGS="-O2 -g0 -DNDEBUG ${CFLAGS:-}" \
        SETUP_PYTHON="$venv/bin/python" "$venv/bin/python" tools/build_operators.py \
        "$@" "${mmcv#*==}" "$venv/.mmcv-build" "$want" ||
        die "mmcv's operators were not built" \
            "the lines above show the cause; run the same command again, which resumes"
}

if [ "$cuda" = 1 ]; then device=cuda; else device=cpu; fi
if [ "$(stamp mmcv)" != "$want" ]; then
    if [ "$cuda" = 1 ]; then
        find_toolkit
        build
    elif [ "$mmcv" != "onedl-mmcv==$mmcv_version" ]; then
        build
    fi
    # What was kept of an earlier build, or an earlier set-up installed, may not work here.
    doctor --device $device --only operators >/dev/null || build --fresh
    echo "$want" >"$venv/.mmcv"
fi
doctor --device $device --only operators || {
    rm -f "$venv/.mmcv"
    die "mmcv's operators do not work" "run this again, which builds them anew; the lines above \
show the cause"
}

"$venv/bin/python" -c 'import torch, mmcv.ops, mmdet' ||
    die "the installed packages do not import" \
        "remove $venv and run this again; the lines above show the cause"
date >"$venv/.ready"
say "Set-up is complete"
