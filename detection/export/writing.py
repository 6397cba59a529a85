"""Write a detector as ONNX file, and check it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from scipy.optimize import linear_sum_assignment

import mobile_former
from detection.data.batch import MULTIPLE
from detection.evaluation import CocoAP
from detection.export.exported_detector import ExportedDetector
from detection.export.onnx_graph import DECODED_OUTPUTS, RAW_OUTPUTS, DetectionGraph, preparation, translations
from detection.models.retinanet import DETECTIONS, LEAST_SCORE, RetinaNet
from detection.module import DetectionModule
from detection.predict import CheckpointDetector, Detector
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import ImageSource, indices_to_look_at
from mobile_former.training.data.images import to_planes
from mobile_former.training.export.latency import milliseconds
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from mobile_former.training.export.options import (
    CheckImages,
    add_size_rows,
    add_time_row,
)
from mobile_former.training.run.report import figure

BOX_TOLERANCE = 0.1  # pixels of the image
SCORE_TOLERANCE = 1e-4
CALIBRATION_IMAGES = 64
FEW = 8  # images are enough for a look at the file's own arithmetic


def write_detector(
    module: DetectionModule,
    data_options: dict,
    path: Path,
    *,
    image_size: Sequence[int] | None = None,
    batch_size: int | None = 1,
    preprocessing: bool = False,
    decode: bool = True,
) -> None:
    """Write the inference form of a detector as an ONNX file.

    Args:
        module: and
        data_options: as :func:`mobile_former.training.run.checkpoint.load_checkpoint` gives them.
        path: the file.
        image_size: height and width of the detector's images, multiples of 32; None for any.
        batch_size: images that it takes at once; None for any number.
        preprocessing: whether it takes images as they were read and resizes, normalises and pads them itself.
        decode: whether it gives detections, after non-maximum suppression where that belongs to the detector.

    Raises:
        InputError: the optional extra is missing, or the model cannot be exported.
    """
    model = mobile_former.deploy(module.model)
    # Sizes that are to be dynamic differ from each other, and from 1.
    count = batch_size or 2
    height, width = image_size or (4 * MULTIPLE, 5 * MULTIPLE)
    sizes = torch.tensor([[height, width]] * count)
    inputs = {"images": torch.zeros(count, 3, height, width), "sizes": sizes}
    if preprocessing:
        inputs["frames"] = 2 * sizes
    axes: list[dict] = [{} if batch_size else {0: "batch"} for _ in inputs]
    if image_size is None:
        sides = (MULTIPLE * torch.export.Dim(f"{side}_in_{MULTIPLE}s") for side in ("height", "width"))
        axes[0] |= dict(zip((2, 3), sides, strict=True))
    prepared = {name: data_options[name] for name in ("short_side", "longest", "mean", "std")}
    frame = None if image_size is None else (height, width)
    anchors = isinstance(module.model, RetinaNet)
    write_onnx(
        DetectionGraph(model, decode=decode).eval(),
        list(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=DECODED_OUTPUTS if decode else RAW_OUTPUTS,
        dynamic_axes=axes if any(axes) else None,
        translations=translations(),
        preparation=preparation(**prepared, frame=frame, batch_size=batch_size) if preprocessing else None,
        metadata={
            "task": "detection",
            "model": module.hparams.name,
            "class_names": module.hparams.class_names,
            "category_ids": module.category_ids,
            "input": _describe_input(preprocessing),
            "output": _describe_output(decode, preprocessing, anchors, module.model),
            "preprocessing": preprocessing,
            "decoded": decode,
            "anchors": anchors,
            "sigmoid": _by_sigmoid(module.model),
            "frame": None if frame is None else list(frame),
            **prepared,
            "precision": "float32",
        },
    )


def _by_sigmoid(model: torch.nn.Module) -> bool:
    return isinstance(model, RetinaNet) or getattr(model, "focal", False)


def _describe_input(preprocessing: bool) -> str:
    """The inputs' conventions in words, for whoever writes the program around the model."""
    if preprocessing:
        return "image: uint8 (batch, height, width, 3), RGB of 0..255, as it was read"
    return (
        "images: float32 (batch, 3, H, W), planes of RGB, (value in 0..1 - mean) / std, H and W multiples of 32, each "
        "at the top left of its place; sizes: int64 (batch, 2), height and width that each image fills of it"
    )


def _describe_output(decode: bool, preprocessing: bool, anchors: bool, model: torch.nn.Module) -> str:
    if not decode:
        scores = "sigmoids of logits" if _by_sigmoid(model) else "softmax of logits, whose last class is no object"
        kind = "anchors, before non-maximum suppression" if anchors else "queries"
        return f"logits, boxes: of each of the {kind}; {scores}; boxes (cx, cy, w, h) in 0..1 of the image"
    pixels = "of the image" if preprocessing else "of sizes"
    return (
        f"boxes: (left, top, right, bottom) in pixels {pixels}; scores in 0..1, best first; labels, from 0; counts: "
        "how many of these are detections of each image; behind them scores are 0 and labels -1"
    )


def _read(path: Path) -> ExportedDetector:
    return ExportedDetector(OnnxModel(path, "detection"))


def _planes(detector: Detector, image: np.ndarray) -> torch.Tensor:
    return to_planes(detector.transform(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"])


def differences(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, complete: bool = False
) -> tuple[float, float]:
    """How far two lists of detections of an image are apart.

    Detections of the same class are paired so that they differ least, as their order may be another where their scores
    are nearly the same. One without a partner within a pixel counts by how far its score is from the least one that a
    list may hold: the last one's where the other list is full, else RetinaNet's threshold.

    Args:
        found: ``boxes`` ``(n, 4)`` in pixels, ``scores`` and ``labels`` ``(n,)``.
        expected: the same, of m.
        complete: whether lists hold all that there is, so that none may be without a partner, however low its score;
            where it is low, that may be of another class.

    Returns:
        The greatest difference of a corner in pixels, and of scores; infinite where a box or score is no number.
    """
    pair = [{name: values.double().numpy() for name, values in each.items()} for each in (found, expected)]
    if not all(np.isfinite(values).all() for each in pair for values in each.values()):
        return np.inf, np.inf
    boxes, scores, labels = ([each[name] for each in pair] for name in ("boxes", "scores", "labels"))
    box = np.abs(boxes[0][:, None] - boxes[1]).max(-1, initial=0)
    score = np.abs(scores[0][:, None] - scores[1])
    partners = labels[0][:, None] == labels[1]
    if complete:  # where nothing is found, the best of the classes is often a matter of rounding
        partners |= (score <= SCORE_TOLERANCE) & (np.maximum(scores[0][:, None], scores[1]) <= LEAST_SCORE)
    partners &= box < 1
    cost = np.where(partners, box / BOX_TOLERANCE + score / SCORE_TOLERANCE, 1e9)
    rows, columns = linear_sum_assignment(cost)
    chosen = partners[rows, columns]
    rows, columns = rows[chosen], columns[chosen]
    worst = score[rows, columns].max(initial=0)
    for own, partnered, other in ((0, rows, 1), (1, columns, 0)):
        least = 0 if complete else scores[other].min() if len(scores[other]) == DETECTIONS else LEAST_SCORE
        worst = max(worst, (np.delete(scores[own], partnered) - least).max(initial=0))
    return float(box[rows, columns].max(initial=0)), float(worst)


def _require_same(
    checkpoint: CheckpointDetector, detector: ExportedDetector, source: ImageSource
) -> tuple[float, float]:
    """How far a file's detections are from its checkpoint's in the same pixels, see :func:`differences`.

    Raises:
        InputError: further than is allowed.
    """
    indices = indices_to_look_at(source, FEW)
    # Where the graph resizes, let it find images that have their size, as its Resize rounds some pixels to another
    # level of 255.
    read = [source.read(index) for index in indices]
    images = [checkpoint.transform(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"] for image in read]
    sizes = [image.shape[:2] for image in read]
    # RetinaNet's detections, and the queries that E2E-MF chooses, are the best of more: the last may be others.
    start = getattr(checkpoint.module.model, "start", None)
    complete = not (detector.of_anchors or getattr(start, "choose_queries", False))
    worst, compared = np.zeros(2), 0
    for part in (slice(0, 1), slice(1, 3), slice(3, None)):  # as a dynamic batch has to take any number
        if images[part]:
            expected, found = (_detect(each, images[part], sizes[part]) for each in (checkpoint, detector))
            pairs = zip(found, expected, strict=True)
            worst = np.maximum(worst, np.max([differences(*pair, complete=complete) for pair in pairs], axis=0))
            compared += sum(len(each["scores"]) for each in expected)
    if not (worst[0] <= BOX_TOLERANCE and worst[1] <= SCORE_TOLERANCE):  # NaN too
        raise InputError(
            f"the file's boxes differ from PyTorch's by {worst[0]:.2g} pixels and its scores by {worst[1]:.1e}, where "
            f"{BOX_TOLERANCE} and {SCORE_TOLERANCE:.0e} are allowed; it was not written. Please report it, with the "
            "versions of torch and onnxruntime"
        )
    if not compared:
        print(
            f"warning: PyTorch finds nothing in the {len(indices)} images, so that there was nothing to compare: name "
            "others by --images",
            file=sys.stderr,
        )
    return float(worst[0]), float(worst[1])


def _detect(
    detector: Detector, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, torch.Tensor]]:
    return detector.detect([_planes(detector, image) for image in images], sizes)


def _comparison(
    module: DetectionModule,
    checkpoint: CheckpointDetector,
    files: dict[str, ExportedDetector],
    images: CheckImages,
    most: int,
) -> Table:
    """A table of PyTorch beside the files."""
    columns = {"PyTorch": checkpoint, **files}
    detectors = list(columns.values())
    metrics = [
        CocoAP(images.source.ground_truth(), images.source.category_ids) if images.labelled else None for _ in detectors
    ]
    indices = indices_to_look_at(images.source, most)
    worst = np.zeros(2)
    for index in indices:
        image = images.source.read(index)
        found = [_detect(detector, [image], [image.shape[:2]]) for detector in detectors]
        worst = np.maximum(worst, differences(found[1][0], found[0][0]))
        for metric, detections in zip(metrics, found, strict=True):
            if metric is not None:
                metric.update(detections, [images.source.image_id(index)])

    title = f"{module.label} on {len(indices)} images: {images.title}"
    table = Table("", *columns, title=escape(title), title_justify="left")
    add_size_rows(table, [detector.model.path for detector in files.values()])
    table.add_row("greatest difference of boxes, in pixels", "", f"{worst[0]:.1e}")
    table.add_row("greatest difference of scores", "", f"{worst[1]:.1e}")
    if images.labelled:
        scores = [metric.compute() for metric in metrics]
        for name in ("AP", "AP50"):
            table.add_row(name, *(figure(score[name]) for score in scores))
    image = images.source.read(indices[0])
    times = []
    for detector in detectors:
        planes = [_planes(detector, image)]
        times.append(milliseconds(lambda: detector.detect(planes, [image.shape[:2]]), 5))  # noqa: B023
    add_time_row(table, times)
    return table
