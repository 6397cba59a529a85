"""``python -m classification.validate``: evaluate a checkpoint on the validation images."""

from functools import partial

from classification.evaluate import evaluate
from mobile_former.training.cli.command import run_command

main = partial(evaluate, "validate")

if __name__ == "__main__":
    run_command(main)
