"""The steps that the ``predict`` commands of classification and detection share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image

from mobile_former.training.cli.command import exit_if_unreadable, require_writable
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.prediction.drawings import Drawings, drawing_paths
from mobile_former.training.prediction.inputs import Input, find_inputs
from mobile_former.training.prediction.loading import Loaded, load_batches
from mobile_former.training.prediction.progress import Pace, rows_shown
from mobile_former.training.processors import limit_threads


def run_prediction(
    options: Namespace,
    task: str,
    *,
    load_checkpoint: Callable[[str], Any],
    load_exported: Callable[[OnnxModel], Any],
    predict: Callable[..., Iterator[tuple[Loaded, dict]]],
    draw: Callable[[np.ndarray, dict], Image.Image],
    print_rows: Callable[[Sequence[dict]], None],
    print_summary: Callable[[Sequence[dict]], None],
    files: Mapping[Path | None, Callable[[Any, Sequence[dict], Path], None]],
) -> None:
    """Run a model on the inputs of a ``predict`` command, print the predictions, and write the output files.

    Args:
        options: options that :func:`mobile_former.training.cli.prediction.add_predict_options` adds.
        task: ``"classification"`` or ``"detection"``.
        load_checkpoint: function that takes the path ``--ckpt_path`` and returns the predictor, such as a classifier.
        load_exported: function that takes an exported model and returns its predictor.
        predict: function that takes the predictor and the inputs, and the keyword arguments ``batch_size``,
            ``keep_originals`` and ``max_frames``. It returns the iterator of :func:`predict_inputs`.
        draw: function that takes an original image ``(H, W, 3)`` uint8 and its prediction. It returns a picture that
            shows both.
        print_rows: function that prints a row for each prediction.
        print_summary: function that prints a summary of the predictions.
        files: dictionary from the path of each output file to the function that writes it. The function takes the
            predictor, the predictions and the path. An entry whose path is None is skipped.

    Raises:
        FileNotFoundError: an input does not exist.
        InputError: an input or the model cannot be used.
        SystemExit: an image could not be read. All other images were predicted.
    """
    limit_threads()
    inputs = find_inputs(options.images)
    drawn = drawing_paths(inputs, options.drawings) if options.drawings else {}
    for target in filter(None, (*files, *drawn.values())):  # before any work, so that no result is lost
        require_writable(target)
    predictor = load_exported(OnnxModel(options.onnx, task)) if options.onnx else load_checkpoint(options.ckpt_path)
    loading = {"batch_size": options.batch_size, "keep_originals": bool(drawn), "max_frames": options.max_frames}
    pace, predictions = Pace(inputs, shown=not options.quiet), []
    with Drawings(drawn) as drawings:
        for loaded, prediction in pace.follow(predict(predictor, inputs, **loading)):
            if loaded.original is not None:
                drawings.add(loaded, draw(loaded.original, prediction))
            predictions.append(prediction)
    rows = rows_shown(len(predictions), quiet=options.quiet, verbose=options.verbose)
    if rows is not None:
        (print_rows if rows else print_summary)(predictions)
    pace.print_summary()
    for target, write in files.items():
        if target:
            write(predictor, predictions, target)
            if not options.quiet:
                print(f"written: {target}")
    if drawn and not options.quiet:
        count = len(drawings.written)
        print(f"written: {count} drawing{'s' * (count != 1)} in {options.drawings}/")
    exit_if_unreadable([prediction["error"] for prediction in predictions if "error" in prediction], len(predictions))


def predict_inputs(
    inputs: Sequence[Input],
    transform: Callable[[np.ndarray], np.ndarray],
    predict_batch: Callable[[Sequence[Loaded]], Iterable[dict]],
    *,
    batch_size: int,
    keep_originals: bool = False,
    max_frames: int | None = None,
) -> Iterator[tuple[Loaded, dict]]:
    """Predict images, and the frames of videos and cameras.

    Args:
        inputs: images, videos and cameras.
        transform: function that prepares images, see :func:`load_batches`.
        predict_batch: function that takes images that could be read, and returns their predictions in the same order.
            The predictions do not yet contain the entries of :meth:`Loaded.place`.
        batch_size: number of images in a batch.
        keep_originals: whether the yielded images contain the original pixels.
        max_frames: maximum number of frames to read from each video or camera. None: no limit.

    Yields:
        A tuple (image, prediction) for each image or frame. The prediction of an image that cannot be read has only the
        keys ``path`` and ``error`` (a message).
    """
    batches = load_batches(inputs, transform, batch_size, keep_originals=keep_originals, max_frames=max_frames)
    with closing(batches):
        for batch in batches:
            readable = [loaded for loaded in batch if loaded.image is not None]
            found = iter(predict_batch(readable) if readable else ())
            for loaded in batch:
                if loaded.image is None:
                    yield loaded, {"path": loaded.source.name, "error": loaded.error}
                else:
                    yield loaded, {**loaded.place(), **next(found)}
