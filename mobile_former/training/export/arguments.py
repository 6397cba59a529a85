"""Options of the ``export`` commands. This module does not import PyTorch."""

from collections.abc import Iterable
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import folder_of
from mobile_former.training.cli.parser import Parser

# The file formats: ending, and name in the table that compares the file with PyTorch.
FORMATS = {
    ".onnx": "ONNX",
    ".pte": "ExecuTorch",
    ".pt2": "torch.export",
    ".tflite": "LiteRT",
    ".mlpackage": "Core ML, before the conversion",
}


def add_export_options(parser: Parser, *, output: str, data: str, check_images: int) -> None:
    """Add the common options of the ``export`` commands for classification and detection to ``parser``.

    Args:
        parser: parser of the command.
        output: beginning of the help text of ``--output``. The default is appended.
        data: beginning of the help text of ``--data.root``. The default is appended.
        check_images: default of ``--check_images``.
    """
    parser.add_argument("--ckpt_path", required=True, help="checkpoint, such as checkpoints/best.ckpt of a run")
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help=f"{output}; default: model.onnx (int8: model_int8.onnx) in the run folder",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="number of images per call")
    parser.add_argument("--dynamic_batch", type=bool, default=False, help="accept any number of images per call")
    parser.add_argument("--int8", type=bool, default=False, help="quantise convolutions and linears to 8-bit integers")
    parser.add_argument(
        "--calibration_images",
        type=str,
        nargs="+",
        default=None,
        help="images, folders or globs to compute the ranges of int8 from; default: training images",
    )
    parser.add_argument(
        "--data.root", type=str | None, default=None, help=f"{data} to check the file on; default: the data of training"
    )
    parser.add_argument(
        "--images",
        type=str,
        nargs="+",
        default=None,
        help="images, folders or globs to check the file on instead of --data.root",
    )
    parser.add_argument(
        "--check_images", type=int, default=check_images, help="maximum number of images to check the file on"
    )


def check_export_options(options: Namespace) -> None:
    """Check the options that :func:`add_export_options` adds.

    Raises:
        InputError: a value is out of range, or options contradict each other.
    """
    for name in ("batch_size", "check_images"):
        if options[name] < 1:
            raise InputError(f"--{name} is {options[name]}: give at least 1")
    if options.dynamic_batch and options.batch_size > 1:
        raise InputError("--batch_size fixes the batch size that --dynamic_batch leaves open: give one of them")
    if options.calibration_images and not options.int8:
        raise InputError("--calibration_images needs --int8 true: add that, or leave it out")


def output_path(options: Namespace) -> Path:
    """Return the path of ``--output``, or the default path if the option is not given.

    The default is ``model.onnx`` in the run folder of the checkpoint, or ``model_int8.onnx`` with ``--int8``.
    """
    return options.output or folder_of(options.ckpt_path) / ("model_int8.onnx" if options.int8 else "model.onnx")


def require_format(output: Path, options: Namespace, only_onnx: Iterable[str]) -> None:
    """Check that the ending of a file name is known, and that the options fit it.

    Args:
        output: path of the file.
        options: parsed options of the command.
        only_onnx: options that must be off for all formats except ONNX.

    Raises:
        InputError: the ending is unknown, or an option does not fit it.
    """
    if output.suffix not in FORMATS:
        *most, last = FORMATS
        raise InputError(f"--output {output}: give a name that ends in {', '.join(most)} or {last}")
    for name in only_onnx:
        if output.suffix != ".onnx" and options[name]:
            raise InputError(f"--{name} is only for ONNX files, but {output} is none: leave it out")
    if output.suffix == ".mlpackage" and (options.preprocessing or options.batch_size != 1):
        raise InputError(f"{output} takes one image and normalises it: leave out --preprocessing and --batch_size")
