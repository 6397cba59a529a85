"""What both tasks' export commands share: options, images to check a file on, int8, and rows of the table."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from rich.table import Table

from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser, require_writable
from mobile_former.training.cli.evaluation import folder_of
from mobile_former.training.data.dataset import ImageSource, ListedImages, indices_to_look_at
from mobile_former.training.data.images import expand
from mobile_former.training.data.module import ImageData
from mobile_former.training.export.onnx_file import count_nodes, quantise


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


def output_path(options: Namespace) -> Path:
    """The file to write: that of ``--output``, or one in the run's folder."""
    return options.output or folder_of(options.ckpt_path) / ("model_int8.onnx" if options.int8 else "model.onnx")


@contextmanager
def folder_beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the file system of a file to write, in which that is made and tried before.

    Raises:
        InputError: the file cannot be written there.
    """
    require_writable(output)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


@dataclass(frozen=True)
class CheckImages:
    """Images to try a file on.

    Attributes:
        source: where they come from.
        labelled: whether it knows what is in them.
        title: what to call them.
    """

    source: ImageSource
    labelled: bool
    title: str


def images_to_check(
    options: Namespace, data: Callable[[], ImageData], embedded: Callable[[], ImageSource], kind: str
) -> CheckImages:
    """The images given, or those of validation; embedded ones where the latter are not there and were not asked for.

    Args:
        options: of the command.
        data: makes the checkpoint's data, or that of ``--data.root``.
        embedded: makes the images to take where there are no others.
        kind: what these are called.

    Raises:
        InputError: the images asked for cannot be used.
        FileNotFoundError: they are not there.
    """
    if options.images:
        return CheckImages(ListedImages(expand(options.images)), False, "the images given")
    try:
        made = data()
        made.setup("validate")
    except (InputError, OSError):
        if options.data.root is not None:
            raise
        title = f"embedded {kind} (not its own images: --data.root or --images says where)"
        return CheckImages(embedded(), False, title)
    return CheckImages(made.val_set.source, True, f"val of {made.dataset_name}")


def images_to_calibrate(options: Namespace, training: Callable[[], ImageSource]) -> ImageSource:
    """The images to find int8's ranges by: those given, or those of training.

    Args:
        options: of the command.
        training: reads where those of training lie.

    Raises:
        InputError: there are none.
    """
    if options.calibration_images:
        return ListedImages(expand(options.calibration_images))
    try:
        return training()
    except (InputError, OSError) as error:
        raise InputError(
            f"--int8 needs images like those of training, and these are not there ({error}): give some by "
            "--calibration_images"
        ) from error


def write_int8(
    path: Path, source: ImageSource, most: int, prepare: Callable[[np.ndarray], Iterable[list[np.ndarray]]]
) -> Path:
    """Write the int8 form of an ONNX file beside it.

    Args:
        path: the file.
        source: images to find the ranges by.
        most: how many of them, at most.
        prepare: makes inputs of the graph from an image ``(H, W, 3)``; where it takes several at once, each fills one.

    Returns:
        Where it lies.
    """
    indices = indices_to_look_at(source, most)
    inputs = (batch for index in indices for batch in prepare(source.read(index)))
    target = path.with_name("model_int8.onnx")
    quantise(path, target, inputs, len(indices))
    return target


def add_size_rows(table: Table, paths: Sequence[Path]) -> None:
    """Tell the files' sizes, and of ONNX their numbers of nodes, in columns after PyTorch's."""
    table.add_row("MB", "", *(f"{path.stat().st_size / 1e6:.2f}" for path in paths))
    if all(path.suffix == ".onnx" for path in paths):
        table.add_row("nodes", "", *(str(count_nodes(path)) for path in paths))


def add_time_row(table: Table, times: Sequence[float]) -> None:
    """Tell the milliseconds of an image, PyTorch's first."""
    threads = torch.get_num_threads()
    table.add_row(f"ms an image ({threads} thread{'s' * (threads > 1)})", *(f"{time:.1f}" for time in times))
