"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(
    path: Path, content: bytes | memoryview, *, kind: str = "", before_replace: Callable[[], None] | None = None
) -> None:
    """Write a file beside its place and move it there once the disk has it; its folder is made where it is missing.

    So whoever looks sees all of it or what was there before, whenever the process or the machine ends.

    Args:
        path: the file.
        content: all of it.
        kind: what messages call it, ahead of its path, such as ``"the checkpoint "``.
        before_replace: called once the disk has the content, and before what lay at the path is replaced.

    Raises:
        OSError: it cannot be written; what lay there before still does.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before_replace is not None:
            before_replace()
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # where its folder cannot be, the reason of that is told
            unfinished.unlink(missing_ok=True)
        raise OSError(f"cannot write {kind}{path}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Let the disk know the folder's new names too, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
