#!/bin/sh
# The first ten minutes on a machine with one or more GPUs, without a network. Run by hand.
#
#     sh tests/manual/gpu_day.sh                  # PYTHON: the environment's (.venv/bin/python)
#     sh tests/manual/gpu_day.sh --device cpu --out FILE     # a dry run with tiny sizes
#
# Compiles mmcv's operators by tools/setup.sh where they are not for CUDA (before the ten minutes
# count; without a network give pip the source: PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1), then runs the
# sections of gpu_day.py, which writes one JSON under results/benchmarks/gpu/.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
case " $* " in
*" --device cpu "*) ;;
*)
    "$python" -m pcb doctor --device cuda --only torch driver gpus operators ||
        ENV="$("$python" -c 'import sys; print(sys.prefix)')" sh tools/setup.sh ||
        echo "set-up failed: the sections that need mmcv's CUDA operators will fail, too"
    ;;
esac
exec "$python" tests/manual/gpu_day.py "$@"
