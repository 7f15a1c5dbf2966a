"""What torch and mmcv know of themselves and of the GPUs, as JSON. A process of its own.

    python -m pcb.doctor.probe [--run]      # --run: run mmcv's operators, on the GPUs too

A process of its own, because importing torch takes seconds, initialises CUDA before a job has
leased its devices, and can crash where libraries do not fit. No part depends on another: what
fails leaves its message under `errors`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

Facts = dict[str, Any]


def torch_facts() -> Facts:
    """Version of torch, the CUDA it was built for, and the GPU architectures of its kernels."""
    import torch

    built = torch.version.cuda
    flags = torch._C._cuda_getArchFlags() if built else None
    return {"torch": torch.__version__, "cuda": built, "architectures": (flags or "").split()}


def gpu_facts() -> Facts:
    """The GPUs that torch sees: name, memory in bytes, compute capability."""
    import torch

    if not torch.cuda.is_available():
        return {"gpus": []}
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": [
            {"name": p.name, "memory": p.total_memory, "capability": [p.major, p.minor]}
            for p in properties
        ]
    }


def nccl_facts() -> Facts:
    """Version of NCCL, None where torch has none."""
    import torch
    import torch.cuda.nccl
    import torch.distributed as dist

    if not (torch.version.cuda and dist.is_available() and dist.is_nccl_available()):
        return {"nccl": None}
    return {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def operator_facts() -> Facts:
    """Version of mmcv and the CUDA that its operators were compiled for, None if for none."""
    facts: Facts = {"mmcv": version("onedl-mmcv")}
    from mmcv.ops import get_compiling_cuda_version

    compiled = get_compiling_cuda_version()
    return {**facts, "operators": None if compiled == "not available" else compiled}


def run_operators(device: str) -> None:
    """Run non-maximum suppression and RoIAlign once and check their results."""
    import torch
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [9, 9, 12, 12]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    kept = nms(boxes, scores, 0.5)[1].tolist()
    rois = torch.tensor([[0.0, 0, 0, 8, 8]], device=device)
    pooled = roi_align(torch.ones(1, 1, 16, 16, device=device), rois, (2, 2))
    if kept != [0, 2] or pooled.flatten().tolist() != [1.0] * 4:
        raise ArithmeticError(f"wrong results: NMS kept {kept}, RoIAlign {pooled.tolist()}")


def probe(run: bool) -> Facts:
    """Return all facts.

    Args:
        run: Also run the operators, on the CPU and on each GPU; `ran` lists where they did. This
            takes a few hundred MB of each GPU for a moment, so jobs leave it out.
    """
    facts: Facts = {"errors": {}, "ran": []}

    def part(name: str, get: Callable[[], Facts | None]) -> None:
        try:
            facts.update(get() or {})
        except Exception as error:  # any failure is a finding
            facts["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0]

    for name, get in (("torch", torch_facts), ("gpus", gpu_facts), ("nccl", nccl_facts)):
        part(name, get)
    part("operators", operator_facts)
    if run and "operators" not in facts["errors"]:
        gpus = len(facts.get("gpus", [])) if facts["operators"] else 0
        for device in ("cpu", *(f"cuda:{i}" for i in range(gpus))):
            part(device, lambda device=device: run_operators(device))
            if device not in facts["errors"]:
                facts["ran"].append(device)
    return facts


if __name__ == "__main__":
    print(json.dumps(probe("--run" in sys.argv)))
