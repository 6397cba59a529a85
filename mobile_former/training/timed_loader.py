"""A loader that knows how long it was waited for."""

import time
from collections.abc import Iterator

from torch.utils.data import DataLoader


class TimedLoader(DataLoader):
    """PyTorch's, with ``waited``: the seconds in which batches were asked for and not yet there."""

    waited = 0.0

    def __iter__(self) -> Iterator:
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
