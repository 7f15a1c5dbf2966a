"""Several processes as one training: the one collective that the method needs.

`all_sum` costs nothing, and needs nothing, with a single process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor, *more: Tensor) -> Tensor:
    """Sum `tensor`, and any `more`, over all ranks, in place and in one collective; returns `tensor`.

    Every rank must call it, also one that has only zeros to add.
    """
    if world_size() > 1:
        tensors = (tensor, *more)
        flat = torch.cat([t.reshape(-1).to(tensor.dtype) for t in tensors]) if more else tensor
        dist.all_reduce(flat)
        if more:
            for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                t.copy_(part.view_as(t))
    return tensor
