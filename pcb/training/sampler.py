"""The images of each batch, as a pure function of (seed, epoch).

A batch is shared by all ranks, so batches are the same for any number of them: rank r of `world`
takes every world-th image. A share that does not fit a GPU is taken in micro-batches, which are the
shares of a proportionally larger number of ranks. Every epoch consists of full batches; the last
one is filled up with the first images of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pcb.errors import UserError

GROUP = 2  # images of a GPU in the released configs


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Yields `epoch * len(dataset) + index`, from which `SeededDataset` draws the augmentation.

    Args:
        dataset: The data set. `group_by_aspect` needs its `sizes`, (n, 2) of height and width.
        batch_size: Images of a batch over all ranks; a multiple of ranks times micro-batches.
        seed: Seed of the order.
        group_by_aspect: Fill each `GROUP` images of a batch with landscape images only or portrait
            images only where possible, so that less of what a GPU takes is padding. As in the
            released configs, which give each of 8 GPUs a group and count square images as
            portrait (MMDetection 2's GroupSampler).
        micro_batches: Number of micro-batches in each rank's share of a batch. Micro-batch j of
            rank r is the share of rank j * world + r out of micro_batches * world.
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        seed: int = 0,
        group_by_aspect: bool = False,
        micro_batches: int = 1,
    ):
        self.rank, self.world = get_dist_info()
        self.micro_batches = micro_batches
        if batch_size % (self.world * micro_batches):
            raise UserError(
                f"a batch of {batch_size} images cannot be divided equally among {self.world} "
                f"processes with {micro_batches} micro-batches each",
                "let hardware.gpus_per_job times hardware.accumulate divide train.batch_size",
            )
        self.size, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.landscape = None
        if group_by_aspect and batch_size % GROUP == 0:
            height, width = dataset.sizes.T
            self.landscape = width > height
        self.epoch = self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the 0-based epoch of the next pass, which skips its first `start` batches."""
        self.epoch, self.start = epoch, start

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.size // self.batch_size)

    def batches(self, epoch: int) -> np.ndarray:
        """Return the batches of an epoch: (batches, batch_size) indices into the data set."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.size)
        filled = self.batches_per_epoch * self.batch_size
        if self.landscape is None:
            return np.resize(order, filled).reshape(-1, self.batch_size)
        kinds = [order[self.landscape[order]], order[~self.landscape[order]]]
        full = [kind[: len(kind) // GROUP * GROUP] for kind in kinds]
        rest = [kind[len(f) :] for kind, f in zip(kinds, full, strict=True)]
        mixed = np.concatenate([*rest, np.resize(order, filled - self.size)])
        groups = rng.permutation(np.concatenate([*full, mixed]).reshape(-1, GROUP))
        # Image k of each group together: rank r of as many ranks as groups gets the group r.
        batches = groups.reshape(-1, self.batch_size // GROUP, GROUP).swapaxes(1, 2)
        return batches.reshape(-1, self.batch_size)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's share of the remaining batches, micro-batch after micro-batch."""
        batches = self.batches(self.epoch)[self.start :]
        shares = batches.reshape(len(batches), -1, self.micro_batches * self.world)
        share = shares[:, :, self.rank :: self.world].swapaxes(1, 2)
        return iter((self.epoch * self.size + share.reshape(-1)).tolist())

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size // self.world
