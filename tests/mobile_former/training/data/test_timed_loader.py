import sys
import time

import pytest

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
