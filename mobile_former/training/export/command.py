"""The ``export`` command: write a model file, compare the file with PyTorch, and move it to its final path."""

import os
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning import LightningModule

from mobile_former.training.console import console
from mobile_former.training.export.arguments import FORMATS
from mobile_former.training.export.options import folder_beside, images_to_calibrate, images_to_check, write_int8


class Exporter:
    """Base class for the parts of the ``export`` command that differ between classification and detection.

    A subclass has the following methods:

    - ``data()``: build the data module for the folder ``--data.root``, or for the checkpoint's data set if the option
      is not given.
    - ``training_images()``: return the training images, see :class:`mobile_former.training.data.dataset.ImageSource`.
    - ``embedded_images()``: build the embedded images, which are made from scikit-learn's digits. They are used if the
      data set of the checkpoint is missing.
    - ``write(path)``: write the float32 model file.
    - ``read(path)``: load a model file and return the exported model.
    - ``inputs(file, image)``: preprocess an image ``(H, W, 3)`` uint8 for the exported model ``file``. Return an
      iterator over lists of input arrays, with one list for each run of the model.
    - ``check(file, source)``: compare the exported model ``file`` with PyTorch on the images of ``source``. Raise
      InputError if the results differ. Return a tuple (name, value) for an additional row of the table that
      ``compare`` builds, or None for no additional row.
    - ``compare(files, images)``: build a table that compares PyTorch with exported models. ``files`` is a dictionary
      from the name of a format to the exported model, and ``images`` is a
      :class:`mobile_former.training.export.options.CheckImages`.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: options of the data module, from the same checkpoint.
        options: parsed command-line options.

    Attributes:
        embedded_name: plural noun for the embedded images, used in messages.
        calibration_images: maximum number of images that are used to compute the activation ranges for int8.
    """

    embedded_name: str
    calibration_images: int

    def __init__(self, module: LightningModule, data_options: dict, options: Namespace):
        self.module, self.data_options, self.options = module, data_options, options


def export(exporter: Exporter, options: Namespace, output: Path) -> None:
    """Write a model file to a temporary folder, check it, move it to ``output``, and print a comparison table.

    Args:
        exporter: object with the steps that are specific to classification or detection.
        options: parsed options, see :func:`mobile_former.training.export.arguments.add_export_options`.
        output: final path of the file.

    Raises:
        InputError: the images cannot be used, the model file cannot be written or loaded, or its results differ from
            those of PyTorch. In these cases ``output`` is not written.
    """
    images = images_to_check(options, exporter.data, exporter.embedded_images, exporter.embedded_name)
    calibration = images_to_calibrate(options, exporter.training_images) if options.int8 else None
    with folder_beside(output) as folder:
        path = folder / f"model{output.suffix}"
        exporter.write(path)
        file = exporter.read(path)
        files = {FORMATS[output.suffix]: file}
        row = exporter.check(file, images.source)
        if calibration is not None:
            path = write_int8(path, calibration, exporter.calibration_images, partial(exporter.inputs, file))
            files["ONNX int8"] = exporter.read(path)
        table = exporter.compare(files, images)
        if row:
            table.add_row(row[0], "", row[1])
        if output.is_dir():  # an earlier Core ML package; a folder is replaced only by moving it away
            os.replace(output, folder / "earlier")
        os.replace(path, output)
    console().print(table)
    print(f"written: {output}")
