"""``python -m detection.export``: export a checkpoint, and compare the exported model with the PyTorch model."""

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
from mobile_former.variants import MIN_SIZE as MULTIPLE  # see detection.data.batch


def main() -> None:
    """Parse the command line, export the checkpoint, and compare the exported model with the PyTorch model."""
    options = _parse()
    output = output_path(options)
    require_format(output, options, ("dynamic_batch", "int8", "preprocessing"))
    if output.suffix != ".onnx" and (options.decode or options.image_size is None):
        raise InputError(
            f"{output} has fixed sizes and no non-maximum suppression: add --decode false and, for example, "
            "--image_size '[320, 320]'"
        )
    # Imported here, because these modules import PyTorch and Lightning, which --help need not wait for.
    from detection.export.writing import DetectorExporter
    from detection.module import DetectionModule
    from mobile_former.training.export.command import export
    from mobile_former.training.run.checkpoint import load_checkpoint

    limit_threads()
    module, data_options = load_checkpoint(options.ckpt_path, DetectionModule, "detection")
    export(DetectorExporter(module, data_options, options), options, output)


def _parse() -> Namespace:
    parser = Parser(prog="python -m detection.export", description="Write a checkpoint as a file for inference.")
    add_export_options(parser, output=f"the file to write: {', '.join(FORMATS)}", data="a COCO folder", check_images=64)
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
