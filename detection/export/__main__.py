"""``python -m detection.export``: a checkpoint as an ONNX file, checked against PyTorch on real images."""

import os

from jsonargparse import Namespace

from detection.data.batch import MULTIPLE
from detection.data.module import DetectionData
from detection.evaluate import labelled_data
from detection.export.writing import (
    CALIBRATION_IMAGES,
    _comparison,
    _planes,
    _read,
    _require_same,
    write_detector,
)
from detection.module import DetectionModule
from detection.predict import CheckpointDetector
from detection.scenes import Scenes
from detection.transforms import eval_transform
from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser, console, run_command
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
    if output.suffix != ".onnx":
        raise InputError(f"--output {output}: give a name that ends in .onnx")
    module, data_options = load_checkpoint(options.ckpt_path, DetectionModule, "detection")

    def data() -> DetectionData:
        made = labelled_data(data_options, {"root": options.data.root})
        made.class_names = module.hparams.class_names
        return made

    images = images_to_check(options, data, lambda: Scenes("val"), "scenes")
    calibration = images_to_calibrate(options, lambda: data().train_source) if options.int8 else None
    with folder_beside(output) as folder:
        path = folder / "model.onnx"
        write_detector(
            module,
            data_options,
            path,
            image_size=options.image_size,
            batch_size=None if options.dynamic_batch else options.batch_size,
            preprocessing=options.preprocessing,
            decode=options.decode,
        )
        checkpoint = CheckpointDetector(module, data_options, "cpu")  # where onnxruntime computes, and as exactly
        checkpoint.transform = eval_transform(data_options["short_side"], data_options["longest"], options.image_size)
        file = _read(path)
        files = {"ONNX": file}
        box, score = _require_same(checkpoint, file, images.source)
        if calibration is not None:
            path = write_int8(path, calibration, CALIBRATION_IMAGES, lambda image: file.batches([_planes(file, image)]))
            files["ONNX int8"] = _read(path)
        table = _comparison(module, checkpoint, files, images, options.check_images)
        if options.preprocessing:
            table.add_row("these where nothing is resized", "", f"{box:.1e}, {score:.1e}")
        os.replace(path, output)
    console().print(table)
    print(f"written: {output}")


def _parse() -> Namespace:
    parser = Parser(prog="python -m detection.export", description="Write a checkpoint as an ONNX file.")
    add_export_options(parser, output="the .onnx file to write", data="a COCO folder", check_images=64)
    parser.add_argument(
        "--image_size",
        type=tuple[int, int] | None,
        default=None,
        help=f"[height, width] of what it sees, multiples of {MULTIPLE}, into which images are made to fit; default: "
        "any, so that images are resized as in evaluation",
    )
    parser.add_argument(
        "--preprocessing",
        type=bool,
        default=False,
        help="let it take images as they were read, bytes of RGB (B, H, W, 3), and resize, normalise and pad them",
    )
    parser.add_argument(
        "--decode",
        type=bool,
        default=True,
        help="let it give boxes in pixels, scores and labels, after non-maximum suppression where that belongs to the "
        "detector; else its logits and boxes",
    )
    options = parser.parse_args()
    check_export_options(options)
    if options.image_size is not None and any(side < MULTIPLE or side % MULTIPLE for side in options.image_size):
        raise InputError(
            f"--image_size is {list(options.image_size)}: give height and width as multiples of {MULTIPLE}, for "
            "example [640, 640]"
        )
    return options


if __name__ == "__main__":
    run_command(main)
