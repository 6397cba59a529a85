"""``python -m detection.predict``: detect objects in images, videos and cameras."""

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable, require_writable, run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options
from mobile_former.training.processors import limit_threads


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
    from mobile_former.training.export.onnx_file import OnnxModel
    from mobile_former.training.prediction.drawings import Drawings, drawing_paths
    from mobile_former.training.prediction.inputs import find_inputs
    from mobile_former.training.prediction.progress import Pace, rows_shown

    limit_threads()
    inputs = find_inputs(options.images)
    drawn = drawing_paths(inputs, options.drawings) if options.drawings else {}
    for target in filter(None, (options.output, *drawn.values())):  # before any work, so that no result is lost
        require_writable(target)
    if options.onnx:
        detector = ExportedDetector(OnnxModel(options.onnx, "detection"))
    else:
        detector = load_detector(options.ckpt_path)
    found = find_objects(
        detector,
        inputs,
        score_threshold=options.score_threshold,
        batch_size=options.batch_size,
        keep_originals=bool(drawn),
        max_frames=options.max_frames,
    )
    pace, predictions = Pace(inputs, shown=not options.quiet), []
    with Drawings(drawn) as drawings:
        for loaded, prediction in pace.follow(found):
            if loaded.original is not None:
                drawings.add(loaded, results.with_boxes(loaded.original, prediction["detections"]))
            predictions.append(prediction)
    rows = rows_shown(len(predictions), quiet=options.quiet, verbose=options.verbose)
    if rows is not None:
        (results.print_rows if rows else results.print_summary)(predictions)
    pace.print_summary()
    if options.output:
        results.write_file(predictions, detector, options.output)
        if not options.quiet:
            print(f"written: {options.output}")
    if drawn and not options.quiet:
        print(f"written: {len(drawings.written)} drawings in {options.drawings}/")
    exit_if_unreadable([prediction["error"] for prediction in predictions if "error" in prediction], len(predictions))


if __name__ == "__main__":
    run_command(main)
