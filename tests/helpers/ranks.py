"""Run a function on K gloo ranks, each a process of its own."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)  # of a collective that a rank does not join


def run(function, world: int, folder: Path, *args) -> list:
    """Return what `function(rank, world, *args)` returns on every rank.

    The function must be importable by name. Raises if a rank fails or hangs.
    """
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
