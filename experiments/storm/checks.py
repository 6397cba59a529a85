"""Checks of a training run after each event of a storm (:mod:`experiments.storm`), and at the end of the run."""

import hashlib
import math
from pathlib import Path

import torch

from experiments.storm.run import RATE, Run
from mobile_former.errors import InputError
from mobile_former.weights.files import read_file

_STATE = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")


class LossError(AssertionError):
    """Exception for a failed check, such as a lost checkpoint or a changed file."""


def require(condition: bool, text: str) -> None:
    """Raise :class:`LossError` with the message ``text`` if ``condition`` is False."""
    if not condition:
        raise LossError(text)


def require_plain(status: int, output: str, expected: set[int]) -> None:
    """Check the exit status and the output of a command.

    The status must be in ``expected``. The output must have one line with an error message if the status is 1, and none
    otherwise. It must not have a traceback.
    """
    require(status in expected, f"status {status}, not one of {sorted(expected)}:\n{output}")
    require("Traceback" not in output, f"a traceback:\n{output}")
    # If a process of a run has ended, each other process prints a line of its own.
    errors = output.count("error: ") - output.count("error: another process of the run has ended")
    require(errors == (status == 1), f"not one line of error at status {status}:\n{output}")


def newest_step(run: Run) -> int:
    """Return the optimiser step of the newest undamaged checkpoint of a run, or 0 if there is none."""
    for path in filter(Path.is_file, (run.folder.last, run.folder.previous)):
        try:
            return read_file(path)["global_step"]
        except InputError:
            continue
    return 0


def require_recent_checkpoint(run: Run, done: int, interval: int) -> None:
    """Check that the newest undamaged checkpoint of a run is recent.

    Args:
        run: the run.
        done: number of steps in ``metrics.csv``.
        interval: maximum number of steps since the checkpoint. One more step is allowed, because the row of a step is
            written before its checkpoint.
    """
    kept = newest_step(run)
    # The row of a step is written before its checkpoint.
    require(done - kept <= interval + 1, f"{done} steps were done, but the newest checkpoint is from step {kept}")


def require_expected_steps(run: Run) -> None:
    """Check the steps, epochs and learning rates in the ``metrics.csv`` of a finished run.

    They must agree with the options in :attr:`Run.segments`.
    """
    rows = [row for row in run.folder.history() if "lr" in row]
    steps = [int(row["step"]) for row in rows]
    require(steps == list(range(len(steps))), f"steps in metrics.csv: {steps}")
    counts: dict[int, int] = {}
    for row in rows:
        epoch = int(row["epoch"])
        per_epoch, epochs = [segment[1:] for segment in run.segments if segment[0] <= row["step"]][-1]
        position, total = epoch * per_epoch + counts.get(epoch, 0), epochs * per_epoch
        # One epoch of warm-up, then half a cosine period
        expected = (position + 1) / per_epoch
        if position >= per_epoch:
            expected = 0.5 * (1 + math.cos(math.pi * (position - per_epoch) / (total - per_epoch)))
        found = f"the rate of step {row['step']:.0f} is {row['lr']}, not {RATE * expected}"
        require(math.isclose(row["lr"], RATE * expected, rel_tol=1e-6, abs_tol=1e-12), found)
        counts[epoch] = counts.get(epoch, 0) + 1
        complete = counts[epoch] == per_epoch
    require(complete, f"steps of each epoch: {counts}")
    require(sorted(counts) == list(range(run.epochs)), f"epochs in metrics.csv: {sorted(counts)}")


def state(run: Run) -> dict:
    """Return the training state in a run's last checkpoint as a dictionary: weights, optimiser, schedule and more."""
    content = read_file(run.folder.last)
    return {name: content[name] for name in _STATE if name in content}


def same(first: object, second: object) -> bool:
    """Return True if two training states are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def fingerprint(folder: Path) -> dict[str, str]:
    """Return a dictionary from the relative path of each file in a folder to the SHA-256 of its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
