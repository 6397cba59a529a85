"""Write files atomically: completely or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(
    path: Path, content: bytes | memoryview, *, kind: str = "", before_replace: Callable[[Path], None] | None = None
) -> None:
    """Write a file atomically: write a temporary file in the same folder, flush it to disk, and rename it to ``path``.

    Other processes see either the complete old file or the complete new one, even if this process or the machine
    stops during the write. The folder is created if it is missing.

    Args:
        path: path of the file.
        content: complete content of the file.
        kind: text before the path in error messages, such as ``"the checkpoint "``.
        before_replace: function that is called with the path of the flushed temporary file, before the rename; None to
            call nothing.

    Raises:
        OSError: the file cannot be written. An existing file stays unchanged.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before_replace is not None:
            before_replace(unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"cannot write {kind}{path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # an error above is the one to report
            unfinished.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Flush a directory to disk, so that a renamed file in it survives a crash of the machine.

    On systems that cannot flush a directory, the function does nothing.
    """
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
