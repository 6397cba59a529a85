"""What a user is told about input that cannot be used."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given from outside (an option, a file, an image) cannot be used.

    The message says what was given, where, and how to mend it. The commands print it without a traceback.
    """


def nearest(given: str, valid: Iterable[str]) -> str:
    """A closing phrase for an error about an unknown name.

    Returns ``"did you mean 'x' or 'y'?"`` where valid names resemble the given one, else the list of all of them.
    """
    valid = list(valid)
    close = [name for name in valid if given and name.startswith(given)][:3]
    close = close or difflib.get_close_matches(given, valid, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "choose from " + ", ".join(repr(name) for name in valid)


def first_line(error: BaseException, longest: int = 200) -> str:
    """First line of an exception's message that is not empty, cut to ``longest`` characters; else its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:longest]
