"""The options that both tasks' export commands have."""

from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.command import Parser


def add_export_options(parser: Parser, *, output: str, data: str, check_images: int) -> None:
    """Add the common options to a command's own.

    Args:
        parser: the command's.
        output: what ``--output`` is for, but for its default.
        data: what ``--data.root`` names, but for its default.
        check_images: default of ``--check_images``.
    """
    parser.add_argument("--ckpt_path", required=True, help="a run's checkpoints/best.ckpt")
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help=f"{output}; default: model.onnx (int8: model_int8.onnx) in the run's folder",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images that the model takes at once")
    parser.add_argument("--dynamic_batch", type=bool, default=False, help="let it take any number at once")
    parser.add_argument("--int8", type=bool, default=False, help="compute convolutions and linears in 8-bit integers")
    parser.add_argument(
        "--calibration_images",
        type=str,
        nargs="+",
        default=None,
        help="images, folders or globs to find int8's ranges by; default: training images",
    )
    parser.add_argument(
        "--data.root", type=str | None, default=None, help=f"{data} to check on; default: that of training"
    )
    parser.add_argument(
        "--images", type=str, nargs="+", default=None, help="images, folders or globs to check on in its place"
    )
    parser.add_argument("--check_images", type=int, default=check_images, help="how many images to check on, at most")


def check_export_options(options: Namespace) -> None:
    """Refuse values of the common options that cannot be, or do not go together.

    Raises:
        InputError: there are such.
    """
    for name in ("batch_size", "check_images"):
        if options[name] < 1:
            raise InputError(f"--{name} is {options[name]}: give at least 1")
    if options.dynamic_batch and options.batch_size > 1:
        raise InputError("--batch_size fixes what --dynamic_batch leaves open: give one of the two")
    if options.calibration_images and not options.int8:
        raise InputError("--calibration_images goes with --int8 true: leave it out, or ask for int8")
