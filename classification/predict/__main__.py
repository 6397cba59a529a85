"""``python -m classification.predict``: classify images, videos and cameras."""

from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable, require_writable, run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options
from mobile_former.training.processors import limit_threads


def main() -> None:
    """Parse the command line, classify the images and print the predictions. Write them to files if requested."""
    parser = Parser(prog="python -m classification.predict", description="Classify images, videos and cameras.")
    add_predict_options(
        parser, "classification", output="a .csv or .json file to write", batch_size=32, drawn="best classes"
    )
    parser.add_argument("--sheet", type=Path | None, default=None, help="write a .png of the images with their classes")
    parser.add_argument("--top_k", type=int, default=5, help="number of classes per image")
    options = parser.parse_args()
    check_predict_options(options, (".csv", ".json"))
    if options.sheet and options.sheet.suffix != ".png":
        raise InputError(f"--sheet {options.sheet}: give a name that ends in .png")
    if options.top_k < 1:
        raise InputError(f"--top_k is {options.top_k}: give at least 1")
    _run(options)


def _run(options: Namespace) -> None:
    # Imported here, because these modules import PyTorch, which --help and errors of the options need not wait for.
    from classification.export.exported_classifier import ExportedClassifier
    from classification.predict import results
    from classification.predict.classifier import classify, load_classifier
    from mobile_former.training.export.onnx_file import OnnxModel
    from mobile_former.training.prediction.drawings import Drawings, drawing_paths
    from mobile_former.training.prediction.inputs import find_inputs
    from mobile_former.training.prediction.progress import Pace, rows_shown

    limit_threads()
    inputs = find_inputs(options.images)
    drawn = drawing_paths(inputs, options.drawings) if options.drawings else {}
    for target in filter(None, (options.output, options.sheet, *drawn.values())):  # before the work is done
        require_writable(target)
    if options.onnx:
        classifier = ExportedClassifier(OnnxModel(options.onnx, "classification"))
    else:
        classifier = load_classifier(options.ckpt_path)
    found = classify(
        classifier,
        inputs,
        top_k=options.top_k,
        batch_size=options.batch_size,
        keep_originals=bool(drawn),
        max_frames=options.max_frames,
    )
    pace, predictions = Pace(inputs, shown=not options.quiet), []
    with Drawings(drawn) as drawings:
        for loaded, prediction in pace.follow(found):
            if loaded.original is not None:
                drawings.add(loaded, results.with_classes(loaded.original, prediction["top_k"][:3]))
            predictions.append(prediction)
    rows = rows_shown(len(predictions), quiet=options.quiet, verbose=options.verbose)
    if rows is not None:
        (results.print_rows if rows else results.print_summary)(predictions)
    pace.print_summary()
    for target, write in ((options.output, results.write_file), (options.sheet, results.draw_sheet)):
        if target:
            write(predictions, target)
            if not options.quiet:
                print(f"written: {target}")
    if drawn and not options.quiet:
        print(f"written: {len(drawings.written)} drawings in {options.drawings}/")
    exit_if_unreadable([prediction["error"] for prediction in predictions if "error" in prediction], len(predictions))


if __name__ == "__main__":
    run_command(main)
