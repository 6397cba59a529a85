"""A loader that knows how long it was waited for, and starts its workers in a quiet moment."""

import sys
import time
from collections.abc import Iterator

from torch.utils.data import DataLoader

from mobile_former.training.data.sampler import rank_and_world_size

# Python 3.11 may lose a worker that is forked while a thread of gloo's drops the tensors of a broadcast that has just
# ended: that takes a lock of the interpreter's, which the worker then waits for, for good
# (https://github.com/python/cpython/issues/112275; later 3.11s have it mended). Such a thread needs microseconds, or a
# few milliseconds where the cores are busy.
_FORK_MAY_HANG = sys.version_info < (3, 12)
_QUIET = 0.1  # seconds


class TimedLoader(DataLoader):
    """PyTorch's, with ``waited``: the seconds in which batches were asked for and not yet there."""

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
