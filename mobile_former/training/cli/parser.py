"""Command-line parser whose errors suggest the nearest valid option."""

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from mobile_former.errors import InputError, nearest

LONGEST_MESSAGE = 2_000  # characters; jsonargparse quotes values in full


class Parser(ArgumentParser):
    """jsonargparse's parser with short error messages that suggest the nearest option.

    Abbreviated options are not accepted. Neither this module nor jsonargparse imports PyTorch, so that commands print
    their help at once.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print an error message and a suggestion, and exit with status 2.

        Unlike argparse, this method does not print the list of all options.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} …"
        print(f"error: {message}{self._suggestion(message)}", file=sys.stderr)
        print(f"all options: {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _suggestion(self, message: str) -> str:
        """Return a line that suggests a valid option, for an error message about an unknown option.

        Return ``""`` if the message is about another error.
        """
        name = _unknown_option(message)
        if name is None:
            return ""
        options = [option for action in self._actions for option in action.option_strings if option[:2] == "--"]
        group, _, leaf = name.removeprefix("--").rpartition(".")
        # The option may lack its group or have a wrong one: --max_epochs is --trainer.max_epochs.
        same_leaf = [option for option in options if option.rpartition(".")[2].removeprefix("--") == leaf]
        if same_leaf:
            return "\n" + nearest(name, same_leaf)
        # The last part may be misspelt: --model.learning_rte is --model.learning_rate.
        in_group = [option.rpartition(".")[2] for option in options if option.rpartition(".")[0] == f"--{group}"]
        if in_group:
            return "\n" + re.sub(r"'(\w+)'", rf"'--{group}.\1'", nearest(leaf, in_group))
        return "\n" + nearest(name, options)


def parse_folder_and_limit(prog: str, description: str, *, contents: str, limited: str) -> argparse.Namespace:
    """Parse the command line of a command that writes an embedded data set to a folder.

    An embedded data set is made from scikit-learn's digits.

    Args:
        prog: name of the command.
        description: description of the command for ``--help``.
        contents: description of the files in the folder, for ``--help``.
        limited: plural noun for the items that ``--limit`` counts, for ``--help``.

    Returns:
        A namespace with the attributes ``folder`` and ``limit``. ``limit`` is None if the option is not given.

    Raises:
        InputError: the limit is below 1.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help=f"folder for {contents}")
    parser.add_argument("--limit", type=int, default=None, help=f"maximum number of {limited} in each split")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}: give at least 1")
    return arguments


def _unknown_option(message: str) -> str | None:
    """Return the name of the unknown option in an error message of jsonargparse, such as ``--group.name``.

    Return None if the message is about another error.
    """
    if found := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", message):
        return found[1]
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return f"--{found[1]}.{found[2]}"
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"--{found[1]}"
    return None
