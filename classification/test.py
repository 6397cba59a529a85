"""``python -m classification.test``: score a checkpoint on the test images, in total and per class."""

from functools import partial

from classification.evaluate import evaluate
from mobile_former.training.cli.command import run_command

main = partial(evaluate, "test")

if __name__ == "__main__":
    run_command(main)
