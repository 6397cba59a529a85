"""A process that has imported the large libraries, and forks itself to run commands.

Importing PyTorch, Lightning and Albumentations takes five seconds of processor time, which is most of what a short
command needs. Here they are imported once for all commands of a test process. The modules of this project are not: each
command imports them as usual. Tests of what a command imports start their own Python.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Lightning comes first: the libraries after it change what its import of Torchmetrics finds.
LIBRARIES = (
    "pytorch_lightning",
    "albumentations",
    "sklearn.datasets",
    "matplotlib.figure",
    "rich.console",
    "pycocotools",
)


class Forks:
    """The process. It starts when it is first needed, and ends with the one that uses it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """Run ``python -m`` with the given words, and return its status and output, as :func:`subprocess.run` does."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            request = {"words": words, "cwd": cwd, "environment": {**environment}, "files": files}
            try:
                status, is_late = self._fork(json.dumps(request, default=str), timeout)
            except BaseException:  # a test that is stopped while it waits leaves an answer that no other may read
                self.process.kill()
                forks.cache_clear()
                raise
            output, errors = (file.read_text() for file in files)
        if is_late:
            raise subprocess.TimeoutExpired(words, timeout, output, errors)
        return subprocess.CompletedProcess(words, status, output, errors)

    def _fork(self, request: str, timeout: float) -> tuple[int, bool]:
        """Return the exit status of a command, and whether it was killed after the time limit."""
        print(request, file=self.process.stdin, flush=True)
        number = int(self.process.stdout.readline())
        late = threading.Event()

        def stop():
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(number, signal.SIGKILL)

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            return int(self.process.stdout.readline()), late.is_set()
        finally:
            timer.cancel()


@cache
def forks() -> Forks:
    """Return the process that all tests of this process share."""
    return Forks()


def serve() -> dict | None:
    """Fork a process for each request on standard input, and print its number and then its exit status.

    Returns:
        In a forked process, its request. In the first one, None at the end of standard input.
    """
    for line in sys.stdin:
        request = json.loads(line)
        number = os.fork()
        if not number:
            return request
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
    return None


def become(request: dict) -> None:
    """Make this process the one of a new command: its session, files, folder, environment and paths."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    targets = [os.open(file, os.O_WRONLY | os.O_CREAT) for file in request["files"]]
    for number, target in enumerate((nothing, *targets)):
        os.dup2(target, number)
        os.close(target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = os.environ.get("PYTHONPATH", "")
    # As `python -m` does: the current folder is the first entry, the second ones are those of PYTHONPATH.
    sys.path[:] = [os.getcwd(), *filter(None, paths.split(os.pathsep)), *sys.path]
    sys.argv = request["words"]


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    if request := serve():
        become(request)
        sys.modules.pop("tests")
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
