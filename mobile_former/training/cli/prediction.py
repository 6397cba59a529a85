"""What both tasks' predict commands share: their common options."""

from collections.abc import Collection
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser


def add_predict_options(parser: Parser, task: str, *, output: str, batch_size: int) -> None:
    """Add the common options to a command's own: a trained model is a checkpoint, or a file of export in its place.

    Args:
        parser: the command's.
        task: name of the task.
        output: what ``--output`` is for.
        batch_size: default of ``--batch_size``.
    """
    parser.add_argument("images", type=str, nargs="+", help="images, folders, or quoted globs")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "--onnx", type=Path | None, default=None, help=f"a file of {task}.export, in place of --ckpt_path"
    )
    parser.add_argument("--output", type=Path | None, default=None, help=output)
    parser.add_argument("--batch_size", type=int, default=batch_size, help="images in a batch")


def check_predict_options(options: Namespace, suffixes: Collection[str]) -> None:
    """Refuse values of the common options that cannot be, or do not go together.

    Args:
        options: of the command.
        suffixes: those that ``--output`` may end in.

    Raises:
        InputError: there are such.
    """
    if (options.ckpt_path is None) == (options.onnx is None):
        raise InputError("give either --ckpt_path, a run's checkpoints/best.ckpt, or --onnx, a file of export")
    if options.output and options.output.suffix not in suffixes:
        raise InputError(f"--output {options.output}: give a name that ends in {' or '.join(suffixes)}")
    if options.batch_size < 1:
        raise InputError(f"--batch_size is {options.batch_size}: give at least 1")
