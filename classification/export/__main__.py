"""``python -m classification.export``: export a checkpoint, and compare the exported model with the PyTorch model."""

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.export.arguments import (
    FORMATS,
    add_export_options,
    check_export_options,
    output_path,
    require_format,
)
from mobile_former.training.processors import limit_threads
from mobile_former.variants import MIN_SIZE


def main() -> None:
    """Parse the command line, export the checkpoint, and compare the exported model with the PyTorch model."""
    options = _parse()
    output = output_path(options)
    require_format(output, options, ("dynamic_batch", "dynamic_size", "int8"))
    # Imported here, because these modules import PyTorch and Lightning, which --help need not wait for.
    from classification.export.writing import ClassifierExporter
    from classification.module import ClassificationModule
    from mobile_former.training.export.command import export
    from mobile_former.training.run.checkpoint import load_checkpoint

    limit_threads()
    module, data_options = load_checkpoint(options.ckpt_path, ClassificationModule, "classification")
    if options.image_size is not None:
        data_options["image_size"] = options.image_size
    export(ClassifierExporter(module, data_options, options), options, output)


def _parse() -> Namespace:
    parser = Parser(prog="python -m classification.export", description="Write a checkpoint as a file for inference.")
    add_export_options(parser, output=f"file to write: {', '.join(FORMATS)}", data="labelled images", check_images=256)
    parser.add_argument(
        "--image_size", type=int | None, default=None, help="side of the square input; default: as in training"
    )
    parser.add_argument(
        "--dynamic_size",
        type=bool,
        default=False,
        help=f"accept images of any size from {MIN_SIZE} pixels up; with --preprocessing, of any size, which the graph "
        "resizes and crops",
    )
    parser.add_argument(
        "--preprocessing", type=bool, default=False, help="accept uint8 RGB (B, H, W, 3), which the graph normalises"
    )
    options = parser.parse_args()
    check_export_options(options)
    if options.image_size is not None and options.image_size < MIN_SIZE:
        raise InputError(f"--image_size is {options.image_size}: the model takes images from {MIN_SIZE} pixels up")
    return options


if __name__ == "__main__":
    run_command(main)
