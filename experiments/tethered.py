"""Run a module that ends with the process that started it: ``python tethered.py LOCK RESULT MODULE ARGUMENTS…``.

The standard input must be a pipe that the other process keeps open. When that process ends, even by SIGKILL, this one
is killed. Only one process at a time has the file LOCK; others wait. If RESULT exists then, nothing is run.

The worker runs this file by its path, so that a training's start does not import the package twice.
"""

import fcntl
import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Wait for the lock, then run the module as ``python -m`` does."""
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    lock, result, *sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.exists(result):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def end_with_standard_input() -> None:
    """Kill this process when the standard input is closed. Checkpoints are written atomically."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
