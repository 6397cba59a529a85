"""Make damaged files in a separate process, and test the functions that read them."""

import logging
import multiprocessing
import os
import random
import resource
import shutil
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from experiments.fuzz import damage
from experiments.fuzz.readers import Kind, Reader
from mobile_former.errors import InputError

SECONDS = 20.0  # time limit of a reader for one file
GIGABYTES = 4.0  # memory limit; the largest image that is accepted takes 2.7 with transparency
LONGEST_MESSAGE = 5_000  # characters


class Worker:
    """A process that makes files and reads them. If a file crashes the process, a new one reads the next file.

    Args:
        kinds: dictionary from the name of a kind of file to the :class:`~experiments.fuzz.readers.Kind`.
        folder: folder for all files that the process writes.
    """

    def __init__(self, kinds: dict[str, Kind], folder: Path):
        self.kinds, self.folder = kinds, folder
        self.current = folder / "current"  # holds the current file
        self.process: multiprocessing.Process | None = None

    def read(self, kind: str, seed: str, seconds: float) -> Iterator[tuple[str, str]]:
        """Make a file, read it with each function under test (reader), and yield the defects.

        Args:
            kind: name of the kind of file.
            seed: seed of the file's random generator.
            seconds: time limit in seconds for each reader.

        Yields:
            Tuple (name of the reader, description of the defect).
        """
        if self.process is None:
            self._start()
        self.connection.send((kind, seed))
        reader = "the maker of files"
        while True:
            if not self.connection.poll(seconds):
                self.close()
                yield reader, f"took more than {seconds:g} s"
                return
            try:
                what, content = self.connection.recv()
            except EOFError:
                self.process.join()
                yield reader, f"ended the process with status {self.process.exitcode}"
                self.close()
                return
            if what == "reader":
                reader = content
            elif what == "defect":
                yield reader, content
            else:
                return

    def close(self) -> None:
        """End the process, if it is running."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def _start(self) -> None:
        # A forked process does not import the libraries again.
        context = multiprocessing.get_context("fork")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, self.kinds, self.folder), daemon=True)
        self.process.start()
        other_end.close()


def serve(connection: Connection, kinds: dict[str, Kind], folder: Path) -> None:
    """Make a file for each request on the connection, and read it with each function under test (reader) of its kind.

    This function runs in the worker's process.

    Args:
        connection: connection to the main process. A request is a tuple (name of the kind, seed). The replies are
            ``("reader", name)`` before a reader is called, ``("defect", message)`` for each defect found in a reader,
            and ``("done", None)`` after the last reader has returned.
        kinds: dictionary from the name of a kind of file to the :class:`~experiments.fuzz.readers.Kind`.
        folder: folder for all files that the process writes.
    """
    limit_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    logging.disable(logging.CRITICAL)
    workplace, current = folder / "workplace", folder / "current"
    workplace.mkdir(exist_ok=True)
    os.chdir(workplace)
    damage.write_coco_images(folder / "images")
    while True:
        name, seed = connection.recv()
        kind = kinds[name]
        file = kind.make(random.Random(seed))
        shutil.rmtree(current, ignore_errors=True)
        current.mkdir()
        path = current / file.name
        path.write_bytes(file.data)
        for reader, read in kind.readers.items():
            connection.send(("reader", reader))
            for defect in (attempt(read, path), too_much_memory(), code_that_ran()):
                if defect:
                    connection.send(("defect", defect))
        connection.send(("done", None))


def attempt(read: Reader, path: Path) -> str | None:
    """Read a file with ``read``, one of the functions under test, and check the outcome.

    The function must succeed, or report the failure in a message that is neither empty nor too long. It may return
    this message, or raise an error that the commands print in one line.

    Returns:
        A description of the defect if the function breaks these rules, otherwise None.
    """
    reset_peak()
    try:
        message = read(path)
    except (InputError, OSError, MisconfigurationException) as error:  # run_command prints these in one line
        message = str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"raised {type(error).__name__}: {str(error)[:300]!r} at {where}"
    if message is not None and not message.strip():
        return "failed without a message"
    if message is not None and len(message) > LONGEST_MESSAGE:
        return f"failed with a message of {len(message)} characters: {message[:100]!r}…"
    return None


def limit_memory() -> None:
    """Limit the address space of this process, so that a huge allocation fails instead of blocking the machine.

    The new limit is the current size of the address space, plus the memory limit ``GIGABYTES``, plus 2 GiB. Core dumps
    are disabled.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = int(pages * resource.getpagesize() + (GIGABYTES + 2) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reset_peak() -> None:
    """Reset the peak memory that Linux records for this process."""
    Path("/proc/self/clear_refs").write_text("5")


def too_much_memory() -> str | None:
    """Return an error message if the peak memory of this process exceeds the limit, otherwise None.

    The peak is measured since the last call of :func:`reset_peak`.
    """
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    return f"took {peak:.1f} GB of memory" if peak > GIGABYTES else None


def code_that_ran() -> str | None:
    """Return an error message if code from a hostile file was executed, otherwise None.

    Such code leaves a file, a folder or an environment variable named ``canary``. This function removes these traces.
    """
    canary = Path(damage.CANARY)
    variable, made = os.environ.pop(damage.CANARY, None), canary.exists()
    if canary.is_dir():
        canary.rmdir()
    canary.unlink(missing_ok=True)
    return "ran code from the file" if made or variable is not None else None
