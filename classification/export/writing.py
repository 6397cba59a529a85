"""Write a classifier as ONNX or ExecuTorch file, and check it."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

import mobile_former
from classification.data.transforms import ResizeShorterSide, eval_transform, shorter_side
from classification.export.exported_classifier import ClassifierGraph, ExportedClassifier, Preprocessing
from classification.module import ClassificationModule
from mobile_former.training.data.dataset import ImageSource, indices_to_look_at
from mobile_former.training.data.images import normalise, to_planes
from mobile_former.training.export.executorch_file import ExecutorchModel, write_executorch
from mobile_former.training.export.latency import milliseconds
from mobile_former.training.export.onnx_file import OnnxModel, relative_difference, write_onnx
from mobile_former.training.export.options import (
    CheckImages,
    add_size_rows,
    add_time_row,
)

TOLERANCE = 1e-4  # of the greatest magnitude of the logits
CALIBRATION_IMAGES = 128
BATCH = 16  # images that are checked at once
FEW = 32  # images are enough for a second look


def write_classifier(
    module: ClassificationModule,
    data_options: dict,
    path: Path,
    *,
    preprocessing: Preprocessing = "none",
    batch_size: int | None = 1,
    dynamic_size: bool = False,
) -> None:
    """Write the inference form of a classifier as an ONNX file, or as an ExecuTorch program.

    Args:
        module: and
        data_options: as :func:`mobile_former.training.run.checkpoint.load_checkpoint` gives them.
        path: the file, ``.onnx`` or ``.pte``.
        preprocessing: how much of its images' preparation lies in the graph.
        batch_size: images that it takes at once; None for any number.
        dynamic_size: whether it takes images of any size (that the graph resizes, if it is to).

    Raises:
        InputError: the optional extra is missing, or the model cannot be exported.
    """
    size = data_options["image_size"]
    batch = batch_size or 2  # sizes that are to be dynamic differ from each other, and from 1
    height, width = (size + 32, size + 64) if dynamic_size else (size, size)
    axes = ({} if batch_size else {0: "batch"}) | (
        {} if not dynamic_size else dict(enumerate(("height", "width"), start=2 if preprocessing == "none" else 1))
    )
    if preprocessing == "none":
        images = torch.zeros(batch, 3, height, width)
    else:
        images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    write, dynamic = (
        (write_executorch, {}) if path.suffix == ".pte" else (write_onnx, {"dynamic_axes": [axes] if axes else None})
    )
    write(
        ClassifierGraph(mobile_former.deploy(module.model), preprocessing, data_options).eval().cpu(),
        [images],
        path,
        input_names=["images"],
        output_names=["logits"],
        **dynamic,
        metadata={
            "task": "classification",
            "model": module.hparams.name,
            "class_names": module.hparams.class_names,
            "input": _describe_input(images, axes, preprocessing),
            "output": "logits (batch, classes): their softmax are probabilities",
            "preprocessing": preprocessing,
            **{name: data_options[name] for name in ("image_size", "crop_fraction", "mean", "std")},
            "precision": "float32",
        },
    )


def _read(path: Path) -> ExportedClassifier:
    return ExportedClassifier((ExecutorchModel if path.suffix == ".pte" else OnnxModel)(path, "classification"))


def _describe_input(images: torch.Tensor, axes: dict[int, str], preprocessing: Preprocessing) -> str:
    """The input's conventions in words, for whoever writes the program around the model."""
    shape = ", ".join(str(axes.get(axis, side)) for axis, side in enumerate(images.shape))
    if preprocessing == "none":
        return f"float32 ({shape}), planes of RGB: (value in 0..1 - mean) / std"
    return f"uint8 ({shape}), RGB of 0..255"


def _planes(classifier: ExportedClassifier, image: np.ndarray) -> torch.Tensor:
    return to_planes(classifier.transform(image=image)["image"])


class ResizedImages:
    """Images that evaluation only has to crop.

    Args:
        source: the images.
        data_options: ``image_size`` and ``crop_fraction``.
    """

    def __init__(self, source: ImageSource, data_options: dict):
        self.source = source
        self.resize = ResizeShorterSide(shorter_side(data_options["image_size"], data_options["crop_fraction"]))

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB."""
        return self.resize(image=self.source.read(index))["image"]

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        return self.source.name(index)


def _worst_difference(
    module: ClassificationModule,
    data_options: dict,
    classifier: ExportedClassifier,
    source: ImageSource,
    dynamic_size: bool,
) -> float:
    """How far a file's logits are from PyTorch's, relative to their scale, on the same pixels."""
    indices = indices_to_look_at(source, FEW)
    if classifier.preprocessing == "resize_and_normalise":
        source = ResizedImages(source, data_options)  # as ONNX's Resize rounds some pixels to another level
    expected, (found,) = _logits(module, data_options, [classifier], source, indices)
    difference = relative_difference(found, expected)
    if dynamic_size and classifier.preprocessing == "none":
        other = data_options | {"image_size": data_options["image_size"] + 45}  # odd, and of other remainders
        classifier = copy.copy(classifier)
        classifier.transform = eval_transform(other["image_size"], other["crop_fraction"])
        expected, (found,) = _logits(module, other, [classifier], source, indices)
        difference = max(difference, relative_difference(found, expected))
    return difference


def _logits(
    module: ClassificationModule,
    data_options: dict,
    classifiers: Sequence[ExportedClassifier],
    source: ImageSource,
    indices: Sequence[int],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits ``(N, K)`` of images, by PyTorch as evaluation prepares them, and by files as they do."""
    transform = eval_transform(data_options["image_size"], data_options["crop_fraction"])
    expected, found = [], [[] for _ in classifiers]
    start, size = 0, 1
    while start < len(indices):  # batches of 1, 2, 4, … images, as a dynamic batch has to take them all
        images = [source.read(index) for index in indices[start : start + size]]
        start, size = start + size, min(2 * size, BATCH)
        planes = torch.stack([to_planes(transform(image=image)["image"]) for image in images])
        with torch.inference_mode():
            expected.append(module(normalise(planes, data_options["mean"], data_options["std"])).numpy())
        for classifier, logits in zip(classifiers, found, strict=True):
            logits.append(classifier.logits([_planes(classifier, image) for image in images]).numpy())
    return np.concatenate(expected), [np.concatenate(logits) for logits in found]


def _comparison(
    module: ClassificationModule,
    data_options: dict,
    files: dict[str, ExportedClassifier],
    images: CheckImages,
    most: int,
) -> Table:
    """A table of PyTorch beside the files."""
    classifiers = list(files.values())
    indices = indices_to_look_at(images.source, most)
    expected, found = _logits(module, data_options, classifiers, images.source, indices)
    title = f"{module.label} on {len(indices)} images: {images.title}"
    table = Table("", "PyTorch", *files, title=escape(title), title_justify="left")
    add_size_rows(table, [classifier.model.path for classifier in classifiers])
    table.add_row(
        "greatest difference of logits / their scale",
        "",
        *(f"{relative_difference(logits, expected):.1e}" for logits in found),
    )
    table.add_row("same class", "", *(f"{_share(logits, expected.argmax(1)):.4f}" for logits in found))
    if images.labelled:
        labels = np.array([images.source.labels[index] for index in indices])
        table.add_row("top1", *(f"{_share(logits, labels):.4f}" for logits in (expected, *found)))
    image = images.source.read(indices[0])
    planes = to_planes(eval_transform(data_options["image_size"], data_options["crop_fraction"])(image=image)["image"])
    with torch.inference_mode():
        normalised = normalise(planes[None], data_options["mean"], data_options["std"])
        times = [milliseconds(lambda: module(normalised))]
    for classifier in classifiers:
        (inputs,) = classifier.batches([_planes(classifier, image)])
        times.append(milliseconds(lambda: classifier.model(*inputs)) / len(inputs[0]))  # noqa: B023
    add_time_row(table, times)
    return table


def _share(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())
