"""Run a module that ends with the process that started it: ``python tethered.py LOCK RESULT MODULE ARGUMENTS…``.

The standard input must be a pipe that the starting process keeps open. When the starting process ends, even by SIGKILL,
this process is killed. LOCK is a file that only one process at a time can lock. Other processes wait for it. RESULT is
a file that the module writes at its end. If RESULT exists when LOCK is obtained, the module is not run.

The worker of a sweep runs this file by its path. ``python -m`` would import the package an additional time.
"""

import fcntl
import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Lock the file LOCK, then run MODULE as ``python -m`` does, unless the file RESULT exists."""
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    lock, result, *sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.exists(result):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def end_with_standard_input() -> None:
    """Kill this process when its standard input is closed. No checkpoint is damaged, because writing is atomic."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
