"""Runs a function on K gloo ranks in processes of their own, and returns what each of them returned."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)  # a rank that waits for another in vain fails then


def run(function, world: int, folder: Path, *args) -> list:
    """`function(rank, world, *args)` on every rank; must be importable by name. Raises if any rank fails or hangs."""
    mp.spawn(_rank, args=(world, str(folder), function, args), nprocs=world)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, function, args) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    try:
        torch.save(function(rank, world, *args), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
