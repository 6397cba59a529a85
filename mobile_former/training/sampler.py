"""Which samples an epoch sees, in which order, and from which seed each draws its augmentation."""

import random
from collections.abc import Iterator
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

    Lightning tells the epoch by :meth:`set_epoch`.

    Args:
        size: number of samples.
        seed: of the orders.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        for index in torch.randperm(self.size, generator=generator).tolist():
            yield Draw(index, self.epoch)

    def __len__(self) -> int:
        return self.size


def seed_transforms(transforms, seed: int, draw: Draw) -> None:
    """Make an albumentations pipeline's next call depend on seed and draw alone.

    All of its transforms share one stream. (``Compose.set_random_seed`` gives each its own stream from the same seed,
    so that two flips with probability ½ would always happen together.)

    Args:
        transforms: an ``albumentations.Compose``.
        seed: of the run.
        draw: the visit.
    """
    seed = _mix(seed, draw.epoch, draw.index)
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)
