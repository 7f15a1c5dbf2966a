"""Batches depend on (seed, epoch) only, and are the same for any number of ranks."""

import numpy as np
import pytest

from pcb.training.loop import seed_everything
from pcb.training.sampler import EpochSampler


class Scenes:
    """A data set of n images, every third of them portrait."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    @property
    def sizes(self):
        return np.array([(25, 30 if i % 3 else 20) for i in range(self.n)])


def batches(sampler, epoch, start=0):
    sampler.set_position(epoch, start)
    return np.array(list(sampler)).reshape(-1, sampler.batch_size // sampler.world)


@pytest.mark.parametrize("group", [False, True])
def test_an_epoch_shows_every_image_in_full_batches(group):
    sampler = EpochSampler(Scenes(50), batch_size=8, seed=3, group_by_aspect=group)
    shown = batches(sampler, epoch=2)
    assert shown.shape == (7, 8) and len(sampler) == 56
    assert set(shown.ravel()) == set(range(100, 150))  # epoch * 50 + index


def test_batches_are_a_function_of_seed_and_epoch():
    a, b = (EpochSampler(Scenes(50), batch_size=8, seed=3) for _ in range(2))
    batches(b, epoch=0)  # earlier epochs have no influence
    assert (batches(a, 5) == batches(b, 5)).all()
    assert (batches(a, 5) % 50 != batches(a, 6) % 50).any()
    assert (batches(a, 5) != batches(EpochSampler(Scenes(50), batch_size=8, seed=4), 5)).any()


def test_starting_within_an_epoch_skips_batches_and_keeps_the_others():
    sampler = EpochSampler(Scenes(50), batch_size=8, seed=3, group_by_aspect=True)
    assert (batches(sampler, 1, start=4) == batches(sampler, 1)[4:]).all()


def is_landscape(index):
    return index % 50 % 3 != 0


def test_only_the_remaining_images_mix_aspect_ratios(monkeypatch):
    """Four ranks take two images each, as the GPUs of the released configs do."""
    kinds = []
    for rank in range(4):
        monkeypatch.setattr("pcb.training.sampler.get_dist_info", lambda rank=rank: (rank, 4))
        sampler = EpochSampler(Scenes(50), batch_size=8, seed=3, group_by_aspect=True)
        kinds.append(is_landscape(batches(sampler, epoch=0)))
    kinds = np.stack(kinds)  # (ranks, batches, images)
    mixed = kinds.any(axis=2) & ~kinds.all(axis=2)
    assert mixed.sum() <= 4  # 33 landscape and 17 portrait images, and 6 that fill the last batch
    of_batches = kinds.all(axis=2).any(axis=0) & (~kinds.any(axis=2)).any(axis=0)
    assert of_batches.sum() >= 5  # one batch has both


def test_square_images_count_as_portrait():
    """As in MMDetection 2, of the released configs; MMDetection 3 counts them as landscape."""

    class Squares(Scenes):
        sizes = np.array([(20, 20), (30, 20)] * 8)

    sampler = EpochSampler(Squares(16), batch_size=4, group_by_aspect=True)
    assert not sampler.landscape.any()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_one(monkeypatch, world):
    whole = batches(EpochSampler(Scenes(50), batch_size=8, seed=3), epoch=1)
    shares = []
    for rank in range(world):
        monkeypatch.setattr("pcb.training.sampler.get_dist_info", lambda rank=rank: (rank, world))
        shares.append(batches(EpochSampler(Scenes(50), batch_size=8, seed=3), epoch=1))
    assert (np.sort(np.concatenate(shares, axis=1)) == np.sort(whole)).all()


def test_a_key_seeds_every_source_of_randomness():
    import random

    import torch

    def draw(*key):
        seed_everything(*key)
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert draw(0, 7, 0) == draw(0, 7, 0)
    assert all(a != b for a, b in zip(draw(0, 7, 0), draw(0, 8, 0), strict=True))
    assert all(a != b for a, b in zip(draw(0, 7, 0), draw(0, 7, 1), strict=True))
