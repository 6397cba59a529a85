"""Callback that keeps PyTorch's idle threads from spinning while other processes need the cores."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

_STAT = Path("/proc/stat")  # Linux only
_INTERVAL = 1.0  # seconds between two measurements
_TOLERATED = 0.5  # other processes count as busy if they use this many cores more than PyTorch leaves free


class SharedCores(Callback):
    """Callback that makes PyTorch's threads wait passively while other processes use the same cores.

    PyTorch on Linux usually uses GNU OpenMP. Its threads wait for their next work in a busy loop of some milliseconds.
    This is the fastest way to wait if only one process uses the cores. If several processes use them, their busy loops
    slow each other down, and a training step can take 20 to 100 times as long. According to the manual of libgomp
    (``GOMP_SPINCOUNT``), a busy loop lasts only some microseconds if a process has more threads than cores. While other
    processes are busy, this callback therefore adds idle threads, so that the process has more threads than cores.
    PyTorch's operations still run on the same number of
    threads, so the results do not change.

    The callback does nothing if the system is not Linux, if PyTorch uses only one thread, or if the user has set
    ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``.
    """

    def __init__(self):
        given = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        self.active = _STAT.is_file() and torch.get_num_threads() > 1 and not given
        self._last = cpu_times() if self.active else None
        self._release: threading.Event | None = None  # ends the additional threads

    @property
    def shares(self) -> bool:
        """Whether other processes were busy in the last measurement.

        If so, this callback has added idle threads to this process. With more threads than cores, OpenMP's waiting
        threads sleep instead of running busy loops.
        """
        return self._release is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure how busy other processes have been since the callback was created."""
        self._measure()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Measure how busy other processes are, if the last measurement is at least a second old."""
        self._measure()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure how busy other processes are, if the last measurement is at least a second old."""
        self._measure()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure how busy other processes are, if the last measurement is at least a second old."""
        self._measure()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop all threads that this callback has started."""
        self._set(False)

    def _measure(self) -> None:
        if not self.active or time.monotonic() - self._last.clock < _INTERVAL:
            return
        now = cpu_times()
        others = now.others - self._last.others
        used = others / (now.clock - self._last.clock)
        self._last = now
        free = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
        self._set(used - free > _TOLERATED)

    def _set(self, shares: bool) -> None:
        if shares == self.shares:
            return
        if self._release:
            self._release.set()
            self._release = None
            return
        self._release = threading.Event()
        threading.Thread(target=_hold_threads, args=(self._release,), name="idle OpenMP threads", daemon=True).start()


class CpuTimes(NamedTuple):
    """Processor time that other processes have used since the machine was started.

    Attributes:
        clock: time of the measurement in seconds, on the monotonic clock.
        others: processor time in seconds of all processes except this one and its children.
    """

    clock: float
    others: float


def cpu_times() -> CpuTimes:
    """Return the processor time that other processes have used since the machine was started."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, irq, softirq = map(int, _STAT.read_text().split(maxsplit=8)[1:8])
    own = sum(os.times()[:4])  # with children that have ended
    for child in multiprocessing.active_children():  # loading processes
        try:
            own += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / tick
        except OSError:  # it has just ended
            continue
    return CpuTimes(time.monotonic(), (user + nice + system + irq + softirq) / tick - own)


def _hold_threads(release: threading.Event) -> None:
    """Make OpenMP create additional idle threads, and keep them until ``release`` is set.

    This function runs in a thread of its own, because OpenMP creates a team of threads for each thread that runs a
    parallel operation. When the function returns, its thread ends, and the team ends with it.
    """
    torch.zeros(2**20).add_(1)
    release.wait()
