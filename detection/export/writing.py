"""Export a detector to a file for inference, and compare its detections with those of PyTorch."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table
from scipy.optimize import linear_sum_assignment

import mobile_former
from detection.data.batch import MULTIPLE
from detection.data.module import DetectionData
from detection.data.scenes import Scenes
from detection.evaluate import labelled_data
from detection.export.exported_detector import ExportedDetector
from detection.export.onnx_graph import DECODED_OUTPUTS, RAW_OUTPUTS, DetectionGraph, preparation, translations
from detection.models.retinanet import LEAST_SCORE, RetinaNet
from detection.module import DetectionModule
from detection.predict import CheckpointDetector, Detector
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import ImageSource, indices_to_look_at
from mobile_former.training.export.command import Exporter
from mobile_former.training.export.formats import IMPLEMENTATIONS
from mobile_former.training.export.latency import milliseconds
from mobile_former.training.export.options import CheckImages, add_size_rows, add_time_row
from mobile_former.training.run.report import figure

BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-4
FEW = 8  # images that a file is checked on


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
    """Export a detector to a file for inference.

    All formats except ONNX need fixed sizes, ``decode=False`` and ``preprocessing=False``.

    Before the export, :func:`mobile_former.deploy` converts the detector to an equivalent, faster model.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: options of the data module, from the checkpoint of ``module``.
        path: path of the file, with a suffix of :data:`mobile_former.training.export.arguments.FORMATS`.
        image_size: fixed height and width of the detector's input in pixels, multiples of 32. None: any.
        batch_size: number of images per batch. None: any number.
        preprocessing: whether the graph takes original uint8 images, and resizes, normalises and pads them itself.
        decode: whether the graph returns detections, for RetinaNet after non-maximum suppression. If False, the graph
            returns raw logits and boxes.

    Raises:
        InputError: the packages of the pip extra "export" are missing, or the model cannot be exported.
    """
    model = mobile_former.deploy(module.model)
    # torch.export fixes sizes that are equal or 1: examples of dynamic sizes must differ from each other and from 1.
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
    graph_options = {}
    if path.suffix == ".onnx":
        graph_options = {
            "dynamic_axes": axes if any(axes) else None,
            "translations": translations(),
            "preparation": preparation(**prepared, frame=frame, batch_size=batch_size) if preprocessing else None,
        }
    IMPLEMENTATIONS[path.suffix].write(
        DetectionGraph(model, decode=decode).eval(),
        list(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=DECODED_OUTPUTS if decode else RAW_OUTPUTS,
        **graph_options,
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
            "max_detections": module.model.max_detections,
            "sigmoid": _by_sigmoid(module.model),
            "frame": None if frame is None else list(frame),
            **prepared,
            "precision": "float32",
        },
    )


def _by_sigmoid(model: torch.nn.Module) -> bool:
    return isinstance(model, RetinaNet) or getattr(model, "focal", False)


def _describe_input(preprocessing: bool) -> str:
    """Return a text for the metadata of the file. It describes the type, shape and values of the model's inputs."""
    if preprocessing:
        return "image: uint8 (batch, height, width, 3), RGB of 0..255, as read"
    return (
        "images: float32 (batch, 3, H, W), planes of RGB, (value in 0..1 - mean) / std, padded on the right and below "
        "to multiples of 32; sizes: int64 (batch, 2), height and width of each image without its padding"
    )


def _describe_output(decode: bool, preprocessing: bool, anchors: bool, model: torch.nn.Module) -> str:
    if not decode:
        scores = (
            "scores: sigmoid of logits" if _by_sigmoid(model) else "scores: softmax of logits, last class: no object"
        )
        kind = "anchors, before non-maximum suppression" if anchors else "queries"
        return f"logits, boxes: one for each of the {kind}; {scores}; boxes: (cx, cy, w, h) in 0..1 of the image"
    pixels = "of the image" if preprocessing else "of sizes"
    return (
        f"boxes: (left, top, right, bottom) in pixels {pixels}; scores in 0..1, best first; labels, from 0; counts: "
        "number of detections of each image; entries after them have score 0 and label -1"
    )


class DetectorExporter(Exporter):
    """Exporter for detectors: the part of the ``export`` command that is specific to detection.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: dictionary with the data module's options, from the same checkpoint as ``module``.
        options: parsed command-line options.
    """

    embedded_name = "scenes"
    calibration_images = 64

    def __init__(self, module: DetectionModule, data_options: dict, options: Namespace):
        super().__init__(module, data_options, options)
        self.checkpoint = CheckpointDetector(
            module.model,
            module.hparams,
            data_options,
            frame=options.image_size,
            device="cpu",  # onnxruntime's device
        )

    def data(self) -> DetectionData:
        """Build the data module with the options that are stored in the checkpoint of the detector.

        If the user gives ``--data.root``, images and annotations are read from this folder instead.
        """
        data = labelled_data(self.data_options, {"root": self.options.data.root})
        data.class_names = self.module.hparams.class_names
        return data

    def training_images(self) -> ImageSource:
        """Return the data set of the training images, without transforms."""
        return self.data().train_source

    def embedded_images(self) -> ImageSource:
        """Return the validation split of the built-in synthetic images.

        See :class:`detection.data.scenes.Scenes`.
        """
        return Scenes("val")

    def write(self, path: Path) -> None:
        """Export the detector to a file with float32 weights."""
        write_detector(
            self.module,
            self.data_options,
            path,
            image_size=self.options.image_size,
            batch_size=None if self.options.dynamic_batch else self.options.batch_size,
            preprocessing=self.options.preprocessing,
            decode=self.options.decode,
        )

    def read(self, path: Path) -> ExportedDetector:
        """Open a file that :meth:`write` has written. Return a detector that runs the file."""
        return ExportedDetector(IMPLEMENTATIONS[path.suffix].read(path, "detection"))

    def inputs(self, file: ExportedDetector, image: np.ndarray) -> Iterable[list[np.ndarray]]:
        """Preprocess an image for the exported model, and return the model's inputs.

        Args:
            file: exported detector, as returned by :meth:`read`.
            image: original image ``(H, W, 3)`` uint8.

        Returns:
            An iterator over lists of arrays. Each list contains the inputs of one run of the model.
        """
        return file.batches([file.transform(image)])

    def check(self, file: ExportedDetector, source: ImageSource) -> tuple[str, str] | None:
        """Check that the exported model and the PyTorch model have the same detections on the same resized images.

        Detections are compared by :func:`differences`. If the detector chooses its queries, one image may differ, see
        :func:`worst_difference`.

        Args:
            file: exported detector, as returned by :meth:`read`.
            source: data set with the images for the comparison.

        Returns:
            None without ``--preprocessing``. Otherwise, a tuple (label, value) for an additional row in the table of
            :meth:`compare`. The value contains the largest differences of boxes, in pixels, and of scores.

        Raises:
            InputError: the detections differ by more than ``BOX_TOLERANCE`` or ``SCORE_TOLERANCE``.
        """
        indices = indices_to_look_at(source, FEW)
        # A graph that resizes gets images of their final size: ONNX's Resize rounds some pixels to another level.
        read = [source.read(index) for index in indices]
        images = [self.checkpoint.transform(image) for image in read]
        sizes = [image.shape[:2] for image in read]
        # RetinaNet's detections and E2E-MF's chosen queries are the best of many, so the last ones may differ.
        chooses_queries = getattr(getattr(self.module.model, "start", None), "choose_queries", False)
        complete = not (file.of_anchors or chooses_queries)
        per_image, compared = [], 0
        for part in (slice(0, 1), slice(1, 3), slice(3, None)):  # a dynamic batch has to take any number
            if images[part]:
                expected, found = (_detect(each, images[part], sizes[part]) for each in (self.checkpoint, file))
                most = self.module.model.max_detections
                for pair in zip(found, expected, strict=True):
                    per_image.append(differences(*pair, most, complete=complete))
                compared += sum(len(each["scores"]) for each in expected)
        worst = worst_difference(per_image, allow_one=chooses_queries)
        if not within_tolerance(worst):
            raise InputError(
                f"the file's boxes differ from PyTorch's by {worst[0]:.2g} pixels and its scores by {worst[1]:.1e}, "
                f"where {BOX_TOLERANCE} and {SCORE_TOLERANCE:.0e} are allowed; it was not written. Please report it, "
                "with the versions of torch and onnxruntime"
            )
        if not all(map(within_tolerance, per_image)):
            print(
                f"note: in one of the {len(per_image)} images, rounding decides which queries are chosen; it is left "
                "out of the comparison"
            )
        if not compared:
            print(
                f"warning: PyTorch finds nothing in the {len(indices)} images, so nothing was compared: give other "
                "images by --images",
                file=sys.stderr,
            )
        if not self.options.preprocessing:
            return None
        return "both without resizing", f"{worst[0]:.1e}, {worst[1]:.1e}"

    def compare(self, files: dict[str, ExportedDetector], images: CheckImages) -> Table:
        """Build a :class:`rich.table.Table` that compares exported models with the PyTorch model.

        The rows contain file size, largest differences of boxes and scores, AP, AP50 and time per image.

        Args:
            files: dictionary from the title of a column, such as the file format, to the exported detector.
            images: images for the comparison. If they have no annotations, the rows with AP and AP50 are missing.
        """
        columns = {"PyTorch": self.checkpoint, **files}
        detectors = list(columns.values())
        metrics = [self.module.metric(images.source) if images.labelled else None for _ in detectors]
        indices = indices_to_look_at(images.source, self.options.check_images)
        worst = np.zeros(2)
        for index in indices:
            image = images.source.read(index)
            found = [_detect(detector, [image], [image.shape[:2]]) for detector in detectors]
            worst = np.maximum(worst, differences(found[1][0], found[0][0], self.module.model.max_detections))
            for metric, detections in zip(metrics, found, strict=True):
                if metric is not None:
                    metric.update(detections, [images.source.image_id(index)])

        title = f"{self.module.label} on {len(indices)} images: {images.title}"
        table = Table("", *columns, title=escape(title), title_justify="left")
        add_size_rows(table, [detector.model.path for detector in files.values()])
        table.add_row("largest difference of boxes in pixels", "", f"{worst[0]:.1e}")
        table.add_row("largest difference of scores", "", f"{worst[1]:.1e}")
        if images.labelled:
            scores = [metric.compute() for metric in metrics]
            for name in ("AP", "AP50"):
                table.add_row(name, *(figure(score[name]) for score in scores))
        image = images.source.read(indices[0])
        times = []
        for detector in detectors:
            prepared = [detector.transform(image)]
            times.append(milliseconds(lambda: detector.detect(prepared, [image.shape[:2]]), 5))  # noqa: B023
        add_time_row(table, times)
        return table


def within_tolerance(difference: tuple[float, float]) -> bool:
    """Return whether the differences of boxes and scores are within ``BOX_TOLERANCE`` and ``SCORE_TOLERANCE``.

    ``difference`` is a result of :func:`differences`.
    """
    return difference[0] <= BOX_TOLERANCE and difference[1] <= SCORE_TOLERANCE  # false for NaN


def worst_difference(found: Sequence[tuple[float, float]], *, allow_one: bool) -> tuple[float, float]:
    """Return the largest differences of boxes and scores in several images.

    Args:
        found: result of :func:`differences` for each image.
        allow_one: whether one image of at least four may be outside the tolerance. It is then left out. E2E-MF chooses
            its queries by comparisons, and in about 1 % of the images, rounding decides one of them. A query is then
            another, and changes the scores of the rest.
    """
    outside = [difference for difference in found if not within_tolerance(difference)]
    if allow_one and len(outside) == 1 and len(found) >= 4:
        found = [difference for difference in found if within_tolerance(difference)]
    return tuple(np.max(found, axis=0)) if found else (0.0, 0.0)


def differences(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], max_detections: int, *, complete: bool = False
) -> tuple[float, float]:
    """Compare two sets of detections of the same image, and return the largest differences of boxes and scores.

    First, each detection is matched with at most one detection of the other set, because the order of the two sets can
    differ if scores are nearly equal. Two detections can match if they have the same class and their box coordinates
    differ by less than a pixel. The matching minimises the total difference of boxes and scores.

    The score of a detection without a match is compared with the lowest score that the other set accepts. If the other
    set is full (``max_detections``), this is its lowest score. Otherwise it is the score threshold of RetinaNet, the
    only detector that drops detections because of their scores.

    Args:
        found: dictionary with ``boxes`` ``(n, 4)``, xyxy in pixels, ``scores`` ``(n,)`` and ``labels`` ``(n,)``.
        expected: dictionary of ``m`` detections in the same format.
        max_detections: maximum number of detections in each set.
        complete: whether both sets contain all predictions of the model, even those with low scores. If True, the score
            of a prediction without a match is compared with 0. Predictions with low, nearly equal scores can then match
            even if their classes differ.

    Returns:
        The largest difference of a box coordinate in pixels, and the largest difference of a score. Both values are
        infinite if any input is not finite.
    """
    pair = [{name: values.double().numpy() for name, values in each.items()} for each in (found, expected)]
    if not all(np.isfinite(values).all() for each in pair for values in each.values()):
        return np.inf, np.inf
    boxes, scores, labels = ([each[name] for each in pair] for name in ("boxes", "scores", "labels"))
    box = np.abs(boxes[0][:, None] - boxes[1]).max(-1, initial=0)
    score = np.abs(scores[0][:, None] - scores[1])
    partners = labels[0][:, None] == labels[1]
    if complete:  # the best class of an empty query is often decided by rounding
        partners |= (score <= SCORE_TOLERANCE) & (np.maximum(scores[0][:, None], scores[1]) <= LEAST_SCORE)
    partners &= box < 1
    cost = np.where(partners, box / BOX_TOLERANCE + score / SCORE_TOLERANCE, 1e9)
    rows, columns = linear_sum_assignment(cost)
    chosen = partners[rows, columns]
    rows, columns = rows[chosen], columns[chosen]
    worst = score[rows, columns].max(initial=0)
    for own, partnered, other in ((0, rows, 1), (1, columns, 0)):
        least = 0 if complete else scores[other].min() if len(scores[other]) == max_detections else LEAST_SCORE
        worst = max(worst, (np.delete(scores[own], partnered) - least).max(initial=0))
    return float(box[rows, columns].max(initial=0)), float(worst)


def _detect(
    detector: Detector, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, torch.Tensor]]:
    return detector.detect(list(map(detector.transform, images)), sizes)
