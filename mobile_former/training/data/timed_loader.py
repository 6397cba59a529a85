"""A data loader that measures the time spent waiting for batches."""

import sys
import time
from collections.abc import Iterator

from torch.utils.data import DataLoader

from mobile_former.training.data.sampler import rank_and_world_size

# In Python 3.11 a forked worker can hang. After a broadcast, a thread of gloo frees its tensors and holds a lock of the
# interpreter for microseconds, or a few milliseconds on busy cores. A worker forked meanwhile waits for that lock
# without end (https://github.com/python/cpython/issues/112275, fixed in later releases of 3.11).
_FORK_MAY_HANG = sys.version_info < (3, 12)
_QUIET = 0.1  # seconds


class TimedLoader(DataLoader):
    """PyTorch's DataLoader that measures the time spent waiting for batches.

    The attribute ``waited`` is the total waiting time in seconds.
    """

    waited = 0.0

    def __iter__(self) -> Iterator:
        starts_workers = self.num_workers > 0 and self._iterator is None
        if starts_workers and _FORK_MAY_HANG and rank_and_world_size()[1] > 1:
            time.sleep(_QUIET)
        return _TimedIterator(self, super().__iter__())


class _TimedIterator:
    def __init__(self, loader: TimedLoader, batches: Iterator):
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._loader.waited += time.perf_counter() - start

    def __len__(self) -> int:
        return len(self._batches)
