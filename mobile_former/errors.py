"""Errors about the user's input, and helpers for their messages."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An option, a file, an image or another input cannot be used.

    The message names the input and how to fix it. The commands print it without a traceback.
    """


def nearest(given: str, valid: Iterable[str]) -> str:
    """Return a hint to append to an error message about an unknown name.

    Args:
        given: the unknown name.
        valid: the valid names.

    Returns:
        ``"did you mean 'x' or 'y'?"`` if valid names resemble the given one, otherwise a list of all valid names.
    """
    valid = list(valid)
    close = [name for name in valid if given and name.startswith(given)][:3]
    close = close or difflib.get_close_matches(given, valid, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "choose from " + ", ".join(repr(name) for name in valid)


def first_line(error: BaseException, longest: int = 200) -> str:
    """Return the first non-empty line of an exception's message, or the name of its type if it has no message.

    Args:
        error: the exception.
        longest: maximum length of the line; the rest is cut off.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:longest]
