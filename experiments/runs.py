"""What comparisons and sweeps share: their configs read, trainings in processes of their own, figures as text."""

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
from mobile_former.errors import InputError, nearest
from mobile_former.training.data.images import normalise
from mobile_former.training.run.folder import RunFolder

CONFIGS = Path(__file__).parent / "configs"
MODULES = {"classification": ClassificationModule, "detection": DetectionModule}
DATA = {"classification": ClassificationData, "detection": DetectionData}


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        task: "classification" or "detection".
        folder: of the run.
        arguments: of the task's ``fit``, that tell what is trained.
        log: what it prints.
    """

    task: str
    folder: RunFolder
    arguments: list[str]
    log: Path

    @property
    def command(self) -> list[str]:
        """What trains, going on from the last checkpoint where there is one."""
        place = ["--runs_folder", str(self.folder.path.parent.parent), "--name", self.folder.path.name]
        return [sys.executable, "-m", f"{self.task}.fit", *self.arguments, *place, "--ckpt_path", "auto"]


def trainings_parser(command: str, purpose: str, *, config: str, each: str) -> argparse.ArgumentParser:
    """The options of a command that does many trainings, to which it adds its own; those it does not know are fit's.

    Args:
        command: ``"compare"`` or ``"sweep"``.
        purpose: what it is for, in a line.
        config: what ``--config`` is for.
        each: what it calls a training.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=purpose,
        epilog=f"Any other option goes to fit in every {each}, as --data.root DIR.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help=config)
    parser.add_argument("--output", type=Path, default=None, help=f"folder; default: runs/{command}/<config's name>")
    return parser


def find_config(path: Path) -> Path:
    """A config: the file itself, or the repository's own of that name.

    Raises:
        FileNotFoundError: there is neither.
    """
    for candidate in (path, CONFIGS / path.name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no config {path}: {nearest(path.name, sorted(own.name for own in CONFIGS.iterdir()))}")


def read_config(path: Path, known: Sequence[str], required: Sequence[str], what: str) -> dict:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.
        known: names that may stand there.
        required: names that have to.
        what: it is, for messages.

    Returns:
        The entries that are not null; ``task`` among them is one of the tasks.

    Raises:
        InputError: it is not such a file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no {what}: give {', '.join(known)}")
    for name in content:
        if name not in known:
            raise InputError(f"{path}: {name!r} is not known: {nearest(str(name), known)}")
    if missing := [name for name in required if not content.get(name)]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if content["task"] not in MODULES:
        raise InputError(f"{path}: task is {content['task']!r}: {nearest(str(content['task']), MODULES)}")
    return {name: value for name, value in content.items() if value is not None}


def as_arguments(options: dict) -> list[str]:
    """Options by name as words of a command line."""
    words = []
    for option, value in options.items():
        words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def plain(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^\w.]+", "-", label).strip("-.").lower() or "model"


def require_same_options(trainings: Sequence[Training], path: Path) -> None:
    """Keep the options of all trainings in a file, and refuse others for runs that are there already.

    Raises:
        InputError: a run was begun with other options.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    for training in trainings:
        name = training.folder.path.name
        if training.folder.path.is_dir() and known.get(name, training.arguments) != training.arguments:
            raise InputError(
                f"{training.folder.path} was trained with {shlex.join(known[name])}, and now "
                f"{shlex.join(training.arguments)} is asked for: give another --output, or delete that folder"
            )
        known[name] = training.arguments
    path.write_text(json.dumps(known, indent=2) + "\n")


def last_error(log: Path) -> str:
    """The last line that the log's last command wrote of an error, or else its last line at all.

    Args:
        log: of one or several attempts, each begun by a line ``$ command``; bytes that are no UTF-8 are replaced.
    """
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    begun = max((number for number, line in enumerate(lines, start=1) if line.startswith("$ ")), default=0)
    lines = lines[begun:] or ["it ended without a word"]
    return next((line for line in reversed(lines) if re.match(r"(error|\w+Error|\w+Exception)\b", line)), lines[-1])


def validation_image(task: str, data_options: dict) -> torch.Tensor:
    """The first validation image as a batch ``(1, 3, H, W)``, of the size in which the model sees it."""
    data = DATA[task](**data_options)
    data.setup("validate")
    image = data.val_set[0]["image"]
    batch = pad([image])[0] if task == "detection" else image[None]
    return normalise(batch, data_options["mean"], data_options["std"])


def in_units(count: int) -> str:
    """Millions, or billions from one on."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and where there are several values their standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.4f}"
