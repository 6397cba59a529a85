"""The kinds of files to fuzz, and the functions under test that read each kind.

Such a function is called a reader. It takes the path of a file. It returns None on success, and otherwise returns an
error message or raises an error.
"""

import contextlib
import io
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

import classification.data.transforms
import classification.fit
import classification.predict
import detection
import detection.fit
import detection.predict
import detection.transforms
import mobile_former
from classification.data.resizing import resize_and_crop
from detection.data.module import DetectionData
from detection.data.resizing import resize_to_fit
from detection.evaluation import CocoAP
from detection.models.weights import load_detector_weights
from experiments.fuzz import damage
from mobile_former.training.cli.fit import FitCLI
from mobile_former.training.data.images import ImageError, read_image
from mobile_former.training.data.sampler import Draw

# Reads a file and returns its error message; None on success.
Reader = Callable[[Path], str | None]


class Kind(NamedTuple):
    """A kind of file, such as images or configs.

    Attributes:
        make: function that takes a random generator and returns the name and the content of a file of this kind.
        readers: dictionary from a name to a function under test. The function takes the path of a file of this kind,
            and returns an error message or None.
    """

    make: Callable[[random.Random], damage.File]
    readers: dict[str, Reader]


def read_for_classification(path: Path) -> str | None:
    """Read and transform an image as ``classification.predict`` and ``classification.fit`` do."""
    train = classification.data.transforms.train_transform(224, rand_augment=True)
    return _read_image(path, lambda image: resize_and_crop(image, 224), train)


def read_for_detection(path: Path) -> str | None:
    """Read and transform an image as ``detection.predict`` and ``detection.fit`` do."""
    train, boxes = detection.transforms.train_transform(), {"bboxes": np.zeros((0, 4)), "labels": []}
    return _read_image(path, resize_to_fit, train, **boxes)


def _read_image(path: Path, evaluate: Callable, train: Callable, **boxes) -> str | None:
    """Read an image, and apply the transforms of evaluation and those of training to it.

    Args:
        path: path of the image file.
        evaluate: transform of evaluation, a function that takes the image.
        train: albumentations transforms of training.
        **boxes: further keyword arguments of ``train``.

    Returns:
        The error message if the image cannot be read, otherwise None.
    """
    try:
        image = read_image(path)
    except ImageError as error:
        return str(error)
    evaluate(image)
    train(image=image, **boxes)
    return None


class Unfitted(FitCLI):
    """A version of the ``fit`` command that builds the data and the model, but does not train."""

    def instantiate_trainer(self, **kwargs) -> None:
        """Do nothing, because no trainer is needed."""

    def fit(self) -> None:
        """Do nothing instead of training."""


def parse_config(path: Path, *options: str) -> str | None:
    """Parse a training config in the same way as ``fit``.

    Args:
        path: the config file. Its name must start with the task and a hyphen.
        options: further command-line options of ``fit``.

    Returns:
        The error message that ``fit`` prints, or None if ``fit`` accepts the config.
    """
    fit = {"classification": classification.fit, "detection": detection.fit}[path.name.partition("-")[0]]
    errors = io.StringIO()
    with (
        mock.patch.object(fit, "FitCLI", Unfitted),
        mock.patch.object(sys, "argv", ["fit", "--config", str(path), *options]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            fit.main()
        except SystemExit as status:
            return None if status.code == 0 else errors.getvalue()
    return None


def read_coco(path: Path) -> str | None:
    """Read a COCO data set as ``fit`` and ``validate`` do: load samples of both splits, and score a few boxes.

    Returns:
        The first error message of a sample, otherwise None.
    """
    files, folders = (dict.fromkeys(("train", "val"), str(value)) for value in (path, path.parents[1] / "images"))
    sizes = {"short_sides": (64,), "short_side": 64, "longest": 128}
    data = DetectionData(annotations=files, images=folders, num_workers=0, **sizes)
    data.setup("fit")
    truth = data.val_set.source.ground_truth()
    average_precision = CocoAP(truth, data.val_set.source.category_ids)
    for index in range(min(5, len(data.val_set))):
        samples = data.train_set[Draw(index, 0)], data.val_set[index]
        for sample in samples:
            if "--data.train_transforms failed" in sample.get("error", ""):
                raise AssertionError(sample["error"])  # there are no such transforms
        messages = [message for sample in samples for message in (sample.get("error"), *sample["failures"]) if message]
        if messages:
            return messages[0]
        found = {"boxes": torch.tensor([[1.0, 1, 20, 20]]), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
        average_precision.update([found], [samples[1]["image_id"]])
    average_precision.compute()
    return None


def load_classifier(path: Path) -> None:
    """Load weights as ``--model.pretrained`` of a classifier does."""
    mobile_former.load_weights(_models()["classifier"], path)


def load_detector(path: Path) -> None:
    """Load weights as ``--model.pretrained`` of a detector does."""
    load_detector_weights(_models()["detector"], path)


@cache
def _models() -> dict[str, torch.nn.Module]:
    detector = detection.create_detector("e2e_mf_26m", num_classes=2)
    return {"classifier": mobile_former.mobile_former_26m(num_classes=2), "detector": detector}


def predict_classes(path: Path) -> None:
    """Load a checkpoint as ``classification.predict`` does, and classify a valid image."""
    classifier = classification.predict.load_classifier(path)
    classification.predict.predict(classifier, [path.parents[1] / "images" / "1.png"])


def predict_boxes(path: Path) -> None:
    """Load a checkpoint as ``detection.predict`` does, and detect the objects in a valid image."""
    detector = detection.predict.load_detector(path)
    list(detection.predict.predict(detector, [path.parents[1] / "images" / "1.png"]))


KINDS = {
    "images": Kind(
        damage.image, {"classification's reader": read_for_classification, "detection's reader": read_for_detection}
    ),
    "configs": Kind(
        damage.config, {"fit": parse_config, "fit --print_config": lambda path: parse_config(path, "--print_config")}
    ),
    "coco": Kind(damage.coco, {"detection's data": read_coco}),
    "weights": Kind(
        damage.weights,
        {
            "load_weights": load_classifier,
            "load_detector_weights": load_detector,
            "classification.predict": predict_classes,
            "detection.predict": predict_boxes,
        },
    ),
}
