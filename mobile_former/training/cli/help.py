"""The ``--help`` of commands whose options come from the signatures and docstrings of classes.

``--help`` lists the options of this project. Options and classes of other libraries have separate help texts, called
topics. ``--help.trainer`` prints the options of Lightning's Trainer, ``--help.trainer.callbacks`` prints the list of
its callbacks, and ``--help.trainer.callbacks EarlyStopping`` prints the options of one callback.
"""

import inspect
import pkgutil
import re
import shutil
import textwrap
from argparse import Action
from collections.abc import Iterable, Sequence

from jsonargparse import DefaultHelpFormatter

_GROUP = "trainer"  # group of options that is a topic
_CLASSES = re.compile(r",? known subclasses: ([^)]*)")


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help formatter with three changes.

    It removes reStructuredText markup and never splits words. For an option whose value is a class, it names the topic
    ``--help.OPTION`` instead of listing all classes that the option accepts.
    """

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args, **kwargs) -> None:
        """Add the usage line. It leaves out options in a group, such as ``--model.name``, unless they are required."""
        shown = [action for action in actions if "." not in action.dest or action.required]
        super().add_usage(usage, shown, *args, **kwargs)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options, and remove the markup from its title, which comes from a class docstring."""
        super().start_section(heading and without_markup(heading))

    def add_argument(self, action: Action) -> None:
        """Add an option, unless its name ends in ``.help``. jsonargparse adds such options for the help on classes."""
        if not any(option.endswith(".help") for option in action.option_strings):
            super().add_argument(action)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        topic = action.option_strings[0].removeprefix("--") if action.option_strings else ""
        return _CLASSES.sub(f"; classes: --help.{topic}", text)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(without_markup(text), width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for part in text.splitlines() for line in self._split_lines(part, width))


def without_markup(text: str) -> str:
    """Remove reStructuredText markup and line breaks from a part of a docstring, and return the text."""
    text = re.sub(r":\w+:`~?([^`<]+?)(?: <[^`>]*>)?`", r"\1", text)  # roles such as :class:`x`
    text = re.sub(r"`([^`<]+?) <[^`>]*>`_+", r"\1", text)  # links
    text = re.sub(r"\.\. \w+::\s*", "", text)  # directives
    return " ".join(re.sub(r"`+([^`]+)`+_*", r"\1", text).split())


def topics(groups: Iterable[str], options: Iterable[str]) -> list[str]:
    """Return a list of the help topics of a parser, such as ``"trainer"`` and ``"trainer.callbacks"``.

    Args:
        groups: names of the groups of options.
        options: names of all options. If the value of an option is a class, jsonargparse adds a second option with the
            ending ``.help``.
    """
    classes = [option[2:].removesuffix(".help") for option in options if option.endswith(".help")]
    return [group for group in groups if group == _GROUP] + classes


def introduction(found: Sequence[str]) -> str:
    """Return the lines of the help that explain how to print the help on other topics.

    Args:
        found: output of :func:`topics`.

    Returns:
        The lines as one text. The text is empty if the first topic is not ``"trainer"``, because the parser then has no
        options of Lightning's Trainer.
    """
    lines = [f"Options of Lightning's Trainer, such as --{topic}.max_epochs: --help.{topic}" for topic in found[:1]]
    lines += [f"Classes for --{topic}: --help.{topic}" for topic in found[1:] if not topic.startswith(f"{_GROUP}.")]
    return "\n".join(lines if found[:1] == [_GROUP] else [])


def classes_of(formatter: HelpFormatter, action: Action) -> list[str]:
    """Return a list with the paths of the classes that an option accepts."""
    return _CLASSES.search(DefaultHelpFormatter._expand_help(formatter, action))[1].split(", ")


def list_classes(formatter: HelpFormatter, action: Action) -> str:
    """Return a text with one line for each class that an option accepts: path and beginning of the docstring.

    Args:
        formatter: formatter of the parser.
        action: the option.
    """
    width = shutil.get_terminal_size().columns
    lines = []
    for path in classes_of(formatter, action):
        # Base classes cannot be used, and fit adds its own callbacks and loggers itself.
        if path.startswith("mobile_former.") or path.rpartition(".")[2].startswith("Base"):
            continue
        described = (inspect.getdoc(pkgutil.resolve_name(path)) or "").split("\n\n")[0]
        room = max(20, width - max(45, len(path) + 1))
        lines.append(f"{path:<44} {textwrap.shorten(without_markup(described), room, placeholder=' …')}")
    return "\n".join(lines)
