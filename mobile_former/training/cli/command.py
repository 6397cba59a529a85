"""What every command shares: a parser that helps with misspelt options, and errors told without a traceback."""

import argparse
import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import torch
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from mobile_former.errors import InputError, nearest

LONGEST_MESSAGE = 2_000  # characters

_made_folders: list[Path] = []  # by require_writable, each after the one that it lies in


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main``; errors in what the user gave are printed in a line, and end it with status 1.

    Folders that :func:`require_writable` made for a command that fails are removed where they are still empty.
    """
    quieten()
    _made_folders.clear()
    try:
        try:
            main()
        except BaseException:  # SystemExit and KeyboardInterrupt too
            _remove_empty_folders()
            raise
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # whose threads may abort a process that just ends
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError, MisconfigurationException) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def require_writable(path: Path) -> None:
    """Make the folder of a file that will be written.

    Raises:
        InputError: a folder has the file's name, or its own folder cannot be made.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not os.path.lexists(folder)]
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)  # another process may have been first
            _made_folders.append(folder)
        path.parent.mkdir(exist_ok=True)  # fails where a file has its name
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror} at {error.filename}") from error
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file's name")


def parse_folder_and_limit(prog: str, description: str, *, contents: str, limited: str) -> argparse.Namespace:
    """Parse the command line of a command that writes embedded data.

    Args:
        prog: the command.
        description: what it does.
        contents: what it makes in the folder.
        limited: what ``--limit`` counts.

    Returns:
        ``folder``, and ``limit``, None where all is written.

    Raises:
        InputError: a limit below 1.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help=f"where to write {contents}")
    parser.add_argument("--limit", type=int, default=None, help=f"{limited} of each split, at most")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}: give at least 1")
    return arguments


def tell_unreadable(errors: Sequence[str], total: int) -> None:
    """Print what is wrong with images that could not be read, and how many of all they are; end with status 1 if any.

    Args:
        errors: a message for each of them.
        total: number of all images.
    """
    if errors:
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        print(f"error: {len(errors)} of {total} images could not be read", file=sys.stderr)
        sys.exit(1)


def console() -> Console:
    """Where tables are printed: in a pipe or file each row has one line, however long."""
    terminal = Console(soft_wrap=True)  # or titles would be broken at their tables' width
    return terminal if terminal.is_terminal else Console(width=100_000, soft_wrap=True)


class Parser(LightningArgumentParser):
    """A parser without abbreviations whose errors name the nearest valid options."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, and what was probably meant, without the list of a hundred options."""
        if not self.exit_on_error:
            super().error(message, ex)
        if len(message) > LONGEST_MESSAGE:  # jsonargparse quotes what it was given, however long
            message = f"{message[:LONGEST_MESSAGE]} …"
        print(f"error: {message}{self._suggestion(message)}", file=sys.stderr)
        print(f"all options: {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _suggestion(self, message: str) -> str:
        name = _unknown_option(message)
        if name is None:
            return ""
        options = [option for action in self._actions for option in action.option_strings if option[:2] == "--"]
        # `--max_epochs` means `--trainer.max_epochs`; of `--model.lr` the group is known, only its last part is not.
        group, _, leaf = name.removeprefix("--").rpartition(".")
        same_leaf = [option for option in options if option.rpartition(".")[2].removeprefix("--") == leaf]
        if same_leaf:
            return "\n" + nearest(name, same_leaf)
        in_group = [
            option.rpartition(".")[2] for option in options if group and option.rpartition(".")[0] == f"--{group}"
        ]
        if in_group:
            return "\n" + re.sub(r"'(\w+)'", rf"'--{group}.\1'", nearest(leaf, in_group))
        return "\n" + nearest(name, options)


def _unknown_option(message: str) -> str | None:
    """The option that a message of jsonargparse does not know, as one would type it, or None."""
    if found := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", message):
        return found[1]
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return f"--{found[1]}.{found[2]}"
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"--{found[1]}"
    return None


def _remove_empty_folders() -> None:
    while _made_folders:
        with contextlib.suppress(OSError):  # of one that holds something
            _made_folders.pop().rmdir()


def quieten(stream: TextIO | None = None) -> None:
    """Leave only those messages of the libraries that a user can act upon.

    Args:
        stream: where messages go; default: stderr. In a notebook, stdout shows them as other output.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=stream)
    for name in ("mobile_former", "classification", "detection"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Devices not used, and advertisements; the commands print a header of their own.
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the number of workers is chosen for the machine
        ".*number of training batches.*smaller than the logging interval.*",  # a small data set is no mistake
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own
        ".*dataloader is not resumable.*",  # the data's own samplers know where to go on
        ".*in eval mode at the start of training.*",  # a frozen backbone
        ".*loading a checkpoint outside the 'fit' stage.*",  # scoring a checkpoint that holds the average already
        "(?s).*does not round-trip.*",  # a tuple comes back as a list, which is taken as well
        ".*isinstance.treespec, LeafSpec.*",  # between torch's releases, out of a user's hands
    ):
        warnings.filterwarnings("ignore", message=message)
    # Lightning calls jsonargparse by its older names.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(pytorch_lightning|jsonargparse)\b.*")
