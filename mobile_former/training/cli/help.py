"""The ``--help`` of commands whose options come from the signatures and docstrings of classes.

``--help`` lists the options of this project. Options and classes of other libraries have their own help texts, called
topics: ``--help.trainer`` lists the options of Lightning's Trainer, ``--help.trainer.callbacks`` its callbacks, and
``--help.trainer.callbacks EarlyStopping`` the options of one callback.
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
    """Formatter of jsonargparse that removes reStructuredText markup and lists of classes, and splits no words."""

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args, **kwargs) -> None:
        """Add the usage. An option in a group, such as ``--model.name``, is only shown if it is required."""
        shown = [action for action in actions if "." not in action.dest or action.required]
        super().add_usage(usage, shown, *args, **kwargs)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options. The title of a group is the beginning of a class docstring, without its markup."""
        super().start_section(heading and without_markup(heading))

    def add_argument(self, action: Action) -> None:
        """Add an option. Options that jsonargparse adds for the help on classes are left out, see :func:`topics`."""
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
    """Return a text of a docstring in one line, without the markup of reStructuredText."""
    text = re.sub(r":\w+:`~?([^`<]+?)(?: <[^`>]*>)?`", r"\1", text)  # roles such as :class:`x`
    text = re.sub(r"`([^`<]+?) <[^`>]*>`_+", r"\1", text)  # links
    text = re.sub(r"\.\. \w+::\s*", "", text)  # directives
    return " ".join(re.sub(r"`+([^`]+)`+_*", r"\1", text).split())


def topics(groups: Iterable[str], options: Iterable[str]) -> list[str]:
    """Return the topics of a parser, such as ``"trainer"`` and ``"trainer.callbacks"``.

    Args:
        groups: names of the groups of options.
        options: names of all options. If the value of an option is a class, there is a second option with the ending
            ``.help``.
    """
    classes = [option[2:].removesuffix(".help") for option in options if option.endswith(".help")]
    return [group for group in groups if group == _GROUP] + classes


def introduction(found: Sequence[str]) -> str:
    """Return the first lines of the help, which explain how to print the help on the topics ``found``.

    Return ``""`` if the topic of Lightning's Trainer is not the first one.
    """
    lines = [f"Options of Lightning's Trainer, such as --{topic}.max_epochs: --help.{topic}" for topic in found[:1]]
    lines += [f"Classes for --{topic}: --help.{topic}" for topic in found[1:] if not topic.startswith(f"{_GROUP}.")]
    return "\n".join(lines if found[:1] == [_GROUP] else [])


def list_classes(formatter: HelpFormatter, action: Action) -> str:
    """Return one line for each class that an option takes: its path and the beginning of its docstring.

    Args:
        formatter: formatter of the parser.
        action: the option.
    """
    width = shutil.get_terminal_size().columns
    lines = []
    for path in _CLASSES.search(DefaultHelpFormatter._expand_help(formatter, action))[1].split(", "):
        # Base classes cannot be used, and fit adds its own callbacks and loggers itself.
        if path.startswith("mobile_former.") or path.rpartition(".")[2].startswith("Base"):
            continue
        described = (inspect.getdoc(pkgutil.resolve_name(path)) or "").split("\n\n")[0]
        room = max(20, width - max(45, len(path) + 1))
        lines.append(f"{path:<44} {textwrap.shorten(without_markup(described), room, placeholder=' …')}")
    return "\n".join(lines)
