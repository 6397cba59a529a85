"""Options that the ``predict`` commands for classification and detection share."""

from collections.abc import Collection
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.parser import Parser


def add_predict_options(parser: Parser, task: str, *, output: str, batch_size: int) -> None:
    """Add the common options of the ``predict`` commands for classification and detection to ``parser``.

    The model is given as a checkpoint (``--ckpt_path``) or as an exported file (``--onnx``).

    Args:
        parser: parser of the command.
        task: ``"classification"`` or ``"detection"``.
        output: help text of ``--output``.
        batch_size: default of ``--batch_size``.
    """
    parser.add_argument("images", type=str, nargs="+", help="images, folders, or quoted globs")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="checkpoint, such as checkpoints/best.ckpt of a run"
    )
    parser.add_argument(
        "--onnx", type=Path | None, default=None, help=f"file written by {task}.export, instead of --ckpt_path"
    )
    parser.add_argument("--output", type=Path | None, default=None, help=output)
    parser.add_argument("--batch_size", type=int, default=batch_size, help="number of images in a batch")


def check_predict_options(options: Namespace, suffixes: Collection[str]) -> None:
    """Check the options that :func:`add_predict_options` adds.

    Args:
        options: parsed options of the command.
        suffixes: valid suffixes of ``--output``.

    Raises:
        InputError: a value is invalid. Also raised if both or neither of ``--ckpt_path`` and ``--onnx`` are given.
    """
    if (options.ckpt_path is None) == (options.onnx is None):
        raise InputError(
            "give either --ckpt_path (checkpoints/best.ckpt of a run) or --onnx (a file written by export)"
        )
    if options.output and options.output.suffix not in suffixes:
        raise InputError(f"--output {options.output}: give a name that ends in {' or '.join(suffixes)}")
    if options.batch_size < 1:
        raise InputError(f"--batch_size is {options.batch_size}: give at least 1")
