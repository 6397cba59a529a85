"""``python -m detection.test``: score a checkpoint, class by class, and keep its detections."""

from detection.evaluate import evaluate
from mobile_former.training.cli.command import run_command


def main() -> None:
    """Score by the command line's options."""
    evaluate("test")


if __name__ == "__main__":
    run_command(main)
