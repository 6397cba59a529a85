"""Which samples an epoch sees, in which order, and from which seed each draws its augmentation."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One visit of one sample. Index and epoch together seed everything random about it.

    So a sample's augmentation does not depend on the number of workers, nor on what was loaded before it.
    """

    index: int
    epoch: int


class EpochSampler(Sampler[Draw]):
    """Every sample once an epoch, in an order that depends on seed and epoch alone.

    Lightning tells the epoch by :meth:`set_epoch`. Several processes take turns in one order, which begins again at its
    end until all have equally many.

    Args:
        size: number of samples.
        seed: of the orders.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.rank, self.world_size = rank_and_world_size()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield Draw(order[position % self.size], self.epoch)

    def __len__(self) -> int:
        return -(-self.size // self.world_size)


class ResumedBatchSampler(Sampler[list[Draw]]):
    """Batches, less those of one epoch that a run has trained on before it was stopped.

    Args:
        batches: of each epoch; its ``sampler`` knows the epoch. (Lightning tells it there, under this name.)
        epoch: the one that the run goes on with.
        skipped: how many of its batches are done.
    """

    def __init__(self, batches: Sampler[list[Draw]], epoch: int, skipped: int):
        self.batches = batches
        self.sampler = batches.sampler
        self.epoch = epoch
        self.skipped = skipped

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self.batches, self.skipped if self.sampler.epoch == self.epoch else 0, None)

    def __len__(self) -> int:
        """Of a whole epoch, which is what Lightning counts by."""
        return len(self.batches)


class EvaluationSampler(Sampler[int]):
    """Every sample exactly once over all processes, in order; some processes may have one more than others.

    Args:
        size: number of samples.
    """

    def __init__(self, size: int):
        rank, world_size = rank_and_world_size()
        self.indices = range(rank, size, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def seed_transforms(transforms, seed: int, draw: Draw) -> None:
    """Make an albumentations pipeline's next call depend on seed and draw alone.

    All of its transforms share one stream. (``Compose.set_random_seed`` gives each its own stream from the same seed,
    so that two flips with probability ½ would always happen together.)

    Args:
        transforms: an ``albumentations.Compose``.
        seed: of the run.
        draw: the visit.
    """
    seed = mix_seeds(seed, draw.epoch, draw.index)
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))


def mix_seeds(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
