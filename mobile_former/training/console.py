"""The rich console that the commands use to print tables."""

from rich.console import Console


def console() -> Console:
    """Return a rich console for printing tables.

    If the output is a pipe or a file, each table row is printed on one line without wrapping.
    """
    terminal = Console(soft_wrap=True)  # without it, titles would be wrapped at the width of their tables
    return terminal if terminal.is_terminal else Console(width=100_000, soft_wrap=True)
