"""The training loop: a training is a pure function of its seed, however often it is interrupted.

No random state survives an iteration. A batch follows from (seed, epoch), the augmentation of an
item from (seed, epoch, index), and every iteration reseeds torch, numpy and random from (seed,
iteration, rank). A training that is resumed at any iteration, or branched from the checkpoint of
another, therefore takes the same steps as one that was never interrupted: bit-identical on a CPU.

An iteration is one batch and one step of the optimiser, on any number of GPUs. With
`hardware.accumulate` = k, each rank takes its share of the batch in k micro-batches;
docs/scaling.md describes what that means for losses that keep statistics.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice

import numpy as np
import torch
from mmdet.registry import LOOPS
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import FUNCTIONS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from pcb.losses import Regulariser
from pcb.training.sampler import EpochSampler


def seed_everything(*key: int) -> None:
    """Seed torch, numpy and random from a tuple of non-negative integers."""
    for_torch, for_numpy, for_random = np.random.SeedSequence(key).generate_state(3).tolist()
    # Without a GPU, torch.manual_seed would queue a seed, with a stack trace, for a later one.
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(for_torch)
    np.random.seed(for_numpy)
    random.seed(for_random)


@FUNCTIONS.register_module()
def ignore_stop_signals(worker: int) -> None:
    """Let a worker of a data loader live on after SIGTERM, SIGHUP and Ctrl-C.

    They may reach the whole process group. The training needs its workers until it has saved;
    `end_workers` ends them, or the end of their parent does.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_workers(dataloader: DataLoader) -> None:
    """End the persistent workers of a data loader.

    They ignore SIGTERM, by which Python would end them at its exit, and would use memory beside
    those of the next training.
    """
    iterator, dataloader._iterator = dataloader._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()  # ty: ignore[missing-attribute] of a loader with workers


@LOOPS.register_module()
class ResumableLoop(EpochBasedTrainLoop):
    """Epochs of a data loader with an `EpochSampler`; starts and stops at any iteration.

    After every iteration, and after the end of an epoch that it completes, hooks get
    `between_iterations(runner)`. `runner.iter` then counts the completed iterations, and the
    runner's state is that of a checkpoint.

    Args:
        runner: The runner.
        dataloader: Yields micro-batches, `sampler.micro_batches` of them for each iteration.
        max_epochs: Length of the training.
        max_iters: Length of the training in iterations, instead of `max_epochs`; it may end
            within an epoch.
        seed: Seed of the training.
    """

    def __init__(
        self, runner, dataloader, max_epochs: int = 1, max_iters: int | None = None, seed: int = 0
    ):
        super().__init__(runner, dataloader, max_epochs)
        assert isinstance(self.dataloader, DataLoader)
        assert isinstance(self.dataloader.sampler, EpochSampler)
        self.sampler = self.dataloader.sampler
        self.micro_batches = self.sampler.micro_batches
        self.epoch_length = len(self.dataloader) // self.micro_batches
        self._max_iters = max_iters or max_epochs * self.epoch_length
        self.seed = seed

    def set_iteration(self, iteration: int) -> None:
        """Continue after `iteration` completed iterations."""
        self._iter = iteration
        self._epoch = iteration // self.epoch_length

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last completed iteration was the last of its epoch."""
        return self._iter % self.epoch_length == 0

    def run(self) -> torch.nn.Module:
        """Train from the current iteration to the last."""
        # The optimiser's wrapper counts micro-batches, from 0: a batch is never incomplete.
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, -1)
        self.runner.call_hook("before_train")
        try:
            while self._iter < self._max_iters:
                self.run_epoch()
        finally:
            end_workers(self.dataloader)
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train to the end of the epoch, or of the training."""
        start = self._iter - self._epoch * self.epoch_length
        self.sampler.set_position(self._epoch, start)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        loaded = iter(self.dataloader)
        for index in range(start, self.epoch_length):
            self.run_iter(index, islice(loaded, self.micro_batches))
            if self.at_epoch_end:
                self.runner.call_hook("after_train_epoch")
                self._epoch += 1
            self.runner.call_hook("between_iterations")
            if self._iter >= self._max_iters:
                break

    def run_iter(self, idx: int, data_batch: Iterable[dict]) -> None:
        """Train on one batch.

        Args:
            idx: Position of the batch in its epoch.
            data_batch: The micro-batches of this rank's share of it.
        """
        seed_everything(self.seed, self._iter, get_rank())
        self.runner.call_hook("before_train_iter", batch_idx=idx)
        losses: dict[str, torch.Tensor] = {}
        with ExitStack() as deferred:
            if self.micro_batches > 1:
                for module in self.runner.model.modules():
                    if isinstance(module, Regulariser):
                        deferred.enter_context(module.deferred_updates())
            for i, micro_batch in enumerate(data_batch):
                if i:
                    seed_everything(self.seed, self._iter, i * get_world_size() + get_rank())
                outputs = self.runner.model.train_step(
                    micro_batch, optim_wrapper=self.runner.optim_wrapper
                )
                for key, value in outputs.items():
                    losses[key] = losses.get(key, 0) + value / self.micro_batches
        self.runner.call_hook("after_train_iter", batch_idx=idx, outputs=losses)
        self._iter += 1
