"""``python -m detection.test``: evaluate a checkpoint, print its COCO scores and write them to a folder."""

from functools import partial

from detection.evaluate import evaluate
from mobile_former.training.cli.command import run_command

main = partial(evaluate, "test")

if __name__ == "__main__":
    run_command(main)
