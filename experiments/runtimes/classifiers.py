"""The classifiers that the runtimes are compared on, and their images."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import mobile_former
from classification.data.digits import Digits
from classification.evaluate import labelled_data
from classification.module import ClassificationModule
from mobile_former.training.data.dataset import indices_to_look_at
from mobile_former.training.data.images import normalise, to_planes
from mobile_former.training.run.checkpoint import load_checkpoint

MEAN = STD = (0.5, 0.5, 0.5)  # of embedded digits, for pixel values in 0..1


@dataclass(frozen=True)
class Classifier:
    """A classifier with images.

    Attributes:
        name: name of the model.
        module: the classifier in evaluation mode.
        images: normalised images ``(N, 3, S, S)``.
        labels: label of each image, ``(N,)``. None: the weights are random.
    """

    name: str
    module: torch.nn.Module
    images: torch.Tensor
    labels: np.ndarray | None = None


def digit_images(split: str, side: int) -> torch.Tensor:
    """Return a split of scikit-learn's handwritten digits, as images ``(N, 3, side, side)`` in -1..1."""
    digits = Digits(split)
    planes = torch.stack([to_planes(digits.read(index)) for index in range(len(digits))])
    return normalise(F.interpolate(planes, (side, side), mode="bilinear", antialias=True), MEAN, STD)


def random_classifier(name: str, side: int, count: int) -> Classifier:
    """Build a classifier with random weights that give different images different classes.

    Args:
        name: name of the model.
        side: side of the images in pixels.
        count: maximum number of images.
    """
    torch.manual_seed(0)
    model = mobile_former.create_model(name, 10)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return Classifier(name, model.eval(), digit_images("val", side)[:count])


def trained_classifier(ckpt_path: str, count: int) -> Classifier:
    """Load a checkpoint of ``classification.fit`` and validation images of its data set.

    Args:
        ckpt_path: path of the checkpoint.
        count: maximum number of images, which are spread over the data set.

    Raises:
        FileNotFoundError: the checkpoint or the data set does not exist.
        InputError: the checkpoint or the data set is damaged.
    """
    module, options = load_checkpoint(ckpt_path, ClassificationModule, "classification")
    data = labelled_data(ckpt_path, options, {})
    data.class_names = module.hparams.class_names
    data.setup("validate")
    samples = [data.val_set[index] for index in indices_to_look_at(data.val_set.source, count)]
    images = normalise(torch.stack([sample["image"] for sample in samples]), options["mean"], options["std"])
    return Classifier(module.hparams.name, module.model, images, np.array([sample["label"] for sample in samples]))
