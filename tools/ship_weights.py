"""Shrink a pretrained detector to the size of a shipped file. Run by hand.

Usage, after `pcb pretrain r50` at a scale whose backbones.r50.weights is `pretrain`:

    python tools/ship_weights.py results/mini/pretrained/r50.pth mini_r18

Weights are stored in half precision, without those that belong to the pretraining classes. Writes
pcb/synthetic/weights/mini_r18-<first digits of its sha256>.pth and prints its name, which then goes
into the scale's YAML.
"""

from __future__ import annotations

import hashlib
import io
import sys

import torch

from pcb.files import ROOT
from pcb.training import checkpoint
from pcb.training.weights import FRESH, PER_CLASS

WEIGHTS = ROOT / "pcb/synthetic/weights"
META = ("kind", "iterations", "seconds", "git", "started")  # kept of the detector's metadata


def main(source: str, name: str) -> None:
    """Read the pretrained detector `source` and write `name`-<digest>.pth."""
    content = checkpoint.load(source)
    weights = {}
    for key, value in content["state_dict"].items():
        if any(pattern in key for pattern in FRESH):
            continue
        rows = next((n for pattern, n in PER_CLASS.items() if pattern in key), None)
        if rows:  # a new class starts from the mean over the old ones, so only that is kept
            value = value.unflatten(0, (-1, rows)).mean(dim=0)
        weights[key] = value.half() if value.is_floating_point() else value
    meta = {key: content["meta"][key] for key in META if key in content["meta"]}
    buffer = io.BytesIO()
    torch.save({"meta": meta, "state_dict": weights}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = WEIGHTS / f"{name}-{digest[:8]}.pth"
    path.write_bytes(buffer.getvalue())
    print(path.relative_to(ROOT), f"{path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
