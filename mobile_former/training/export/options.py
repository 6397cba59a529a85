"""Helpers of the ``export`` command for image selection, int8 quantisation and comparison table."""

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
from mobile_former.training.cli.command import require_writable
from mobile_former.training.data.dataset import ImageSource, ListedImages, indices_to_look_at
from mobile_former.training.data.images import expand
from mobile_former.training.data.module import ImageData
from mobile_former.training.export.onnx_file import count_nodes, quantise


@contextmanager
def folder_beside(output: Path) -> Iterator[Path]:
    """Context manager that creates a temporary folder next to an output file and yields the folder's path.

    A file can be written and checked in this folder, and then moved to its final path. The folder is deleted at the
    end.

    Raises:
        InputError: the folder of the output file cannot be created or written to.
    """
    if not (output.suffix == ".mlpackage" and (output / "Manifest.json").is_file()):  # a package is a folder
        require_writable(output)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


@dataclass(frozen=True)
class CheckImages:
    """Images on which an exported file is compared with PyTorch.

    Attributes:
        source: object that reads the images.
        labelled: whether ``source`` has labels.
        title: description of the images, shown in the comparison table.
    """

    source: ImageSource
    labelled: bool
    title: str


def images_to_check(
    options: Namespace, data: Callable[[], ImageData], embedded: Callable[[], ImageSource], kind: str
) -> CheckImages:
    """Choose and return the images on which an exported file is compared with PyTorch.

    The choice depends on the options:

    - If ``--images`` is given, these images are chosen.
    - If only ``--data.root`` is given, the validation images of this data set are chosen.
    - If neither is given, the validation images of the checkpoint's data set are chosen. If they are missing, embedded
      images are chosen, which are made from scikit-learn's digits and need no files.

    Args:
        options: parsed options of the command.
        data: function that builds the data module for ``--data.root``, or for the checkpoint's data set if the option
            is not given.
        embedded: function that builds the embedded images.
        kind: plural noun for the embedded images, shown in the comparison table.

    Raises:
        InputError: the images of ``--images`` or ``--data.root`` cannot be used.
        FileNotFoundError: the images of ``--images`` or ``--data.root`` do not exist.
    """
    if options.images:
        return CheckImages(ListedImages(expand(options.images)), False, "the images given")
    try:
        made = data()
        made.setup("validate")
    except (InputError, OSError):
        if options.data.root is not None:
            raise
        title = f"embedded {kind} (its own images are missing: give --data.root or --images)"
        return CheckImages(embedded(), False, title)
    return CheckImages(made.val_set.source, True, f"val of {made.dataset_name}")


def images_to_calibrate(options: Namespace, training: Callable[[], ImageSource]) -> ImageSource:
    """Choose and return the images from which the activation ranges for int8 are computed.

    These are the images of ``--calibration_images`` if the option is given, otherwise the training images.

    Args:
        options: parsed options of the command.
        training: function that returns the training images.

    Raises:
        InputError: a folder in ``--calibration_images`` has no images, or the training images are needed but missing.
        FileNotFoundError: a path or glob of ``--calibration_images`` matches nothing.
    """
    if options.calibration_images:
        return ListedImages(expand(options.calibration_images))
    try:
        return training()
    except (InputError, OSError) as error:
        raise InputError(
            f"--int8 needs images like those of training, which are missing ({error}): give some with "
            "--calibration_images"
        ) from error


def write_int8(
    path: Path, source: ImageSource, most: int, prepare: Callable[[np.ndarray], Iterable[list[np.ndarray]]]
) -> Path:
    """Write the int8 version of an ONNX file to the same folder, as ``model_int8.onnx``.

    Args:
        path: path of the float32 file.
        source: calibration images.
        most: maximum number of calibration images.
        prepare: function that preprocesses one image ``(H, W, 3)``. It returns an iterable over lists of input arrays,
            with one list for each run of the model.

    Returns:
        The path of the int8 file.
    """
    indices = indices_to_look_at(source, most)
    inputs = (batch for index in indices for batch in prepare(source.read(index)))
    target = path.with_name("model_int8.onnx")
    quantise(path, target, inputs, len(indices))
    return target


def add_size_rows(table: Table, paths: Sequence[Path]) -> None:
    """Add a row of file sizes in MB to the table that compares exported files with PyTorch.

    If all files are ONNX files, also add a row with the number of nodes in each graph. The PyTorch column stays empty,
    because the PyTorch model is not a file.
    """
    table.add_row("MB", "", *(f"{size / 1e6:.2f}" for size in map(file_size, paths)))
    if all(path.suffix == ".onnx" for path in paths):
        table.add_row("nodes", "", *(str(count_nodes(path)) for path in paths))


def file_size(path: Path) -> int:
    """Return the size of a file, or the total size of all files in a folder, in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def add_time_row(table: Table, times: Sequence[float]) -> None:
    """Add a row with the inference times per image to the table that compares exported files with PyTorch.

    Args:
        table: table to extend.
        times: time of PyTorch, followed by the time of each exported file, in milliseconds.
    """
    threads = torch.get_num_threads()
    table.add_row(f"ms an image ({threads} thread{'s' * (threads > 1)})", *(f"{time:.1f}" for time in times))
