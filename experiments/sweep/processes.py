"""Start, identify and end the processes of workers and trainings."""

import contextlib
import ctypes
import functools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from experiments.runs import Training

PATIENCE = 60  # seconds that a training has to save its checkpoint after SIGTERM


def start_training(training: Training, count: int, lock: TextIO) -> subprocess.Popen:
    """Start a training in its own process.

    On Linux, the training is killed with its worker. On other systems, the training may outlive its worker. The
    training inherits the lock, so the folder of the run stays locked until the training ends.

    Args:
        training: the training to start.
        count: the number of trainings that share the processor cores.
        lock: the lock file of the run's folder.
    """
    environment = dict(os.environ)
    if count > 1:  # otherwise every training would use all cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
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
    """Ask the kernel to kill this new process when its parent dies; exit at once if the parent is already dead."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def stop_trainings(processes: Sequence[subprocess.Popen]) -> None:
    """Let trainings save a last checkpoint and end; kill trainings that take longer than :data:`PATIENCE`."""
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
    """Return the name of this machine and, on Linux, of the PID namespace (container).

    Process ids can be compared only between processes with the same host.
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
    """Get the result of :func:`process_identity` from ``ps``, on systems without ``/proc`` such as macOS."""
    # The start time is text that depends on language and time zone.
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    state, _, started = answer.stdout.strip().partition(" ")
    return f"{pid} {started.strip()}" if state and state[0] not in "ZX" else ""


def lives(identity: str) -> bool:
    """Whether the process with this identity is running."""
    return bool(identity) and process_identity(int(identity.split()[0])) == identity


def end_process(identity: str) -> None:
    """Kill the process with this identity, if it is running, and wait for its end."""
    while lives(identity):
        with contextlib.suppress(ProcessLookupError):  # it may end by itself in between
            os.kill(int(identity.split()[0]), 9)  # checkpoints are written atomically
        time.sleep(0.05)
