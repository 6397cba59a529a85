"""Samplers for training and evaluation, and functions that seed the augmentation of training images.

The order of the training images depends only on the seed of the run and the epoch. The augmentation of an image also
depends on its index.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Tuple of the index of a training sample, the epoch, and the number of earlier draws of the sample in this epoch.

    The augmentation of the sample is seeded with these numbers and the seed of the run. It therefore does not depend on
    the number of loading processes or on other samples.
    """

    index: int
    epoch: int
    repeat: int = 0


class EpochSampler(Sampler[Draw]):
    """Sampler that yields a :class:`Draw` for every training sample once per epoch.

    The order is random and depends only on the seed and the epoch. Lightning calls :meth:`set_epoch` before each epoch.
    All processes use the same order and take samples from it in turn. If the number of samples is not divisible by the
    number of processes, the first samples of the order are repeated at its end.

    Args:
        size: number of samples.
        seed: seed of the run.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.rank, self.world_size = rank_and_world_size()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration over this sampler. The first epoch is 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        draws = self._draws(generator)
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield draws[position % self.size]

    def __len__(self) -> int:
        return -(-self.size // self.world_size)

    def _draws(self, generator: torch.Generator) -> list[Draw]:
        """Return a list of the draws of all processes in the current epoch, in order."""
        return [Draw(index, self.epoch) for index in torch.randperm(self.size, generator=generator).tolist()]


class WeightedEpochSampler(EpochSampler):
    """:class:`EpochSampler` that draws the samples of an epoch with replacement.

    An epoch has as many draws as there are samples. A sample that is drawn several times in an epoch is augmented
    differently each time.

    Args:
        weights: weight of each sample, at least 0. The probability that a draw yields the sample is its weight divided
            by the sum of all weights.
        seed: seed of the run.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        super().__init__(len(weights), seed)
        self.weights = torch.as_tensor(weights, dtype=torch.double)

    def _draws(self, generator: torch.Generator) -> list[Draw]:
        drawn = torch.multinomial(self.weights, self.size, replacement=True, generator=generator).tolist()
        repeats: Counter[int] = Counter()
        draws = []
        for index in drawn:
            draws.append(Draw(index, self.epoch, repeats[index]))
            repeats[index] += 1
        return draws


class ResumedBatchSampler(Sampler[list[Draw]]):
    """Batch sampler that skips the batches that a resumed run has already trained on.

    Args:
        batches: batch sampler that yields all batches of an epoch. Its attribute ``sampler`` must have an attribute
            ``epoch``, which Lightning sets before each epoch.
        epoch: epoch within which the run resumes.
        skipped: number of batches to skip in that epoch. No batch is skipped in other epochs.
    """

    def __init__(self, batches: Sampler[list[Draw]], epoch: int, skipped: int):
        self.batches = batches
        self.sampler = batches.sampler
        self.epoch = epoch
        self.skipped = skipped

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self.batches, self.skipped if self.sampler.epoch == self.epoch else 0, None)

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch.

        The batches that a resumed run skips are included, because Lightning counts them too.
        """
        return len(self.batches)


class EvaluationSampler(Sampler[int]):
    """Sampler that divides the samples among all processes, so that each sample is evaluated exactly once.

    In each process, the sampler yields the indices of the process's samples in ascending order. The numbers of samples
    per process differ by at most one.

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
    """Seed the random number generators of an albumentations pipeline before it is applied to a training sample.

    This function sets the same generators for all transforms of the pipeline. ``Compose.set_random_seed`` would instead
    give each transform its own generator with the same seed. Two flips with probability ½ would then always happen
    together.

    Args:
        transforms: an ``albumentations.Compose``.
        seed: seed of the run.
        draw: index of the sample, epoch, and number of earlier draws of the sample in the epoch.
    """
    seed = mix_seeds(seed, draw.epoch, draw.index, *([draw.repeat] if draw.repeat else []))
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))


def mix_seeds(*numbers: int) -> int:
    """Combine several integers into one 63-bit seed."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def rank_and_world_size() -> tuple[int, int]:
    """Return a tuple (rank of this process, number of processes).

    Without distributed training the tuple is ``(0, 1)``.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
