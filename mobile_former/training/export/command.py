"""The ``export`` command of both tasks: write a model file, compare the file with PyTorch, move it into place."""

import os
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning import LightningModule

from mobile_former.training.console import console
from mobile_former.training.export.options import folder_beside, images_to_calibrate, images_to_check, write_int8


class Exporter:
    """Base class of a task's part of the ``export`` command.

    A subclass has the following methods:

    - ``data()``: build the data module for the data of the checkpoint, or for the folder ``--data.root`` if given;
    - ``training_images()``: read the list of training images;
    - ``embedded_images()``: build the embedded images (made of scikit-learn's digits), which are used if the images of
      the checkpoint are missing;
    - ``write(path)``: write the float32 file;
    - ``read(path)``: open a written file;
    - ``inputs(file, image)``: for an image ``(H, W, 3)`` uint8, yield lists of input arrays, one list per run
      of the file;
    - ``check(file, source)``: compare a file with PyTorch on the images of a source, raise InputError if the results
      differ, and return name and value of an additional table row, or None for no row;
    - ``compare(files, images)``: build the table that compares PyTorch and the files.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: options of the data module, from the same checkpoint.
        options: options of the command.

    Attributes:
        embedded_name: plural name of the embedded images, for messages.
        calibration_images: maximum number of images that the ranges of int8 are computed from.
    """

    embedded_name: str
    calibration_images: int

    def __init__(self, module: LightningModule, data_options: dict, options: Namespace):
        self.module, self.data_options, self.options = module, data_options, options


def export(exporter: Exporter, options: Namespace, output: Path) -> None:
    """Write a file to a temporary folder, check it, move it to its final place and print the comparison.

    Args:
        exporter: the task's part of the command.
        options: see :func:`mobile_former.training.export.options.add_export_options`.
        output: path of the file.

    Raises:
        InputError: images or files cannot be used, or the file differs from PyTorch. Then ``output`` is not written.
    """
    images = images_to_check(options, exporter.data, exporter.embedded_images, exporter.embedded_name)
    calibration = images_to_calibrate(options, exporter.training_images) if options.int8 else None
    with folder_beside(output) as folder:
        path = folder / f"model{output.suffix}"
        exporter.write(path)
        file = exporter.read(path)
        files = {"ExecuTorch" if output.suffix == ".pte" else "ONNX": file}
        row = exporter.check(file, images.source)
        if calibration is not None:
            path = write_int8(path, calibration, exporter.calibration_images, partial(exporter.inputs, file))
            files["ONNX int8"] = exporter.read(path)
        table = exporter.compare(files, images)
        if row:
            table.add_row(row[0], "", row[1])
        os.replace(path, output)
    console().print(table)
    print(f"written: {output}")
