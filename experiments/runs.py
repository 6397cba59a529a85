"""Helpers of the commands :mod:`experiments.compare` and :mod:`experiments.sweep`.

The helpers read configs, build the command lines of training runs, read logs, and format numbers.
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
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.folder import RunFolder

MACHINE_OPTIONS = ("data.root", "data.num_workers")  # may differ between the machines of a sweep
CONFIGS = Path(__file__).parent / "configs"
MODULES = {"classification": ClassificationModule, "detection": DetectionModule}
DATA = {"classification": ClassificationData, "detection": DetectionData}


@dataclass(frozen=True)
class Training:
    """One training run of a comparison or sweep.

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
        """The command line that starts the training, as a list of strings.

        The training resumes from its last checkpoint if there is one.
        """
        location = ["--runs_folder", str(self.folder.path.parent.parent), "--name", self.folder.path.name]
        return [sys.executable, "-m", f"{self.task}.fit", *self.arguments, *location, "--ckpt_path", "auto"]

    def require_same_options(self) -> None:
        """Check that an existing run was started with the same options, and record the options next to the log.

        Options that may differ between the machines of a sweep are not compared.

        Raises:
            InputError: the folder has a run with other options, or a run whose options are not recorded.
        """
        path = self.log.with_suffix(".json")
        if self.folder.path.is_dir():
            known = json.loads(path.read_text()) if path.is_file() else None
            if known is None or without_machine_options(known) != without_machine_options(self.arguments):
                origin = "outside a sweep" if known is None else f"with {shlex.join(known)}"
                raise InputError(f"{self.folder.path} was trained {origin}: delete it, or give another --output")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.arguments) + "\n")


def trainings_parser(command: str, purpose: str, *, config: str, each: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the commands ``compare`` and ``sweep`` have in common.

    Its help text explains that all other options are passed to ``fit``.

    Args:
        command: ``"compare"`` or ``"sweep"``.
        purpose: description of the command in one line.
        config: help text of ``--config``.
        each: noun for one training in the help text, such as "run" or "trial".
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=purpose,
        epilog=f"Any other option is passed to fit in every {each}, for example --data.root DIR.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help=config)
    parser.add_argument("--output", type=Path, default=None, help=f"folder (default: runs/{command}/<config's name>)")
    parser.add_argument(
        "--storage",
        help="the database that the workers share: sqlite:///FILE on one machine, postgresql://… or mysql://… on "
        "several (default: study.db in the output folder)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help=f"{each}s at a time on this machine; 0 only writes the report (default: 1)",
    )
    return parser


def find_config(path: Path) -> Path:
    """Return ``path`` if this file exists, and otherwise the file of the same name in ``experiments/configs``.

    Raises:
        FileNotFoundError: neither file exists.
    """
    for candidate in (path, CONFIGS / path.name):
        if candidate.is_file():
            return candidate
    names = sorted(own.name for own in CONFIGS.iterdir())
    raise FileNotFoundError(f"the config {path} does not exist: {nearest(path.name, names)}")


def read_config(path: Path, known: Sequence[str], required: Sequence[str], what: str) -> dict:
    """Read a YAML config file whose top level is a mapping.

    Args:
        path: path of the file.
        known: names of the allowed keys.
        required: names of the required keys.
        what: type of the config for error messages, such as "comparison".

    Returns:
        A dictionary without the keys whose value is null. The value of ``task`` is "classification" or "detection".

    Raises:
        InputError: the file is not YAML, lacks a required key, has a key that is not allowed, or names an unknown task.
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
    """Convert a dictionary of options to a list of command-line arguments, such as ``["--seed", "1"]``.

    Values that are not strings are converted to JSON.
    """
    words = []
    for option, value in options.items():
        words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def plain(label: str) -> str:
    """Turn a label into a folder name: in lower case, with a hyphen instead of each group of special characters."""
    return re.sub(r"[^\w.]+", "-", label).strip("-.").lower() or "model"


def without_machine_options(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments without the options that may differ between the machines of a sweep."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in MACHINE_OPTIONS:
        parser.add_argument(f"--{option}", nargs="?")
    return parser.parse_known_args(arguments)[1]


def last_error(log: Path) -> str:
    """Return the last error line of the last attempt in a log.

    If the attempt has no error line, return its last line.

    Args:
        log: path of the file with the output of one or several attempts to train. Each attempt starts with a line ``$
            command``. Bytes that are not UTF-8 are replaced.
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


def trained_model(training: Training) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a tuple of the module in a run's best checkpoint, and a validation image of its size ``(1, 3, H, W)``."""
    module, data_options = load_checkpoint(training.folder.best, MODULES[training.task], training.task)
    return module, validation_image(training.task, data_options)


def as_table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table of rows, each a dictionary from a column to a cell. A row may lack columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def in_units(count: int) -> str:
    """Return a count as text in millions (M), or in billions (G) from one billion up."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean of the values as text. For several values, the text also has their standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.4f}"
