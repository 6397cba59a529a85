"""Run a module in this process, and kill the process if its parent process ends.

Usage: ``python tethered.py LOCK RESULT MODULE ARGUMENTS…``

The standard input must be a pipe that the parent process keeps open. When the parent ends, even by SIGKILL, the pipe is
closed and this process kills itself. LOCK is the path of a file that this process locks first. Another process with the
same LOCK waits until the lock is free. RESULT is the path of a file that the module writes at its end. If RESULT exists
when the lock is obtained, the module is not run.

The worker of a sweep runs this file by its path, because ``python -m`` would also import the package ``experiments``.
"""

import fcntl
import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Lock the file LOCK. If the file RESULT does not exist, run MODULE as ``python -m`` does."""
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    lock, result, *sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.exists(result):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def end_with_standard_input() -> None:
    """Wait until the standard input is closed, then kill this process. To be run in a thread.

    No checkpoint is damaged, because checkpoints are written atomically.
    """
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
