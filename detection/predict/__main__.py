"""``python -m detection.predict``: detect objects in images, videos and cameras."""

from functools import partial

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options


def main() -> None:
    """Parse the command line, detect objects in images, and print the detections.

    If requested, also write the detections to a file, and write pictures of the images with boxes to a folder.
    """
    parser = Parser(prog="python -m detection.predict", description="Detect objects in images, videos and cameras.")
    add_predict_options(
        parser, "detection", output="a .json (COCO results) or .csv file to write", batch_size=8, drawn="boxes"
    )
    parser.add_argument("--score_threshold", type=float, default=0.3, help="minimum score of a detection, 0 to 1")
    options = parser.parse_args()
    check_predict_options(options, (".json", ".csv"))
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score_threshold is {options.score_threshold}: give a score from 0 to 1")
    _run(options)


def _run(options: Namespace) -> None:
    # Imported here, because these modules import PyTorch, which --help and errors of the options need not wait for.
    from detection.export.exported_detector import ExportedDetector
    from detection.predict import results
    from detection.predict.detector import find_objects, load_detector
    from mobile_former.training.prediction.predicting import run_prediction

    run_prediction(
        options,
        "detection",
        load_checkpoint=load_detector,
        load_exported=ExportedDetector,
        predict=partial(find_objects, score_threshold=options.score_threshold),
        draw=results.with_boxes,
        print_rows=results.print_rows,
        print_summary=results.print_summary,
        files={options.output: results.write_file},
    )


if __name__ == "__main__":
    run_command(main)
