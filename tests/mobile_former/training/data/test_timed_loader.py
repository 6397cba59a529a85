import os
import resource
import signal
import sys
import time

import pytest
import torch

from mobile_former.errors import InputError
from mobile_former.training.data import timed_loader
from mobile_former.training.data.timed_loader import TimedLoader


def pauses(monkeypatch, processes, **options):
    """Return how often a loader pauses before it starts workers, in two epochs."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(timed_loader, "rank_and_world_size", lambda: (0, processes))
    loader = TimedLoader([1, 2], **options)
    for _ in range(2):
        list(loader)
    return len(seconds)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python forks well there")
@pytest.mark.parametrize(
    ("processes", "options", "expected"),
    [
        (2, {"num_workers": 1, "persistent_workers": True}, 1),  # they are started once
        (2, {"num_workers": 1}, 2),
        (2, {}, 0),
        (1, {"num_workers": 1}, 0),
    ],
)
def test_workers_of_several_processes_are_forked_after_a_pause(monkeypatch, processes, options, expected):
    assert pauses(monkeypatch, processes, **options) == expected


class Killed(torch.utils.data.Dataset):
    """Data whose reader is killed, as a machine without free memory kills it."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class TooLarge(Killed):
    """Data of which a batch does not fit into a file, as if the shared memory were full."""

    def __getitem__(self, index):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        return torch.zeros(1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Killed(), r"has ended \(DataLoader worker \(pid.*\): if memory is short, give a smaller --data.num_workers"),
        (TooLarge(), r"got no shared memory \(.*File too large.*--shm-size 8g\), or --data.num_workers 0"),
    ],
)
def test_a_lost_worker_is_an_error_of_one_line_that_names_the_remedy(data, message):
    with pytest.raises(InputError, match=message) as raised:
        list(TimedLoader(data, num_workers=1))
    assert "\n" not in str(raised.value)


def test_a_mistake_in_the_data_set_keeps_its_traceback():
    class Mistaken(Killed):
        def __getitem__(self, index):
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="Original Traceback") as raised:
        list(TimedLoader(Mistaken(), num_workers=1))
    assert not isinstance(raised.value, InputError)
