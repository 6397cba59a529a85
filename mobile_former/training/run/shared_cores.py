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
_TOLERATED = 0.5  # cores that other processes may use, beyond those that this process leaves free


class SharedCores(Callback):
    """Callback that makes PyTorch's threads wait passively while other processes use the same cores.

    The threads of GNU OpenMP, PyTorch's usual library on Linux, wait for their next work in a busy loop of some
    milliseconds. This is the fastest way if no other process needs the cores. Otherwise the loops of the processes take
    the cores from each other, and a step of a training can take 20 to 100 times as long. According to the manual of
    libgomp (``GOMP_SPINCOUNT``), the loops last only some microseconds while a process has more threads than cores.
    This callback adds idle threads for as long as other processes are busy. The operations still run on the same number
    of threads, so the results do not change.

    The callback does nothing on other systems, with one thread, or if the user has set ``OMP_WAIT_POLICY`` or
    ``GOMP_SPINCOUNT``.
    """

    def __init__(self):
        given = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        self.active = _STAT.is_file() and torch.get_num_threads() > 1 and not given
        self._last = cpu_times() if self.active else None
        self._release: threading.Event | None = None  # ends the additional threads

    @property
    def shares(self) -> bool:
        """Whether other processes were busy in the last measurement, so that threads wait passively."""
        return self._release is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure for the first time, since the creation of the callback."""
        self._measure()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Measure again if a second has passed."""
        self._measure()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure again if a second has passed."""
        self._measure()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Measure again if a second has passed."""
        self._measure()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the additional threads."""
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
    """Processor time that has been used on this machine since it was started.

    Attributes:
        clock: time of the measurement in seconds, on the monotonic clock.
        others: processor time in seconds of all processes except this one and its children.
    """

    clock: float
    others: float


def cpu_times() -> CpuTimes:
    """Measure the processor time that other processes have used."""
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
    """Run an operation on several threads, which OpenMP keeps until this thread ends, and wait for ``release``."""
    torch.zeros(2**20).add_(1)
    release.wait()
