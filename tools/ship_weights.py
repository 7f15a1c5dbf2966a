"""Make a pretrained detector small enough to ship: half precision, without what belongs to its own classes. Run by hand.

Usage, after `pcb pretrain r50` at a scale whose backbones.r50.weights says `pretrain`:
    python tools/ship_weights.py results/mini/pretrained/r50.pth configs/mmdet/mini_r18
It prints the file that it wrote, configs/mmdet/mini_r18-<sha256>.pth, which then goes into the scale's YAML.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import torch

from pcb.training import checkpoint
from pcb.training.weights import FRESH, PER_CLASS


def main(source: str, stem: str) -> None:
    content = checkpoint.load(source)
    weights = {}
    for key, value in content["state_dict"].items():
        if any(part in key for part in FRESH):
            continue
        rows = next((n for part, n in PER_CLASS.items() if part in key), None)
        if (
            rows
        ):  # a new class starts from the mean over the old ones, which is all that need be kept
            value = value.unflatten(0, (-1, rows)).mean(dim=0)
        weights[key] = value.half() if value.is_floating_point() else value
    meta = {
        key: content["meta"][key]
        for key in ("kind", "iterations", "seconds", "git", "started")
        if key in content["meta"]
    }
    buffer = io.BytesIO()
    torch.save({"meta": meta, "state_dict": weights}, buffer)
    path = Path(f"{stem}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth")
    path.write_bytes(buffer.getvalue())
    print(path, f"{path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
