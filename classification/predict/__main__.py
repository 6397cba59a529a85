"""``python -m classification.predict``: classify images, videos and cameras."""

from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options


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
    from mobile_former.training.prediction.predicting import run_prediction

    run_prediction(
        options,
        "classification",
        load_checkpoint=load_classifier,
        load_exported=ExportedClassifier,
        predict=partial(classify, top_k=options.top_k),
        draw=results.with_classes,
        print_rows=results.print_rows,
        print_summary=results.print_summary,
        files={options.output: results.write_file, options.sheet: results.draw_sheet},
    )


if __name__ == "__main__":
    run_command(main)
