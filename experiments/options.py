"""Options and configs of the commands that run trainings, :mod:`experiments.compare` and :mod:`experiments.sweep`."""

import argparse
import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest import mock

import yaml

from mobile_former.errors import InputError, first_line, nearest

TASKS = ("classification", "detection")
CONFIGS = Path(__file__).parent / "configs"
MACHINE_OPTIONS = ("data.root", "data.num_workers")  # can differ between the machines of a sweep


def trainings_parser(command: str, doc: str, *, config: str, each: str) -> argparse.ArgumentParser:
    """Build a parser with the options that the commands ``compare`` and ``sweep`` have in common.

    Its help text explains that all other options are passed to ``fit``.

    Args:
        command: ``"compare"`` or ``"sweep"``.
        doc: docstring of the command, whose first line describes it.
        config: help text of ``--config``.
        each: noun for one training in the help text, such as "run" or "trial".

    Raises:
        InputError: the system is Windows.
    """
    if sys.platform == "win32":
        raise InputError(f"{command} runs on Linux and macOS: on Windows, run this command in WSL")
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=doc.partition("\n")[0],
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
    if content["task"] not in TASKS:
        raise InputError(f"{path}: task is {content['task']!r}: {nearest(str(content['task']), TASKS)}")
    return {name: value for name, value in content.items() if value is not None}


def require_whole(name: str, value: object, least: int) -> None:
    """Raise :class:`InputError` if the value of the option ``name`` is not a whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")


def as_arguments(options: dict) -> list[str]:
    """Convert a dictionary of options to a list of command-line arguments, such as ``["--seed", "1"]``.

    Values that are not strings are converted to JSON.
    """
    words = []
    for option, value in options.items():
        words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def without_machine_options(arguments: Sequence[str]) -> list[str]:
    """Return a list of the arguments without options that may differ between the machines of a sweep."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in MACHINE_OPTIONS:
        parser.add_argument(f"--{option}", nargs="?")
    return parser.parse_known_args(arguments)[1]


def require_free_options(arguments: Sequence[str], own: Iterable[str]) -> None:
    """Check that the user gives no option of ``fit`` that the command ``compare`` or ``sweep`` sets itself.

    Args:
        arguments: command-line arguments for ``fit``.
        own: names of the options in the search space. The command sets their values for each trial.

    Raises:
        InputError: the arguments contain an option in ``own``, or an option for the folder, name, checkpoint or config
            of the run.
    """
    given = {word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")}
    for name in sorted(given & {*own, "name", "runs_folder", "ckpt_path", "config"}):
        raise InputError(f"--{name} is set by the sweep for each trial: remove it")


def require_options(task: str, arguments: Sequence[str]) -> None:
    """Check the arguments of a training with the task's ``fit`` parser. If one is invalid, print the error and exit."""
    words = [f"{task}.fit", *arguments, "--print_config"]
    try:
        with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"{task}.fit").main()
    except SystemExit as end:
        if end.code:  # fit has printed the error
            raise


def plain(label: str) -> str:
    """Convert a label to a folder name: lower case, with a hyphen for each sequence of special characters."""
    return re.sub(r"[^\w.]+", "-", label).strip("-.").lower() or "model"
