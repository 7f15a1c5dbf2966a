"""The one collective that the method needs; with a single process it does nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor, *more: Tensor) -> Tensor:
    """Sum `tensor`, and any `more`, over all ranks, in place and in one all-reduce.

    A collective: every rank must call it, also one that has only zeros to add.

    Args:
        tensor: Any shape; the others are reduced in its dtype.
        *more: Further tensors on the same device.

    Returns:
        `tensor`.
    """
    if world_size() > 1:
        tensors = (tensor, *more)
        flat = torch.cat([t.reshape(-1).to(tensor.dtype) for t in tensors]) if more else tensor
        dist.all_reduce(flat)
        if more:
            for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
                t.copy_(total.view_as(t))
    return tensor
