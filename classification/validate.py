"""``python -m classification.validate``: score a checkpoint."""

from classification.evaluate import evaluate
from mobile_former.training.cli.command import run_command


def main() -> None:
    """Score by the command line's options."""
    evaluate("validate")


if __name__ == "__main__":
    run_command(main)
