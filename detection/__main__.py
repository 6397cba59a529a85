"""Print a list of the detection commands. Run it with ``python -m detection``."""

from pathlib import Path

from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.commands import list_commands


def main() -> None:
    """Print one line for each command of the package."""
    list_commands("detection", Path(__file__).parent)


if __name__ == "__main__":
    run_command(main)
