"""A data loader that measures the time spent waiting for batches."""

import sys
import time
from collections.abc import Iterator

from torch.utils.data import DataLoader

from mobile_former.errors import InputError
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


def loader_error(error: Exception) -> InputError | None:
    """Return the error to report if a worker process of a data loader was killed or got no shared memory, else None.

    Args:
        error: an exception of the main process. It may come from any line: if a worker is killed, PyTorch raises an
            exception wherever the main process is at that moment.
    """
    reason = str(error).strip().rpartition("\n")[2]
    if "DataLoader worker" in str(error) and "</torch_" in reason:  # a batch, which the worker passes on in such a file
        return InputError(
            f"a process that loads images got no shared memory ({reason}): give more to the machine (docker run "
            "--shm-size 8g), or --data.num_workers 0"
        )
    if reason.startswith("DataLoader worker (pid"):
        return InputError(
            f"a process that loads images has ended ({reason}): if memory is short, give a smaller --data.num_workers"
        )
    return None


class _TimedIterator:
    def __init__(self, loader: TimedLoader, batches: Iterator):
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        start = time.perf_counter()
        try:
            return next(self._batches)
        except RuntimeError as error:
            if lost := loader_error(error):
                raise lost from error
            raise
        finally:
            self._loader.waited += time.perf_counter() - start

    def __len__(self) -> int:
        return len(self._batches)
