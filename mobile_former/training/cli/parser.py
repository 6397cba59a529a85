"""Command-line parser whose errors suggest the nearest valid option."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._common import parser_context

from mobile_former.errors import InputError, nearest
from mobile_former.training.cli.help import HelpFormatter, classes_of, introduction, list_classes, topics

LONGEST_MESSAGE = 2_000  # characters; jsonargparse quotes values in full


class Parser(ArgumentParser):
    """jsonargparse's parser with short error messages that suggest the nearest option.

    Abbreviated options are not accepted. Neither this module nor jsonargparse imports PyTorch, so that commands print
    their help at once.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def set_help(self, option: str, text: str) -> None:
        """Replace the help text of ``option``. Used for options that another library has added to the parser."""
        self._options[option].help = text

    def parse_args(self, args: Sequence[str] | None = None, **kwargs) -> Namespace:
        """Parse the command line. ``--help.TOPIC [NAME]`` prints the help on a topic and exits, see :mod:`.help`."""
        arguments = list(sys.argv[1:] if args is None else args)
        for position, argument in enumerate(arguments):
            if argument.startswith("--help."):
                topic, _, name = argument.removeprefix("--help.").partition("=")
                self._print_topic(topic, [name] if name else arguments[position + 1 : position + 2])
                self.exit()
        return super().parse_args(args, **kwargs)

    def format_help(self, *args) -> str:
        """Return the help text. It describes the options of this project, and how to print other topics."""
        groups, description = self._action_groups, self.description
        others = (self.groups or {}).get("trainer")
        self._action_groups = [group for group in groups if group not in (others, self._links)]
        if lines := introduction(self._topics):
            self.description = f"{description}\n\n{lines}\n"
        try:
            return super().format_help(*args)
        finally:
            self._action_groups, self.description = groups, description

    @property
    def _links(self) -> object:
        """Argument group of the linked arguments, or None if there are none.

        The values of linked arguments are copied from other arguments, so users cannot set them.
        """
        return next((group for group in self._action_groups if group.title == "Linked arguments"), None)

    @property
    def _options(self) -> dict[str, argparse.Action]:
        return {option: action for action in self._actions for option in action.option_strings if option[:2] == "--"}

    @property
    def _topics(self) -> list[str]:
        return topics(self.groups or {}, self._options)

    def _print_topic(self, topic: str, name: Sequence[str]) -> None:
        if topic not in self._topics:
            self.error(f"no help on {topic}: {nearest(topic, self._topics)}")
        option = self._options.get(f"--{topic}")
        classes = f"--{topic}.help" in self._options
        if classes and name and not name[0].startswith("-"):
            super().parse_args([f"--{topic}.help", name[0]])  # prints and exits
        with parser_context(parent_parser=self):
            formatter = self._get_formatter()
            actions = [option] if classes else self.groups[topic]._group_actions
            formatter.start_section(f"options of --{topic}")
            formatter.add_arguments(actions)
            formatter.end_section()
            print(formatter.format_help())
            if classes:
                print(f"classes; the options of one: --help.{topic} NAME\n{list_classes(formatter, option)}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print an error message and a suggestion, and exit with status 2.

        Unlike argparse, this method does not print the list of all options.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        message = self._unknown_class(message) or message
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} …"
        print(f"error: {message}{self._suggestion(message)}", file=sys.stderr)
        print(f"all options: {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _unknown_class(self, message: str) -> str | None:
        """Return an error message in one line if ``message`` is about an unknown class, otherwise None."""
        found = re.search(
            r'Parser key "([\w.]+)":.*Expected a dot import path string: (\w+)$', message, re.DOTALL | re.M
        )
        if found is None or f"--{found[1]}.help" not in self._options:
            return None
        with parser_context(parent_parser=self):
            paths = classes_of(self._get_formatter(), self._options[f"--{found[1]}"])
        names = [path.rpartition(".")[2] for path in paths]
        return f"--{found[1]}: no class is named {found[2]!r}: {nearest(found[2], names)}"

    def _suggestion(self, message: str) -> str:
        """Return a line to append to an error message about an unknown option. It suggests a valid option.

        Return ``""`` if the message is about another error.
        """
        name = _unknown_option(message)
        if name is None:
            return ""
        options = list(self._options)
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
