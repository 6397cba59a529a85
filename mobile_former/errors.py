"""The exception for invalid user input, and functions that build parts of error messages."""

import difflib
import operator
from collections.abc import Iterable


class InputError(ValueError):
    """Exception for an option, a file, an image or another user input that cannot be used.

    The message names the input and explains how to fix it. The command-line programs print the message without a
    traceback.
    """


def nearest(given: str, valid: Iterable[str]) -> str:
    """Return a hint to append to an error message about an unknown name.

    Args:
        given: the unknown name.
        valid: the valid names.

    Returns:
        The text ``"did you mean 'x' or 'y'?"`` if valid names resemble the unknown one. Otherwise the text
        ``"choose from 'x', 'y', …"`` with all valid names.
    """
    valid = list(valid)
    close = [name for name in valid if given and name.startswith(given)][:3]
    if not close:
        close = difflib.get_close_matches(given, valid, n=3, cutoff=0.6)
        # Equally similar names come in any order: first those with the same characters at the same places.
        close.sort(key=lambda name: -sum(map(operator.eq, name, given)))
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "choose from " + ", ".join(repr(name) for name in valid)


def first_line(error: BaseException, longest: int = 200) -> str:
    """Return the first non-empty line of an exception's message.

    If the message is empty, the name of the exception's type is returned instead.

    Args:
        error: the exception.
        longest: maximum number of characters. A longer line is cut off.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:longest]
