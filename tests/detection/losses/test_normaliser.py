import torch

from detection.losses.normaliser import normaliser


def test_the_divisor_is_the_count_and_at_least_1():
    assert normaliser(torch.tensor([0.0, 0.5, 7.0]), training=True).tolist() == [1, 1, 7]


def test_the_divisor_is_averaged_over_processes_only_in_training(monkeypatch):
    def all_reduce(count):
        count += 8  # the count of another process
        reduced.append(count)

    reduced = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    count = torch.tensor(4.0)
    assert normaliser(count, training=False) == 4
    assert not reduced
    assert normaliser(count, training=True) == 6
    assert count == 4
