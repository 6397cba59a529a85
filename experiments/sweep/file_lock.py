"""File locks: only one process of the sweeps at a time may use a run's folder or write a report."""

import fcntl
from pathlib import Path
from typing import TextIO


class FolderInUseError(Exception):
    """Another process holds the lock of the run's folder."""


def locked(path: Path, *, wait: bool = False) -> TextIO:
    """Open a file and lock it for this process until the file is closed.

    Args:
        path: the lock file, created if missing.
        wait: whether to wait until another process releases the lock.

    Raises:
        FolderInUseError: another process holds the lock and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise FolderInUseError from None
    return file
