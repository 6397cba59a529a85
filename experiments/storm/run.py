"""Options and processes of the tiny training runs in a storm, see :mod:`experiments.storm`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mobile_former.training.extras import import_extra
from mobile_former.training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
IMAGES = 48  # training images
INTERVAL = 3  # optimiser steps between checkpoints within an epoch
RATE = 1e-3
PATIENCE = 240  # seconds that a run has to start, take a step or end
_COMMON = (
    "--config", "finetune.yaml", "--model.learning_rate", str(RATE), "--model.warmup_epochs", "1",
    "--data.num_workers", "1", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1",
    "--trainer.log_every_n_steps", "1", "--checkpoint_every_n_steps", str(INTERVAL),
)  # fmt: skip
_TASKS = {
    "classification": (
        "--model.name", "mobile_former_26m", "--data.image_size", "32", "--model.dropout", "0.3",
        "--model.mixup_alpha", "0.2", "--model.ema_decay", "0.9",
    ),
    "detection": (
        "--model.name", "e2e_mf_26m", "--data.short_sides", "[64, 96]", "--data.short_side", "64",
        "--data.group_shapes", "false", "--trainer.gradient_clip_val", "1.0",
    ),
}  # fmt: skip
_SCONTROL = '#!/bin/sh\necho "$@" >> "$STORM_QUEUE"\n'


class Run:
    """A tiny run of one task.

    Args:
        task: "classification" or "detection".
        data: folder of the images.
        output: output folder of the storm.
        name: name of the run.
        processes: number of training processes.

    Attributes:
        batch: images per batch in each process. A restart can change it, as well as ``epochs`` and ``processes``.
        epochs: number of epochs.
        processes: number of training processes.
        segments: list of tuples (first step, steps per epoch, epochs), one for each start with other options.
        members: processes that the storm has started for this run. The first one has rank 0.
        kind: argument ``kind`` of the last call of :meth:`start`; empty before the first call.
    """

    def __init__(self, task: str, data: Path, output: Path, name: str, processes: int):
        self.task, self.data, self.output, self.name, self.processes = task, data, output, name, processes
        self.batch, self.epochs = 8 // processes, 4
        self.folder = RunFolder(output / "runs" / task / name)
        self.segments: list[tuple[int, int, int]] = []
        self.members: list[subprocess.Popen] = []  # the first one is the process of rank 0
        self.kind, self._started = "", 0.0
        self._output: list[str] = []
        self._readers: list[threading.Thread] = []

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps per epoch, given the current options of the run."""
        return IMAGES // self.processes // self.batch

    @property
    def steps(self) -> int:
        """Number of optimiser steps so far. ``metrics.csv`` has a row for each step."""
        with contextlib.suppress(ValueError):  # read while it is being written
            return 1 + max((int(row["step"]) for row in self.folder.history() if "lr" in row), default=-1)
        return 0

    @property
    def steps_since_start(self) -> int:
        """0 until the run has taken a step since it was last started. Then the value of :attr:`steps`."""
        table = self.folder.metrics_csv
        return self.steps if table.is_file() and table.stat().st_mtime > self._started else 0

    @property
    def ended(self) -> bool:
        """Whether the run is not running: its processes have ended, or its notebook's kernel has finished training."""
        result = self.folder.metrics_json
        trained = self.kind == "kernel" and result.is_file() and result.stat().st_mtime > self._started
        return trained or all(member.poll() is not None for member in self.members)

    def describe(self) -> str:
        """Return one line of text with the task, name, number of processes and last step of the run."""
        return f"{self.task} {self.name}, {self.processes} processes ({self.kind or 'new'}), step {self.steps}"

    def arguments(self) -> list[str]:
        """Return the arguments of the ``fit`` command. It resumes the run if there is a checkpoint."""
        strategy = ["--trainer.strategy", "ddp"] if self.processes > 1 else []
        return [
            *_COMMON, *_TASKS[self.task], *strategy, "--data.root", str(self.data), "--name", self.name,
            "--runs_folder", str(self.output / "runs"), "--data.batch_size", str(self.batch),
            "--trainer.devices", str(self.processes), "--trainer.max_epochs", str(self.epochs), "--ckpt_path", "auto",
        ]  # fmt: skip

    def start(self, kind: str = "plain") -> None:
        """Start the processes of the run.

        Args:
            kind: "plain": start one command, as a user does. "slurm": start one command for each process, as srun does.
                "kernel": train in the kernel of a notebook.
        """
        self.kind, self._output, self._readers, self._started = kind, [], [], time.time()
        command = [sys.executable, "-m", f"{self.task}.fit", *self.arguments()]
        if kind == "slurm":
            port = _free_port()
            self.members = [self._process(command, _job(rank, self.processes, port)) for rank in range(self.processes)]
        elif kind == "kernel":
            self._start_kernel()
        else:
            self.members = [self._process(command, {})]

    def second_start(self) -> tuple[int, str]:
        """Try to start the run a second time while it is running. The second start uses a single process.

        Return a tuple (exit status, output) of the second start.
        """
        twin = Run(self.task, self.data, self.output, self.name, 1)
        twin.start()
        return twin.wait()

    def send(self, number: int, *, everyone: bool = True) -> None:
        """Send the signal ``number`` to all processes of the run or, if ``everyone`` is False, only to the first."""
        for member in self.members if everyone else self.members[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.pid, number) if everyone else os.kill(member.pid, number)

    def kill(self, kind: str | None = None) -> None:
        """Kill all processes of the run. If ``kind`` is given and the last start was of another kind, do nothing."""
        if kind in (None, self.kind):
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            for member in self.members:
                member.wait()

    def wait(self, patience: float = PATIENCE) -> tuple[int, str]:
        """Wait until all processes of the run have ended.

        Returns:
            A tuple (exit status of the first process, output of all processes).

        Raises:
            TimeoutError: a process is still alive after ``patience`` seconds.
        """
        end = time.monotonic() + patience
        while any(member.poll() is None or _group_lives(member) for member in self.members):
            if time.monotonic() > end:
                raise TimeoutError(f"a process of the run is still alive after {patience} s")
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(10)
        return self.members[0].returncode, "".join(self._output)

    def queued(self) -> list[str]:
        """Return a list with the arguments of each call of the script that replaces SLURM's program scontrol."""
        path = self.output / "scontrol.txt"
        return path.read_text().splitlines() if path.is_file() else []

    def _process(self, command: list[str], more: dict[str, str]) -> subprocess.Popen:
        programs = self.output / "bin"
        if not programs.is_dir():
            programs.mkdir(parents=True)
            (programs / "scontrol").write_text(_SCONTROL)
            (programs / "scontrol").chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "STORM_QUEUE": str(self.output / "scontrol.txt"),
        }
        process = subprocess.Popen(
            command,
            cwd=self.output,
            env=environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        reader = threading.Thread(target=lambda: self._output.append(process.stdout.read()), daemon=True)
        reader.start()
        self._readers.append(reader)
        return process

    def _start_kernel(self) -> None:
        jupyter = import_extra("jupyter_client", "dev", "an event of the storm is a notebook")
        path = self.output / "kernel.json"
        path.unlink(missing_ok=True)
        jupyter.connect.write_connection_file(str(path))
        process = self._process([sys.executable, "-m", "ipykernel_launcher", "-f", str(path)], {})
        self.members = [process]
        client = jupyter.BlockingKernelClient(connection_file=str(path))
        client.load_connection_file()
        client.start_channels()
        try:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    client.wait_for_ready(timeout=PATIENCE)
                    break
                except RuntimeError as error:  # raised for a dead kernel, but also for one that starts slowly
                    if process.poll() is not None or time.monotonic() > end:
                        raise TimeoutError(f"the kernel does not start: {error}") from error
                    time.sleep(0.5)
            code = f"import sys; sys.argv = {['fit', *self.arguments()]!r}\nfrom {self.task}.fit import main; main()"
            client.execute(code)
            time.sleep(1)  # time to send the message
        finally:
            client.stop_channels()


def _job(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return a dictionary of the environment variables that SLURM sets for one process of a job.

    Args:
        rank: index of the process.
        processes: number of processes in the job.
        port: port that the processes connect to.
    """
    job = {"JOB_ID": "100", "JOB_NAME": "storm", "NODELIST": "localhost", "NODEID": "0"}
    sizes = {"NTASKS": processes, "NTASKS_PER_NODE": processes, "PROCID": rank, "LOCALID": rank}
    variables = {f"SLURM_{name}": str(value) for name, value in {**job, **sizes}.items()}
    return variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def _group_lives(leader: subprocess.Popen) -> bool:
    """Return whether any process in the process group of ``leader`` is alive."""
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True
