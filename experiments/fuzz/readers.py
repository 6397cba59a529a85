"""The kinds of files to fuzz, and the readers under test for each kind.

A reader is a function that reads one file. It returns None on success, and may return an error message.
"""

import contextlib
import io
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
from classification.module import ClassificationModule
from detection.data.module import DetectionData
from detection.evaluation import CocoAP
from detection.models.weights import load_detector_weights
from detection.module import DetectionModule
from experiments.fuzz import damage
from mobile_former.training.cli.fit import FitCLI
from mobile_former.training.data.images import ImageFiles, read_image
from mobile_former.training.data.sampler import Draw
from mobile_former.training.run.checkpoint import load_checkpoint

# Reads a file and returns its error message; None on success.
Reader = Callable[[Path], str | None]


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        make: makes a file of this kind from a random generator.
        readers: readers of this kind of file, by name.
    """

    make: Callable[[random.Random], damage.File]
    readers: dict[str, Reader]


def read_for_classification(path: Path) -> str | None:
    """Read and transform an image as ``classification.predict`` and ``classification.fit`` do."""
    sample = ImageFiles([path], classification.data.transforms.eval_transform(224))[0]
    if isinstance(sample, str):
        return sample
    classification.data.transforms.train_transform(224, rand_augment=True)(image=read_image(path))
    return None


def read_for_detection(path: Path) -> str | None:
    """Read and transform an image as ``detection.predict`` and ``detection.fit`` do."""
    boxes = {"bboxes": np.zeros((0, 4)), "labels": []}
    sample = ImageFiles([path], detection.transforms.eval_transform(), **boxes)[0]
    if isinstance(sample, str):
        return sample
    detection.transforms.train_transform()(image=read_image(path), **boxes)
    return None


class Unfitted(FitCLI):
    """The command line of ``fit``, reduced to building the data and the model: no trainer is built."""

    def instantiate_trainer(self, **kwargs) -> None:
        """Build no trainer."""

    def fit(self) -> None:
        """Train nothing."""


def parse_config(path: Path, *options: str) -> str | None:
    """Read a config as ``fit`` does. The file's name must start with the task and a hyphen."""
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


def print_config(path: Path) -> str | None:
    """Read a config as ``fit --print_config`` does."""
    return parse_config(path, "--print_config")


def read_coco(path: Path) -> str | None:
    """Read a COCO data set as ``fit`` and ``validate`` do: load samples of both splits and evaluate some boxes."""
    files, folders = ({split: str(value) for split in ("train", "val")} for value in (path, path.parents[1] / "images"))
    data = DetectionData(
        annotations=files, images=folders, short_sides=(64,), short_side=64, longest=128, num_workers=0
    )
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
    mobile_former.load_weights(_models()[0], path)


def load_detector(path: Path) -> None:
    """Load weights as ``--model.pretrained`` of a detector does."""
    load_detector_weights(_models()[1], path)


@cache
def _models() -> tuple[torch.nn.Module, torch.nn.Module]:
    return mobile_former.mobile_former_26m(num_classes=2), detection.create_detector("e2e_mf_26m", num_classes=2)


def predict_classes(path: Path) -> None:
    """Load a checkpoint as ``classification.predict`` does, and predict the class of an image."""
    module, options = load_checkpoint(path, ClassificationModule, "classification")
    classifier = classification.predict.CheckpointClassifier(module, options)
    classification.predict.predict(classifier, [path.parents[1] / "images" / "1.png"])


def predict_boxes(path: Path) -> None:
    """Load a checkpoint as ``detection.predict`` does, and predict the boxes in an image."""
    module, options = load_checkpoint(path, DetectionModule, "detection")
    detector = detection.predict.CheckpointDetector(module, options)
    list(detection.predict.predict(detector, [path.parents[1] / "images" / "1.png"]))


KINDS = {
    "images": Kind(
        damage.image, {"classification's reader": read_for_classification, "detection's reader": read_for_detection}
    ),
    "configs": Kind(damage.config, {"fit": parse_config, "fit --print_config": print_config}),
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
