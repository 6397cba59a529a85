"""Options that the ``predict`` commands for classification and detection share."""

from collections.abc import Collection
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.parser import Parser


def add_predict_options(parser: Parser, task: str, *, output: str, batch_size: int, drawn: str) -> None:
    """Add the common options of the ``predict`` commands for classification and detection to ``parser``.

    The model is given as a checkpoint (``--ckpt_path``) or as an exported file (``--onnx``).

    Args:
        parser: parser of the command.
        task: ``"classification"`` or ``"detection"``.
        output: help text of ``--output``.
        batch_size: default of ``--batch_size``.
        drawn: noun for what is drawn on the images, such as "boxes", for the help text of ``--drawings``.
    """
    parser.add_argument(
        "images",
        type=str,
        nargs="+",
        help="images, folders of images, quoted globs, URLs of images, videos, or camera:0 for the first camera",
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="checkpoint, such as checkpoints/best.ckpt of a run"
    )
    parser.add_argument(
        "--onnx",
        type=Path | None,
        default=None,
        help=f"file written by {task}.export (float32 or int8), instead of --ckpt_path",
    )
    parser.add_argument("--output", type=Path | None, default=None, help=output)
    parser.add_argument(
        "--drawings", type=Path | None, default=None, help=f"folder for the images and videos with their {drawn}"
    )
    parser.add_argument("--batch_size", type=int, default=batch_size, help="number of images in a batch")
    parser.add_argument(
        "--max_frames", type=int | None, default=None, help="number of frames to read of a video or camera at most"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing except warnings and errors")
    parser.add_argument("--verbose", action="store_true", help="print a row for each image, of more than 20 images too")


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
    for name in ("batch_size", "max_frames"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"--{name} is {options[name]}: give at least 1")
    if options.quiet and options.verbose:
        raise InputError("--quiet and --verbose contradict each other: give one of them")
