"""``python -m detection.validate``: evaluate a checkpoint and print its COCO scores."""

from functools import partial

from detection.evaluate import evaluate
from mobile_former.training.cli.command import run_command

main = partial(evaluate, "validate")

if __name__ == "__main__":
    run_command(main)
