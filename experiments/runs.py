"""Training runs of :mod:`experiments.compare` and :mod:`experiments.sweep`: their processes, logs and models."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from detection.data.batch import pad
from detection.data.module import DetectionData
from detection.module import DetectionModule
from experiments.options import without_machine_options
from mobile_former.errors import InputError, nearest
from mobile_former.training.data.images import normalise
from mobile_former.training.processors import available_cores
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.folder import RunFolder

MODULES = {"classification": ClassificationModule, "detection": DetectionModule}
DATA = {"classification": ClassificationData, "detection": DetectionData}
PATIENCE = 60  # seconds that a training has to write its checkpoint after SIGTERM
TETHERED = Path(__file__).with_name("tethered.py")


@dataclass(frozen=True)
class Training:
    """One training run of a comparison or sweep: its process and its results.

    Attributes:
        task: "classification" or "detection".
        folder: folder of the run.
        arguments: arguments of the task's ``fit`` command, except those that name the folder.
        log: path of the file for the output of the training.
    """

    task: str
    folder: RunFolder
    arguments: list[str]
    log: Path

    @property
    def command(self) -> list[str]:
        """List of strings: the command line that starts the training.

        The training resumes from its last checkpoint if there is one.
        """
        location = ["--runs_folder", str(self.folder.path.parent.parent), "--name", self.folder.path.name]
        return [sys.executable, "-m", f"{self.task}.fit", *self.arguments, *location, "--ckpt_path", "auto"]

    def require_same_options(self) -> None:
        """Check that an existing run has the same ``arguments``, then write them to a JSON file next to the log.

        Options that may differ between the machines of a sweep are not compared.

        Raises:
            InputError: the run was started with other arguments, or exists without such a file.
        """
        path = self.log.with_suffix(".json")
        if self.folder.path.is_dir():
            known = json.loads(path.read_text()) if path.is_file() else None
            if known is None or without_machine_options(known) != without_machine_options(self.arguments):
                origin = "outside a sweep" if known is None else f"with {shlex.join(known)}"
                raise InputError(f"{self.folder.path} was trained {origin}: delete it, or give another --output")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.arguments) + "\n")

    def start(self, count: int) -> subprocess.Popen:
        """Start and return a process that runs the training. It is killed when this process ends.

        Args:
            count: the number of trainings that run at the same time and share the processor cores.
        """
        cores = available_cores() // count  # without this limit, every training would use all cores
        # Without these variables, any task of a SLURM array can resume the training.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_ARRAY_")}
        if count > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
        tether = [sys.executable, str(TETHERED), str(self.log.with_suffix(".lock")), str(self.folder.metrics_json)]
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(self.command)}\n")
            log.flush()
            return subprocess.Popen(
                [*tether, *self.command[2:]],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C must not reach the training
            )

    def values(self, metric: str) -> dict[int, float]:
        """Return a dictionary from each epoch, counted from 1, to the value of ``metric`` in ``metrics.csv``."""
        return {int(row["epoch"]) + 1: row[metric] for row in self.folder.history() if metric in row}

    def score(self, metric: str, kind: str, direction: str) -> float:
        """Return the score or loss that rates the training: the value of ``metric`` in its best or last epoch.

        Args:
            metric: a column of ``metrics.csv``.
            kind: "best" for the best epoch, or "last" for the last one.
            direction: "maximize" or "minimize".

        Raises:
            InputError: there is no such column, or the value is not a number.
        """
        values = list(self.values(metric).values())
        if not values:
            columns = sorted({name for row in self.folder.history() for name in row if "/" in name})
            raise InputError(f"metric {metric!r} is not a column of metrics.csv: {nearest(metric, columns)}")
        if kind == "best":
            best = max if direction == "maximize" else min
            values = [best([value for value in values if not math.isnan(value)] or values)]
        if math.isnan(values[-1]):
            raise InputError(f"{metric} is not a number (NaN)")
        return values[-1]

    def test_scores(self) -> dict[str, float]:
        """Return the test scores of the best checkpoint, as a dictionary from name to value."""
        folder = self.folder.path / "test"
        if not (folder / "metrics.json").is_file():
            command = [f"{self.task}.test", "--ckpt_path", str(self.folder.best), "--output", str(folder)]
            subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
        return json.loads((folder / "metrics.json").read_text())

    def model(self) -> tuple[torch.nn.Module, torch.Tensor]:
        """Return a tuple (module of the best checkpoint, first validation image).

        The image is a normalised batch ``(1, 3, H, W)`` in the size that the model is evaluated with.
        """
        module, data_options = load_checkpoint(self.folder.best, MODULES[self.task], self.task)
        return module, validation_image(self.task, data_options)


def stop(process: subprocess.Popen) -> None:
    """Let a training write its last checkpoint and end. Kill it if it has not ended after :data:`PATIENCE` seconds."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdin.close()


def last_error(log: Path) -> str:
    """Return the last line with an error message from a training's log, as the reason why the training failed.

    Only the output of the last start is searched. If it has no error message, its last line is returned.

    Args:
        log: path of the log. It contains the output of each start of the training, preceded by a line ``$ command``.
            Bytes that are not UTF-8 are replaced.
    """
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines, start=1) if line.startswith("$ ")), default=0)
    lines = lines[start:] or ["it ended without any output"]
    return next((line for line in reversed(lines) if re.match(r"(error|\w+Error|\w+Exception)\b", line)), lines[-1])


def validation_image(task: str, data_options: dict) -> torch.Tensor:
    """Return the first validation image as a normalised batch ``(1, 3, H, W)``, resized for the model.

    Args:
        task: "classification" or "detection".
        data_options: options of the data module, from a checkpoint.
    """
    data = DATA[task](**data_options)
    data.setup("validate")
    image = data.val_set[0]["image"]
    batch = pad([image])[0] if task == "detection" else image[None]
    return normalise(batch, data_options["mean"], data_options["std"])
