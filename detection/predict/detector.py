"""Detecting objects in images with a model from a checkpoint or an ONNX file, without Lightning."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import mobile_former
from detection.data.resizing import resize_to_fit
from detection.inference import category_ids, configured_detector, detect
from mobile_former.training.data.images import to_planes
from mobile_former.training.prediction.inputs import Input, as_input
from mobile_former.training.prediction.loading import Loaded
from mobile_former.training.prediction.predicting import predict_inputs
from mobile_former.training.run.checkpoint import naming_damage, read_checkpoint, require_data_options


class Detector(Protocol):
    """Interface of a detector that :func:`predict` can run. The detector comes from a checkpoint or an ONNX file.

    Attributes:
        class_names: class names in the order of the labels.
        category_ids: COCO category ids in the order of the labels.
        transform: function that prepares images ``(..., H, W, 3)`` uint8 for :meth:`detect`.
    """

    class_names: list[str]
    category_ids: list[int]
    transform: Callable[[np.ndarray], np.ndarray]

    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detect objects in one or more images.

        Args:
            images: images prepared by ``transform``, each ``(H, W, 3)`` uint8.
            sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled to this
                size.

        Returns:
            List with one dictionary for each image, on the CPU: ``boxes`` ``(n, 4)``, xyxy in pixels of the image size
            in ``sizes``, ``scores`` ``(n,)`` and ``labels`` ``(n,)``. Detections are sorted by descending score.
        """


class CheckpointDetector:
    """Detector from a checkpoint, with the interface of :class:`Detector`.

    Args:
        model: trained detector, or its inference form (:func:`mobile_former.deploy`).
        options: hyperparameters in the checkpoint, with ``class_names`` and ``category_ids``.
        data_options: options of the data module in the checkpoint.
        frame: maximum height and width of the resized images in pixels. Default: no limit.
        device: device of the model. Default: the GPU if present, else the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Mapping[str, Any],
        data_options: Mapping[str, Any],
        *,
        frame: tuple[int, int] | None = None,
        device: str | None = None,
    ):
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.options = options
        self.class_names = list(options["class_names"])
        self.category_ids = category_ids(options)
        sizes = {name: data_options[name] for name in ("short_side", "longest")}
        self.transform = partial(resize_to_fit, **sizes, frame=frame)
        self.mean, self.std = data_options["mean"], data_options["std"]

    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detect objects in one or more images. See :meth:`Detector.detect` for arguments and result."""
        return detect(self.model, list(map(to_planes, images)), sizes, self.mean, self.std)


def load_detector(path: str | Path, *, inference_form: bool = True) -> CheckpointDetector:
    """Load a detector from a checkpoint that ``detection.fit`` has written.

    Args:
        path: path of the ``.ckpt`` file.
        inference_form: whether to convert the model by :func:`mobile_former.deploy`, which makes it faster.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged or not a checkpoint of detection.
    """
    content = read_checkpoint(path, "detection")
    with naming_damage(path):
        options, data_options = content["hyper_parameters"], content["datamodule_hyper_parameters"]
        model = configured_detector(**options).eval()
        prefix = "model."
        model.load_state_dict({name.removeprefix(prefix): value for name, value in content["state_dict"].items()})
        require_data_options(data_options)
    return CheckpointDetector(mobile_former.deploy(model) if inference_form else model, options, data_options)


def predict(
    detector: Detector, paths: Sequence[str | Path], *, score_threshold: float = 0.3, batch_size: int = 8
) -> Iterator[dict]:
    """Detect objects in image files, URLs of images, and videos.

    Args:
        detector: detector to run.
        paths: paths or URLs of the images and videos.
        score_threshold: minimum score of a detection, in [0, 1].
        batch_size: number of images in a batch.

    Yields:
        One dictionary for each image, in the given order. It has the keys ``path``, ``width``, ``height`` and
        ``detections``. ``detections`` is a list of dictionaries, sorted by descending score, with the keys ``label``,
        ``class`` (name of the class), ``score`` and ``box`` (xyxy in pixels of the image). For a video, there is one
        dictionary for each frame. It also has the keys ``frame`` (number of the frame) and ``seconds`` (time of the
        frame). If an image cannot be read, its dictionary has only the keys ``path`` and ``error`` (a message).
    """
    inputs = list(map(as_input, paths))
    with closing(find_objects(detector, inputs, score_threshold=score_threshold, batch_size=batch_size)) as found:
        yield from (prediction for _, prediction in found)


def find_objects(
    detector: Detector, inputs: Sequence[Input], *, score_threshold: float = 0.3, batch_size: int = 8, **loading: Any
) -> Iterator[tuple[Loaded, dict]]:
    """Detect objects in images, and in the frames of videos and cameras.

    Args:
        detector: detector to run.
        inputs: images, videos and cameras.
        score_threshold: minimum score of a detection, in [0, 1].
        batch_size: number of images in a batch.
        **loading: ``keep_originals`` and ``max_frames`` of :func:`predict_inputs`.

    Yields:
        A tuple (image, prediction) for each image or frame. The prediction is a dictionary as in :func:`predict`.
    """

    def predict_batch(batch: Sequence[Loaded]) -> Iterator[dict]:
        images, sizes = [loaded.image for loaded in batch], [loaded.size for loaded in batch]
        for (height, width), found in zip(sizes, detector.detect(images, sizes), strict=True):
            detections = listed(found, detector.class_names, score_threshold)
            yield {"width": width, "height": height, "detections": detections}

    return predict_inputs(inputs, detector.transform, predict_batch, batch_size=batch_size, **loading)


def listed(found: dict[str, Tensor], names: Sequence[str], score_threshold: float) -> list[dict]:
    """Convert the detections of an image from tensors to a list of dictionaries, as in :func:`predict`.

    Detections below the minimum score and boxes that are not finite are left out.

    Args:
        found: detections of the image: one dictionary of the list that :meth:`Detector.detect` returns.
        names: class names in the order of the labels.
        score_threshold: minimum score, in [0, 1].
    """
    # A model that has diverged returns boxes of NaN.
    kept = (found["scores"] >= score_threshold) & found["boxes"].isfinite().all(1)
    labels, scores, boxes = (found[name][kept].tolist() for name in ("labels", "scores", "boxes"))
    return [
        {"label": label, "class": names[label], "score": score, "box": box}
        for label, score, box in zip(labels, scores, boxes, strict=True)
    ]
