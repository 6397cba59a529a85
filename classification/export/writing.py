"""Export a classifier to a file for inference, and compare its logits with those of PyTorch."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

import mobile_former
from classification.data.digits import Digits
from classification.data.module import ClassificationData
from classification.data.resizing import resize_and_crop, resize_shorter_side, shorter_side
from classification.evaluate import labelled_data
from classification.export.exported_classifier import ClassifierGraph, ExportedClassifier, Preprocessing
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import ImageSource, indices_to_look_at
from mobile_former.training.data.images import normalise, to_planes
from mobile_former.training.export.command import Exporter
from mobile_former.training.export.formats import IMPLEMENTATIONS
from mobile_former.training.export.latency import milliseconds
from mobile_former.training.export.onnx_file import relative_difference
from mobile_former.training.export.options import CheckImages, add_size_rows, add_time_row

TOLERANCE = 1e-4  # largest difference of the logits, relative to their largest magnitude
BATCH = 16  # largest batch for the comparison
FEW = 32  # number of images for `ClassifierExporter.check`


def write_classifier(
    module: ClassificationModule,
    data_options: dict,
    path: Path,
    *,
    preprocessing: Preprocessing = "none",
    batch_size: int | None = 1,
    dynamic_size: bool = False,
) -> None:
    """Export a classifier to a file for inference.

    Before the export, :func:`mobile_former.deploy` converts the classifier to an equivalent, faster model.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: options of the data module, from the checkpoint of ``module``.
        path: path of the file, with a suffix of :data:`mobile_former.training.export.arguments.FORMATS`.
        preprocessing: ``"none"``, ``"normalise"`` or ``"resize_and_normalise"``: the preprocessing to include in the
            file.
        batch_size: number of images per batch. None: any number.
        dynamic_size: whether the file accepts images of any size. If False, it accepts only the size in
            ``data_options``.

    Raises:
        InputError: packages for the export are not installed, or the model cannot be exported.
    """
    size = data_options["image_size"]
    batch = batch_size or 2  # the sizes of dynamic axes must differ from each other and from 1
    height, width = (size + 32, size + 64) if dynamic_size else (size, size)
    axes = ({} if batch_size else {0: "batch"}) | (
        {} if not dynamic_size else dict(enumerate(("height", "width"), start=2 if preprocessing == "none" else 1))
    )
    if preprocessing == "none":
        images = torch.zeros(batch, 3, height, width)
    else:
        images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    IMPLEMENTATIONS[path.suffix].write(
        ClassifierGraph(mobile_former.deploy(module.model), preprocessing, data_options).eval().cpu(),
        [images],
        path,
        input_names=["images"],
        output_names=["logits"],
        **({"dynamic_axes": [axes]} if axes else {}),
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


def _describe_input(images: torch.Tensor, axes: dict[int, str], preprocessing: Preprocessing) -> str:
    """Return a text for the metadata of the file. It describes the type, shape and values of the model's input."""
    shape = ", ".join(str(axes.get(axis, side)) for axis, side in enumerate(images.shape))
    if preprocessing == "none":
        return f"float32 ({shape}), planes of RGB: (value in 0..1 - mean) / std"
    return f"uint8 ({shape}), RGB of 0..255"


class ClassifierExporter(Exporter):
    """Exporter for classifiers: the part of the ``export`` command that is specific to classification.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: dictionary with the options of the data module, from the checkpoint of ``module``.
        options: parsed command-line options.
    """

    embedded_name = "digits"
    calibration_images = 128

    def __init__(self, module: ClassificationModule, data_options: dict, options: Namespace):
        super().__init__(module, data_options, options)
        self.preprocessing: Preprocessing = "none"
        if options.preprocessing:
            self.preprocessing = "resize_and_normalise" if options.dynamic_size else "normalise"

    def data(self) -> ClassificationData:
        """Build the data module with the options that are stored in the checkpoint of the classifier.

        If the user gives ``--data.root``, the images are read from this location instead.
        """
        data = labelled_data(self.options.ckpt_path, self.data_options, {"root": self.options.data.root})
        data.class_names = self.module.hparams.class_names
        return data

    def training_images(self) -> ImageSource:
        """Return the data set of the training images, without transforms."""
        data = self.data()
        data.setup("fit")
        return data.train_set.source

    def embedded_images(self) -> ImageSource:
        """Return the validation split of scikit-learn's handwritten digits, which need no download."""
        return Digits("val")

    def write(self, path: Path) -> None:
        """Export the classifier to a file with float32 weights."""
        write_classifier(
            self.module,
            self.data_options,
            path,
            preprocessing=self.preprocessing,
            batch_size=None if self.options.dynamic_batch else self.options.batch_size,
            dynamic_size=self.options.dynamic_size,
        )

    def read(self, path: Path) -> ExportedClassifier:
        """Load a file written by :meth:`write`. Return a classifier that runs the file."""
        return ExportedClassifier(IMPLEMENTATIONS[path.suffix].read(path, "classification"))

    def inputs(self, file: ExportedClassifier, image: np.ndarray) -> Iterable[list[np.ndarray]]:
        """Preprocess an image for the exported model. Return an iterator over lists of input arrays.

        Each list contains the inputs of one run of the model.

        Args:
            file: exported classifier, as returned by :meth:`read`.
            image: original image ``(H, W, 3)`` uint8.
        """
        return file.batches([file.transform(image)])

    def check(self, file: ExportedClassifier, source: ImageSource) -> tuple[str, str] | None:
        """Check that the exported model and the PyTorch model have the same logits on the same pixels.

        If the exported model resizes images, both models get images whose shorter side already has the final size, so
        that no resizing is necessary. The reason is that ONNX rounds some resized pixels differently from PyTorch.

        Args:
            file: exported classifier, as returned by :meth:`read`.
            source: data set with the images for the comparison.

        Returns:
            If the exported model resizes images, a tuple (label, value) with the difference of the logits. It is an
            additional row for the table that :meth:`compare` returns. If the exported model does not resize, None.

        Raises:
            InputError: the largest difference is above ``TOLERANCE`` times the largest magnitude of the logits.
        """
        indices = indices_to_look_at(source, FEW)
        if file.preprocessing == "resize_and_normalise":
            source = ResizedImages(source, self.data_options)  # ONNX's Resize rounds some pixels to another level
        expected, (found,) = _logits(self.module, self.data_options, [file], source, indices)
        difference = relative_difference(found, expected)
        if self.options.dynamic_size and file.preprocessing == "none":
            other = self.data_options | {"image_size": self.data_options["image_size"] + 45}  # odd, other remainders
            resized = copy.copy(file)
            resized.transform = partial(
                resize_and_crop, image_size=other["image_size"], crop_fraction=other["crop_fraction"]
            )
            expected, (found,) = _logits(self.module, other, [resized], source, indices)
            difference = max(difference, relative_difference(found, expected))
        if not difference <= TOLERANCE:  # NaN too
            raise InputError(
                f"the file is not written: its logits differ from PyTorch's by {difference:.1e} of their scale, more "
                f"than the allowed {TOLERANCE:.0e}. Please report this with your versions of torch and onnxruntime"
            )
        if file.preprocessing == "resize_and_normalise":
            return "difference where nothing is resized", f"{difference:.1e}"
        return None

    def compare(self, files: dict[str, ExportedClassifier], images: CheckImages) -> Table:
        """Build a :class:`rich.table.Table` that compares exported models with the PyTorch model.

        The rows contain file size, difference of logits, fraction of equal predictions, accuracy and time per image.

        Args:
            files: dictionary from the title of a column, such as the file format, to the exported classifier.
            images: images for the comparison. If they have no labels, the row with the accuracy is missing.
        """
        module, options = self.module, self.data_options
        classifiers = list(files.values())
        indices = indices_to_look_at(images.source, self.options.check_images)
        expected, found = _logits(module, options, classifiers, images.source, indices)
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
        planes = to_planes(resize_and_crop(image, options["image_size"], options["crop_fraction"]))
        with torch.inference_mode():
            normalised = normalise(planes[None], options["mean"], options["std"])
            times = [milliseconds(lambda: module(normalised))]
        for classifier in classifiers:
            (inputs,) = self.inputs(classifier, image)
            times.append(milliseconds(lambda: classifier.model(*inputs)) / len(inputs[0]))  # noqa: B023
        add_time_row(table, times)
        return table


class ResizedImages:
    """Data set of images that are already resized as in evaluation, but not cropped.

    The evaluation transform does not resize these images again. It only crops them.

    Args:
        source: original images.
        data_options: dictionary with ``image_size`` and ``crop_fraction``.
    """

    def __init__(self, source: ImageSource, data_options: dict):
        self.source = source
        self.size = shorter_side(data_options["image_size"], data_options["crop_fraction"])

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> np.ndarray:
        """Return an image ``(H, W, 3)`` uint8 RGB, resized as in evaluation but not cropped."""
        return resize_shorter_side(self.source.read(index), self.size)

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        return self.source.name(index)


def _logits(
    module: ClassificationModule,
    data_options: dict,
    classifiers: Sequence[ExportedClassifier],
    source: ImageSource,
    indices: Sequence[int],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compute the logits of the PyTorch model and of each exported model on the same images.

    Each model has its own preprocessing.

    Args:
        module: PyTorch model.
        data_options: dictionary with ``image_size``, ``crop_fraction``, ``mean`` and ``std`` for the PyTorch model.
        classifiers: exported models.
        source: data set with the images.
        indices: indices of the N images in the data set.

    Returns:
        A tuple of the logits ``(N, K)`` of the PyTorch model, and a list with the logits ``(N, K)`` of each exported
        model.
    """
    transform = partial(
        resize_and_crop, image_size=data_options["image_size"], crop_fraction=data_options["crop_fraction"]
    )
    expected, found = [], [[] for _ in classifiers]
    start, size = 0, 1
    while start < len(indices):  # batches of 1, 2, 4, … images, because a dynamic batch must accept any size
        images = [source.read(index) for index in indices[start : start + size]]
        start, size = start + size, min(2 * size, BATCH)
        planes = torch.stack([to_planes(transform(image)) for image in images])
        with torch.inference_mode():
            expected.append(module(normalise(planes, data_options["mean"], data_options["std"])).numpy())
        for classifier, logits in zip(classifiers, found, strict=True):
            logits.append(classifier.logits(list(map(classifier.transform, images))).numpy())
    return np.concatenate(expected), [np.concatenate(logits) for logits in found]


def _share(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())
