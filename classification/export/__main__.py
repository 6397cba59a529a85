"""``python -m classification.export``: a checkpoint as a file for inference, checked against PyTorch on real images."""

import os
from pathlib import Path

from jsonargparse import Namespace

from classification.data.module import ClassificationData
from classification.digits import Digits
from classification.evaluate import labelled_data
from classification.export.exported_classifier import Preprocessing
from classification.export.writing import (
    CALIBRATION_IMAGES,
    TOLERANCE,
    _comparison,
    _planes,
    _read,
    _worst_difference,
    write_classifier,
)
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.model import MIN_SIZE
from mobile_former.training.cli.command import Parser, console, run_command
from mobile_former.training.data.dataset import ImageSource
from mobile_former.training.export.options import (
    add_export_options,
    check_export_options,
    folder_beside,
    images_to_calibrate,
    images_to_check,
    output_path,
    write_int8,
)
from mobile_former.training.run.checkpoint import load_checkpoint


def main() -> None:
    """Export by the command line's options."""
    options = _parse()
    output = output_path(options)
    _require_writable_kind(output, options)
    module, data_options = load_checkpoint(options.ckpt_path, ClassificationModule, "classification")
    if options.image_size is not None:
        data_options["image_size"] = options.image_size
    class_names = module.hparams.class_names

    def data() -> ClassificationData:
        made = labelled_data(options.ckpt_path, data_options, {"root": options.data.root})
        made.class_names = class_names
        return made

    def training() -> ImageSource:
        made = data()
        made.setup("fit")
        return made.train_set.source

    images = images_to_check(options, data, lambda: Digits("val"), "digits")
    calibration = images_to_calibrate(options, training) if options.int8 else None

    preprocessing: Preprocessing = "none"
    if options.preprocessing:
        preprocessing = "resize_and_normalise" if options.dynamic_size else "normalise"
    with folder_beside(output) as folder:
        path = folder / f"model{output.suffix}"
        write_classifier(
            module,
            data_options,
            path,
            preprocessing=preprocessing,
            batch_size=None if options.dynamic_batch else options.batch_size,
            dynamic_size=options.dynamic_size,
        )
        file = _read(path)
        files = {"ExecuTorch" if output.suffix == ".pte" else "ONNX": file}
        difference = _worst_difference(module, data_options, file, images.source, options.dynamic_size)
        if not difference <= TOLERANCE:  # NaN too
            raise InputError(
                f"the file's logits differ from PyTorch's by {difference:.1e} of their scale, where {TOLERANCE:.0e} is "
                "allowed; it was not written. Please report it, with the versions of torch and onnxruntime"
            )
        if calibration is not None:
            path = write_int8(path, calibration, CALIBRATION_IMAGES, lambda image: file.batches([_planes(file, image)]))
            files["ONNX int8"] = _read(path)
        table = _comparison(module, data_options, files, images, options.check_images)
        if preprocessing == "resize_and_normalise":
            table.add_row("difference where nothing is resized", "", f"{difference:.1e}")
        os.replace(path, output)
    console().print(table)
    print(f"written: {output}")


def _require_writable_kind(output: Path, options: Namespace) -> None:
    if output.suffix not in {".onnx", ".pte"}:
        raise InputError(f"--output {output}: give a name that ends in .onnx or .pte")
    for name in ("dynamic_batch", "dynamic_size", "int8"):
        if output.suffix == ".pte" and options[name]:
            raise InputError(f"--{name} is for ONNX files, and {output} is ExecuTorch's: leave it out")


def _parse() -> Namespace:
    parser = Parser(
        prog="python -m classification.export", description="Write a checkpoint as an ONNX file, or for ExecuTorch."
    )
    add_export_options(
        parser, output="the file to write, .onnx, or .pte for ExecuTorch", data="labelled images", check_images=256
    )
    parser.add_argument(
        "--image_size", type=int | None, default=None, help="side of the square that it sees; default: that of training"
    )
    parser.add_argument(
        "--dynamic_size",
        type=bool,
        default=False,
        help=f"let it take images of any size from {MIN_SIZE} pixels up; with --preprocessing from 1 up, "
        "resized and cropped in the graph",
    )
    parser.add_argument(
        "--preprocessing", type=bool, default=False, help="let it take bytes, RGB (B, H, W, 3), normalised in the graph"
    )
    options = parser.parse_args()
    check_export_options(options)
    if options.image_size is not None and options.image_size < MIN_SIZE:
        raise InputError(f"--image_size is {options.image_size}: the model takes images from {MIN_SIZE} pixels up")
    return options


if __name__ == "__main__":
    run_command(main)
