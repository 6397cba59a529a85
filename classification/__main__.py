"""Lists the commands of classification: ``python -m classification``."""

from pathlib import Path

from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.commands import list_commands


def main() -> None:
    """Print the commands of the package with a line each."""
    list_commands("classification", Path(__file__).parent)


if __name__ == "__main__":
    run_command(main)
