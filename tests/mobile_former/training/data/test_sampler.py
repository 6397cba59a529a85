import copy
import random

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mobile_former.training.data.sampler import (
    Draw,
    EpochSampler,
    EvaluationSampler,
    ResumedBatchSampler,
    WeightedEpochSampler,
    seed_transforms,
)


def orders(size, seed, epochs):
    sampler = EpochSampler(size, seed)
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found.append([draw.index for draw in sampler])
    return found


def test_every_sample_is_drawn_once_per_epoch_with_the_number_of_the_epoch():
    sampler = EpochSampler(100, seed=3)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert sorted(draws) == [Draw(index, epoch) for index in range(100)]
    assert len(sampler) == 100


def test_the_order_depends_only_on_seed_and_epoch():
    straight = orders(50, 0, range(4))
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    assert orders(50, 0, [3, 1]) == [straight[3], straight[1]]


def test_the_order_differs_between_epochs_and_between_seeds():
    seen = {tuple(order) for seed in (0, 1, 2**63, -1) for order in orders(50, seed, range(5))}
    assert len(seen) == 20
    # Seed 1 at epoch 0 differs from seed 0 at epoch 1. With the sum of both as seed it would not.
    assert orders(50, 1, [0]) != orders(50, 0, [1])


def test_every_sample_is_equally_frequent_at_every_position():
    counts = np.zeros((5, 5))
    for order in orders(5, 0, range(2000)):
        counts[range(5), order] += 1
    # Each count is binomial, (2000, 1/5): standard deviation 18.
    assert np.abs(counts - 400).max() < 5 * 18


def test_weights_are_the_relative_frequencies_of_the_samples():
    weights = [0, 1, 2, 5]
    sampler = WeightedEpochSampler(weights, seed=0)
    counts = np.zeros(4)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == 4
        counts += np.bincount([draw.index for draw in draws], minlength=4)
    expected = 8000 * np.array(weights) / 8
    assert np.abs(counts - expected).max() < 5 * np.sqrt(8000 / 4)
    assert counts[0] == 0


def test_repeated_draws_of_a_sample_are_numbered_and_augmented_differently():
    sampler = WeightedEpochSampler([1, 0, 0, 0, 0, 0], seed=0)
    assert list(sampler) == [Draw(0, 0, repeat) for repeat in range(6)]
    pictures = Pictures(0)
    assert len({pictures[draw].tobytes() for draw in sampler}) == 6


def test_processes_share_the_weighted_draws_of_an_epoch(monkeypatch):
    weights = np.linspace(1, 9, 12)
    alone = list(WeightedEpochSampler(weights, seed=4))
    shares = []
    for rank in range(3):
        as_one_of_several(monkeypatch, rank, 3)
        shares.append(list(WeightedEpochSampler(weights, seed=4)))
    assert [draw for together in zip(*shares, strict=True) for draw in together] == alone


def as_one_of_several(monkeypatch, rank, world_size):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


def test_processes_share_each_epoch_evenly_and_in_a_new_order(monkeypatch):
    shares = {epoch: [] for epoch in range(2)}
    for rank in range(3):
        as_one_of_several(monkeypatch, rank, 3)
        sampler = EpochSampler(10, 0)
        for epoch, share in shares.items():
            sampler.set_epoch(epoch)
            share.append(list(sampler))
            assert len(share[-1]) == len(sampler) == 4
    for epoch, share in shares.items():
        assert {draw for draws in share for draw in draws} == {Draw(index, epoch) for index in range(10)}
    assert [draw.index for draw in shares[0][0]] != [draw.index for draw in shares[1][0]]


def test_processes_evaluate_each_sample_exactly_once(monkeypatch):
    assert list(EvaluationSampler(5)) == [0, 1, 2, 3, 4]
    for size in (2, 9, 10):
        drawn = []
        for rank in range(3):
            as_one_of_several(monkeypatch, rank, 3)
            sampler = EvaluationSampler(size)
            assert len(sampler) == len(list(sampler))
            drawn += sampler
        assert sorted(drawn) == list(range(size))


PIPELINE = [
    A.RandomResizedCrop((16, 16), scale=(0.3, 1.0)),
    A.HorizontalFlip(p=0.5),
    A.SomeOf([A.Affine(rotate=(-30, 30), p=0.5), A.ColorJitter(p=0.5), A.OneOf([A.Blur(), A.InvertImg()])], n=2),
    A.Erasing(fill="random", p=0.5),
]
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


class Pictures(Dataset):
    """One image with random transforms that are seeded by the draw."""

    def __init__(self, seed):
        self.transforms = A.Compose(PIPELINE)
        self.seed = seed

    def __len__(self):
        return 12

    def __getitem__(self, draw):
        seed_transforms(self.transforms, self.seed, draw)
        return self.transforms(image=IMAGE)["image"]


def test_the_pixels_of_a_draw_do_not_depend_on_earlier_draws():
    alone = {draw: Pictures(5)[draw] for draw in (Draw(3, 0), Draw(3, 1), Draw(4, 0))}
    pictures = Pictures(5)
    for before in ([], [Draw(1, 0)], [Draw(3, 0), Draw(7, 9)]):
        for other in before:
            pictures[other]
        pictures.transforms(image=IMAGE)
        np.random.seed(len(before)), random.seed(len(before))
        for draw, expected in alone.items():
            np.testing.assert_array_equal(pictures[draw], expected)


def test_index_epoch_and_seed_each_change_the_pixels():
    seen = {Pictures(seed)[Draw(index, epoch)].tobytes() for seed in range(3) for index in range(3) for epoch in (0, 1)}
    assert len(seen) == 18


@pytest.mark.parametrize("epoch", [0, 4])
def test_workers_load_the_same_batches_as_the_main_process(epoch):
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(12, 1)
        sampler.set_epoch(epoch)
        batches.append(list(DataLoader(Pictures(1), batch_size=5, sampler=sampler, num_workers=workers)))
    assert len(batches[0]) == len(batches[1]) == 3
    for alone, shared in zip(*batches, strict=True):
        assert torch.equal(alone, shared)


def test_two_flips_of_a_pipeline_are_independent():
    transforms = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    corners = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, 2)
    counts = np.zeros((2, 2))
    for index in range(2000):
        seed_transforms(transforms, 0, Draw(index, 0))
        corner = int(transforms(image=corners)["image"][0, 0, 0])
        counts[corner % 2, corner // 2] += 1
    # Each of the four cases has probability ¼: 500, standard deviation 19.
    assert np.abs(counts - 500).max() < 4 * 19


@pytest.mark.parametrize("sampler", [EpochSampler(13, seed=5), WeightedEpochSampler(range(1, 14), seed=5)])
@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_resumed_run_gets_the_remaining_batches_and_then_whole_epochs(skipped, sampler):
    def epochs(batches):
        found = []
        for epoch in (2, 3):
            batches.sampler.set_epoch(epoch)
            found.append(list(batches))
        return found

    def batches_of():
        return BatchSampler(copy.copy(sampler), 4, drop_last=True)

    undisturbed = epochs(batches_of())
    resumed = ResumedBatchSampler(batches_of(), epoch=2, skipped=skipped)
    assert epochs(resumed) == [undisturbed[0][skipped:], undisturbed[1]]
    assert len(resumed) == 3  # a whole epoch, as Lightning expects
    resumed.sampler.set_epoch(2)
    assert list(resumed) == list(resumed)  # every iteration is the same
