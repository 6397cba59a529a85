"""Compare the speed of ``predict`` with that of its model on batches in memory.

    OMP_NUM_THREADS=1 python -m experiments.prediction classification IMAGES --ckpt_path runs/…/best.ckpt
    OMP_NUM_THREADS=1 python -m experiments.prediction detection IMAGES --ckpt_path runs/…/best.ckpt

``predict`` and the model take turns in one process. Their times are processor times, summed over all threads. The time
of ``predict`` covers everything after the loading of the checkpoint: it finds, reads, decodes, resizes and normalises
images, runs the model, makes the predictions, prints a summary, and writes a CSV file. The time of the model covers
only the forward pass and, for detectors, the postprocessing. It runs on the same images in the same batches, which are
resized and normalised before the timing starts.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import Namespace

from classification.predict import results as classes
from classification.predict.classifier import CheckpointClassifier, classify, load_classifier
from detection.data.batch import pad
from detection.predict import results as boxes
from detection.predict.detector import CheckpointDetector, find_objects, load_detector
from experiments.interleaved import interleave, paired, quartiles
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.data.images import normalise, to_batch, to_planes
from mobile_former.training.prediction.inputs import find_inputs
from mobile_former.training.prediction.predicting import run_prediction

BATCH = {"classification": 32, "detection": 8}


def main() -> None:
    """Parse the command line, time ``predict`` and its model, and print both times and the ratio of the two speeds."""
    parser = Parser(prog="python -m experiments.prediction", description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=list(BATCH), help="the task of the checkpoint")
    parser.add_argument("images", type=str, nargs="+", help="images, folders of images and quoted globs")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of a run")
    parser.add_argument("--most", type=int, default=300, help="number of images at most")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    options = parser.parse_args()
    predictor = (load_classifier if options.task == "classification" else load_detector)(options.ckpt_path)
    names = [each.name for each in find_inputs(options.images)[: options.most]]
    with tempfile.TemporaryDirectory() as folder:
        candidates = {
            "predict": command_of(options.task, predictor, names, Path(folder, "predictions.csv")),
            "model": model_of(predictor, names, BATCH[options.task]),
        }
        seconds = interleave(candidates, rounds=options.rounds, warmup=1, clock=time.process_time)
    for label, values in seconds.items():
        print(f"{label:<8}{1e6 * statistics.median(values) / len(names):8.0f} µs of the processor per image")
    low, median, high = quartiles(paired(seconds["model"], seconds["predict"]))
    print(f"{len(names)} images: predict has {median:.2f} of the model's rate (quartiles {low:.2f} to {high:.2f})")


def command_of(
    task: str, predictor: CheckpointClassifier | CheckpointDetector, names: list[str], output: Path
) -> Callable[[], None]:
    """Return a function that runs the task's ``predict`` command on image files with a loaded predictor.

    ``names`` are the paths of the images, and ``output`` is the path of the CSV file.
    """
    predict, results, draw = {
        "classification": (classify, classes, classes.with_classes),
        "detection": (find_objects, boxes, boxes.with_boxes),
    }[task]
    options = Namespace(
        images=names, ckpt_path="", onnx=None, output=output, drawings=None, batch_size=BATCH[task], max_frames=None,
        quiet=False, verbose=False,
    )  # fmt: skip

    def command() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run_prediction(
                options,
                task,
                load_checkpoint=lambda _: predictor,
                load_exported=lambda _: predictor,
                predict=predict,
                draw=draw,
                print_rows=results.print_rows,
                print_summary=results.print_summary,
                files={output: results.write_file},
            )

    return command


def model_of(
    predictor: CheckpointClassifier | CheckpointDetector, names: list[str], batch_size: int
) -> Callable[[], None]:
    """Load and normalise images. Return a function that runs the predictor's model on them.

    ``names`` are the paths of the images.
    """
    images = [each.read() for each in find_inputs(names)]
    prepared = list(map(predictor.transform, images))
    starts = range(0, len(images), batch_size)
    batches = [prepared[start : start + batch_size] for start in starts]
    sizes = [[image.shape[:2] for image in images[start : start + batch_size]] for start in starts]
    if isinstance(predictor, CheckpointClassifier):
        inputs = [(to_batch(batch, predictor.mean, predictor.std),) for batch in batches]
    else:
        padded = [pad(list(map(to_planes, batch))) for batch in batches]
        inputs = [(normalise(planes, predictor.mean, predictor.std), mask) for planes, mask in padded]

    @torch.inference_mode()
    def model() -> None:
        for batch, originals in zip(inputs, sizes, strict=True):
            outputs = predictor.model(*batch)
            if isinstance(predictor, CheckpointDetector):
                predictor.model.postprocess(outputs, originals)

    return model


if __name__ == "__main__":
    run_command(main)
