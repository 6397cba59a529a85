"""Classifying images with a model from a checkpoint or an ONNX file, without Lightning."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import mobile_former
from classification.classifier import create_classifier
from classification.data.resizing import resize_and_crop
from mobile_former.training.data.images import to_batch
from mobile_former.training.prediction.inputs import Input, as_input
from mobile_former.training.prediction.loading import Loaded
from mobile_former.training.prediction.predicting import predict_inputs
from mobile_former.training.run.checkpoint import naming_damage, read_checkpoint, require_data_options


class Classifier(Protocol):
    """Interface of a classifier that :func:`predict` can run. The classifier comes from a checkpoint or an ONNX file.

    Attributes:
        class_names: class names in the order of the logits.
        transform: function that prepares images ``(..., H, W, 3)`` uint8 for :meth:`logits`.
    """

    class_names: list[str]
    transform: Callable[[np.ndarray], np.ndarray]

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the logits ``(B, K)`` of a list of images ``(H, W, 3)`` uint8 that ``transform`` has prepared."""


class CheckpointClassifier:
    """Classifier from a checkpoint, with the interface of :class:`Classifier`. It runs on the GPU if available.

    Args:
        model: trained classifier, or its inference form (:func:`mobile_former.deploy`).
        options: hyperparameters in the checkpoint, with ``class_names``.
        data_options: options of the data module in the checkpoint.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any], data_options: Mapping[str, Any]):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.options = options
        self.class_names = list(options["class_names"])
        size, fraction = data_options["image_size"], data_options["crop_fraction"]
        self.transform = partial(resize_and_crop, image_size=size, crop_fraction=fraction)
        self.mean, self.std = data_options["mean"], data_options["std"]

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the logits ``(B, K)`` of a list of square images ``(S, S, 3)`` uint8, prepared by ``transform``."""
        return self.model(to_batch(images, self.mean, self.std, self.device))


def load_classifier(path: str | Path, *, inference_form: bool = True) -> CheckpointClassifier:
    """Load a classifier from a checkpoint that ``classification.fit`` has written.

    Args:
        path: path of the ``.ckpt`` file.
        inference_form: whether to convert the model by :func:`mobile_former.deploy`, which makes it faster.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged or not a checkpoint of classification.
    """
    model, options, data_options = read_classifier(path)
    model = model.to(memory_format=torch.channels_last)
    return CheckpointClassifier(mobile_former.deploy(model) if inference_form else model, options, data_options)


def read_classifier(path: str | Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Read a classifier from a checkpoint that ``classification.fit`` has written.

    Returns:
        A tuple (model, options, data options): the model in evaluation mode, the hyperparameters of the run, and the
        options of its data module.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged or not a checkpoint of classification.
    """
    content = read_checkpoint(path, "classification")
    with naming_damage(path):
        options, data_options = content["hyper_parameters"], content["datamodule_hyper_parameters"]
        model = create_classifier(
            options["name"],
            len(options["class_names"]),
            ablation=options.get("ablation"),
            image_size=options.get("image_size"),
        )
        prefix = "model."
        model.load_state_dict({name.removeprefix(prefix): value for name, value in content["state_dict"].items()})
        require_data_options(data_options)
    return model.eval(), options, data_options


def predict(classifier: Classifier, paths: Sequence[str | Path], *, top_k: int = 5, batch_size: int = 32) -> list[dict]:
    """Classify image files, URLs of images, and videos.

    Args:
        classifier: classifier to run.
        paths: paths or URLs of the images and videos.
        top_k: maximum number of classes in the result of an image.
        batch_size: number of images in a batch.

    Returns:
        List with one dictionary for each image, in the given order. It has the keys ``path``, ``class``,
        ``probability`` and ``top_k``. ``class`` is the name of the most probable class. ``top_k`` is a list of
        dictionaries with the keys ``class`` and ``probability``, most probable first. For a video, there is one
        dictionary for each frame. It also has the keys ``frame`` (number of the frame) and ``seconds`` (time of the
        frame). If an image cannot be read, its dictionary has only the keys ``path`` and ``error`` (a message).
    """
    inputs = list(map(as_input, paths))
    return [prediction for _, prediction in classify(classifier, inputs, top_k=top_k, batch_size=batch_size)]


def classify(
    classifier: Classifier, inputs: Sequence[Input], *, top_k: int = 5, batch_size: int = 32, **loading: Any
) -> Iterator[tuple[Loaded, dict]]:
    """Classify images, and the frames of videos and cameras.

    Args:
        classifier: classifier to run.
        inputs: images, videos and cameras.
        top_k: maximum number of classes in the result of an image.
        batch_size: number of images in a batch.
        **loading: ``keep_originals`` and ``max_frames`` of :func:`predict_inputs`.

    Yields:
        A tuple (image, prediction) for each image or frame. The prediction is a dictionary as in :func:`predict`.
    """
    names = classifier.class_names

    def predict_batch(batch: Sequence[Loaded]) -> Iterator[dict]:
        best = classifier.logits([loaded.image for loaded in batch]).softmax(1).topk(min(top_k, len(names)))
        for values, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            top = [
                {"class": names[label], "probability": round(value, 6)}
                for value, label in zip(values, labels, strict=True)
            ]
            yield {**top[0], "top_k": top}

    return predict_inputs(inputs, classifier.transform, predict_batch, batch_size=batch_size, **loading)
