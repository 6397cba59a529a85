"""Helpers of :mod:`experiments.compare` and :mod:`experiments.sweep`.

The helpers read configs, build the command lines of trainings, read logs, and format numbers.
"""

import argparse
import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from detection.data.batch import pad
from detection.data.module import DetectionData
from detection.module import DetectionModule
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.data.images import normalise
from mobile_former.training.run.folder import RunFolder

CONFIGS = Path(__file__).parent / "configs"
MODULES = {"classification": ClassificationModule, "detection": DetectionModule}
DATA = {"classification": ClassificationData, "detection": DetectionData}


@dataclass(frozen=True)
class Training:
    """One training run of a comparison or sweep.

    Attributes:
        task: "classification" or "detection".
        folder: the folder of the run.
        arguments: the arguments of the task's ``fit`` command, except those that give the folder.
        log: the file for the training's output.
    """

    task: str
    folder: RunFolder
    arguments: list[str]
    log: Path

    @property
    def command(self) -> list[str]:
        """The command that trains, or resumes from the last checkpoint if there is one."""
        location = ["--runs_folder", str(self.folder.path.parent.parent), "--name", self.folder.path.name]
        return [sys.executable, "-m", f"{self.task}.fit", *self.arguments, *location, "--ckpt_path", "auto"]


def trainings_parser(command: str, purpose: str, *, config: str, each: str) -> argparse.ArgumentParser:
    """Return a parser with the options that ``compare`` and ``sweep`` share. Any other option is passed to ``fit``.

    Args:
        command: ``"compare"`` or ``"sweep"``.
        purpose: the command's description in one line.
        config: the help text of ``--config``.
        each: the word for one training in the command's help text.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=purpose,
        epilog=f"Any other option is passed to fit in every {each}, for example --data.root DIR.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help=config)
    parser.add_argument("--output", type=Path, default=None, help=f"folder (default: runs/{command}/<config's name>)")
    return parser


def find_config(path: Path) -> Path:
    """Return the path of a config: the file itself, or the file of that name in ``experiments/configs``.

    Raises:
        FileNotFoundError: neither file exists.
    """
    for candidate in (path, CONFIGS / path.name):
        if candidate.is_file():
            return candidate
    names = sorted(own.name for own in CONFIGS.iterdir())
    raise FileNotFoundError(f"the config {path} does not exist: {nearest(path.name, names)}")


def read_config(path: Path, known: Sequence[str], required: Sequence[str], what: str) -> dict:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.
        known: the names of entries that are allowed.
        required: the names of entries that must be given.
        what: the kind of config, for error messages.

    Returns:
        The entries that are not null. ``task`` is one of the tasks.

    Raises:
        InputError: the file is not YAML, lacks a required entry, has an entry that is not allowed, or names an
            unknown task.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the config of a {what}: give a mapping with entries from {', '.join(known)}")
    for name in content:
        if name not in known:
            raise InputError(f"{path}: {name!r} is not known: {nearest(str(name), known)}")
    if missing := [name for name in required if not content.get(name)]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if content["task"] not in MODULES:
        raise InputError(f"{path}: task is {content['task']!r}: {nearest(str(content['task']), MODULES)}")
    return {name: value for name, value in content.items() if value is not None}


def as_arguments(options: dict) -> list[str]:
    """Return options as words of a command line: ``--option value``. Values that are not strings become JSON."""
    words = []
    for option, value in options.items():
        words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def plain(label: str) -> str:
    """Turn a label into the name of a folder: in lower case, with a hyphen instead of special characters."""
    return re.sub(r"[^\w.]+", "-", label).strip("-.").lower() or "model"


def require_same_options(trainings: Sequence[Training], path: Path) -> None:
    """Check that each existing run was started with the same ``fit`` arguments as now. Then record all arguments.

    A run that is not in the file passes the check.

    Args:
        trainings: the trainings to check and record.
        path: the JSON file that keeps the ``fit`` arguments of each run. It is created or updated.

    Raises:
        InputError: a run exists, but was started with other arguments.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    for training in trainings:
        name = training.folder.path.name
        if training.folder.path.is_dir() and known.get(name, training.arguments) != training.arguments:
            raise InputError(
                f"{training.folder.path} was trained with {shlex.join(known[name])}, but the options are now "
                f"{shlex.join(training.arguments)}: give another --output, or delete that folder"
            )
        known[name] = training.arguments
    path.write_text(json.dumps(known, indent=2) + "\n")


def last_error(log: Path) -> str:
    """Return the last error line of the last attempt in a log. Without an error line, return the attempt's last line.

    Args:
        log: the output of one or several attempts to train. Each attempt starts with a line ``$ command``. Bytes that
            are not UTF-8 are replaced.
    """
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines, start=1) if line.startswith("$ ")), default=0)
    lines = lines[start:] or ["it ended without any output"]
    return next((line for line in reversed(lines) if re.match(r"(error|\w+Error|\w+Exception)\b", line)), lines[-1])


def validation_image(task: str, data_options: dict) -> torch.Tensor:
    """Return the first validation image as a normalised batch ``(1, 3, H, W)``, in the model's input size."""
    data = DATA[task](**data_options)
    data.setup("validate")
    image = data.val_set[0]["image"]
    batch = pad([image])[0] if task == "detection" else image[None]
    return normalise(batch, data_options["mean"], data_options["std"])


def in_units(count: int) -> str:
    """Format a count in millions (M). From one billion, format it in billions (G)."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean of values. If there are several values, add their standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.4f}"
