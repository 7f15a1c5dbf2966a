"""Which images make up which batch, as a pure function of (seed, epoch): the state of a sampler is two integers.

A batch is one of the whole world: rank r takes every world-th image of it, so batches are the same with one process
or eight. Where a share is too large for a process at once, it comes in parts, and these are the shares that so many
more processes would have. Every epoch is cut into full batches; the last one is filled up from the epoch's first images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pcb.errors import UserError


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Yields `epoch * len(dataset) + index`: the data set draws an item's augmentation from that number.

    `batch_size` counts images over all processes and must be a multiple of their number times `parts`, into which each
    process cuts its share: part j of rank r is the share of process j * world + r out of parts * world. With
    `group_by_aspect` a batch holds landscape images or portrait ones, as far as that goes, so that less of it is padding.
    """

    def __init__(
        self, dataset, batch_size: int, seed: int = 0, group_by_aspect: bool = False, parts: int = 1
    ):
        self.rank, self.world = get_dist_info()
        self.parts = parts
        if batch_size % (self.world * parts):
            raise UserError(
                f"a batch of {batch_size} images cannot be cut into equal parts by {self.world} processes with {parts} each",
                "let hardware.gpus_per_job times hardware.accumulate divide the batch_size",
            )
        self.size, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.landscape = None
        if group_by_aspect:
            height, width = dataset.sizes.T
            self.landscape = width > height
        self.epoch = self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """The next pass is epoch `epoch` (0-based), without its first `start` batches."""
        self.epoch, self.start = epoch, start

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.size // self.batch_size)

    def batches(self, epoch: int) -> np.ndarray:
        """(batches, batch_size) indices into the data set."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.size)
        filled = self.batches_per_epoch * self.batch_size
        if self.landscape is None:
            return np.resize(order, filled).reshape(-1, self.batch_size)
        groups = [order[self.landscape[order]], order[~self.landscape[order]]]
        whole = [g[: len(g) // self.batch_size * self.batch_size] for g in groups]
        rest = np.concatenate([g[len(w) :] for g, w in zip(groups, whole, strict=True)])
        rest = np.concatenate([rest, np.resize(order, filled - self.size)])
        return random.permutation(np.concatenate([*whole, rest]).reshape(-1, self.batch_size))

    def __iter__(self) -> Iterator[int]:
        batches = self.batches(self.epoch)[self.start :]
        shares = batches.reshape(len(batches), -1, self.parts * self.world)[
            :, :, self.rank :: self.world
        ]
        return iter((self.epoch * self.size + shares.swapaxes(1, 2).reshape(-1)).tolist())

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size // self.world
