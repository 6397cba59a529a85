"""Functions that start, identify and end the processes of workers and trainings, and that lock files."""

import contextlib
import ctypes
import fcntl
import functools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from experiments.runs import Training
from mobile_former.training.processors import available_cores

PATIENCE = 60  # seconds that a training has to save its checkpoint after SIGTERM


class FolderInUseError(Exception):
    """Error: another process holds the lock of a run's folder."""


def locked(path: Path, *, wait: bool = False) -> TextIO:
    """Open a file, lock it for this process until the file is closed, and return the open file.

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


def start_training(training: Training, count: int, lock: TextIO) -> subprocess.Popen:
    """Start a training in its own process, and return the process.

    On Linux, the training is killed when its worker (the calling process) dies. On other systems, the training may
    outlive its worker. The training inherits the lock, so the folder of the run stays locked until the training ends.

    Args:
        training: the training to start.
        count: the number of trainings that run at the same time and share the processor cores.
        lock: the open lock file of the run's folder.
    """
    cores = available_cores() // count  # without this limit, every training would use all cores
    environment = {"OMP_NUM_THREADS": str(max(1, cores))} | os.environ if count > 1 else None
    with training.log.open("a") as log:
        log.write(f"$ {shlex.join(training.command)}\n")
        log.flush()
        return subprocess.Popen(
            training.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),  # the only trace of a training whose worker is killed before it is recorded
            start_new_session=True,  # Ctrl-C must reach the worker only
            preexec_fn=functools.partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
        )


def _die_with(parent: int) -> None:
    """Make Linux kill this process when its parent process dies. If the parent is already dead, exit at once."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def stop_trainings(processes: Iterable[subprocess.Popen | None]) -> None:
    """Ask trainings to save a last checkpoint and end, and wait for their end.

    A training that does not end within :data:`PATIENCE` seconds is killed.

    Args:
        processes: the processes of the trainings. Entries that are None are skipped.
    """
    processes = [process for process in processes if process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def host() -> str:
    """Return a name for this machine. On Linux, the name also contains the PID namespace of the container.

    The ids of two processes can be compared only if this function returns the same name in both processes.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int) -> str:
    """Return the id and start time of a process as text, or an empty string if no process with this id is running.

    The start time distinguishes the process from a later process with the same id.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
        return "" if fields[0] in "ZX" else f"{pid} {started}"
    except OSError:
        return "" if Path("/proc/self/stat").exists() else identity_from_ps(pid)


def identity_from_ps(pid: int) -> str:
    """Return the same as :func:`process_identity` on systems without ``/proc``, such as macOS.

    The start time of the process is read from the output of the command ``ps``.
    """
    # The start time is text that depends on language and time zone.
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    state, _, started = answer.stdout.strip().partition(" ")
    return f"{pid} {started.strip()}" if state and state[0] not in "ZX" else ""


def lives(identity: str) -> bool:
    """Return whether a process is still running.

    Args:
        identity: identity of the process, as returned by :func:`process_identity`.
    """
    return bool(identity) and process_identity(int(identity.split()[0])) == identity


def end_process(identity: str) -> None:
    """Kill a process and wait for its end. Do nothing if the process is not running.

    Args:
        identity: identity of the process, as returned by :func:`process_identity`.
    """
    while lives(identity):
        with contextlib.suppress(ProcessLookupError):  # it may end by itself in between
            os.kill(int(identity.split()[0]), 9)  # checkpoints are written atomically
        time.sleep(0.05)
