"""Console that prints the tables of the commands."""

from rich.console import Console


def console() -> Console:
    """Return the console for tables. In a pipe or file each row keeps one line, however long it is."""
    terminal = Console(soft_wrap=True)  # without it, titles would be wrapped at the width of their tables
    return terminal if terminal.is_terminal else Console(width=100_000, soft_wrap=True)
