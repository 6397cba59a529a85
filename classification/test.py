"""``python -m classification.test``: evaluate a checkpoint on the test images.

The command computes the total accuracy and the accuracy of each class.
"""

from functools import partial

from classification.evaluate import evaluate
from mobile_former.training.cli.command import run_command

main = partial(evaluate, "test")

if __name__ == "__main__":
    run_command(main)
