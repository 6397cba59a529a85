"""Detect objects with a file that ``python -m detection.export`` has written."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from detection.boxes.anchors import PER_POSITION
from detection.boxes.geometry import cxcywh_to_xyxy
from detection.boxes.postprocess import best_classes, to_pixels
from detection.data.batch import MULTIPLE, pad
from detection.data.resizing import resize_to_fit, resized
from detection.models.retinanet import DETECTIONS, STRIDES, best_candidates, suppress_candidates
from mobile_former.errors import InputError
from mobile_former.training.data.images import normalise, to_planes
from mobile_former.training.export.fixed_model import FixedModel
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.run.checkpoint import require_data_options


class ExportedDetector:
    """Detector that runs an exported file. It has the interface of :class:`detection.predict.Detector`.

    Args:
        model: opened file.

    Attributes:
        class_names: class names in the order of the labels.
        category_ids: COCO category ids in the order of the labels.
        max_detections: maximum number of detections in an image.
        transform: function that prepares original images ``(..., H, W, 3)`` uint8 for :meth:`detect`.

    Raises:
        InputError: the metadata of the file is damaged.
    """

    def __init__(self, model: OnnxModel | FixedModel):
        self.model = model
        metadata = model.metadata
        try:
            require_data_options(metadata)
            self.class_names = list(map(str, metadata["class_names"]))
            self.category_ids = list(map(int, metadata["category_ids"]))
            self.decoded, self.preprocessing = bool(metadata["decoded"]), bool(metadata["preprocessing"])
            self.of_anchors, self.of_sigmoid = bool(metadata["anchors"]), bool(metadata["sigmoid"])
            self.max_detections = int(metadata.get("max_detections", DETECTIONS))  # older files lack it
            size = metadata["frame"]
            self.frame = None if size is None else (int(size[0]), int(size[1]))
            if self.frame is not None and any(side % MULTIPLE or not MULTIPLE <= side <= 2**16 for side in self.frame):
                raise ValueError(f"a frame of {self.frame}")
            if len(self.category_ids) != len(self.class_names):
                raise ValueError(f"{len(self.category_ids)} ids of {len(self.class_names)} classes")
            sizes = {name: metadata[name] for name in ("short_side", "longest")}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{model.path} is damaged: its metadata is not what export writes ({type(error).__name__}: {error}); "
                "export it again"
            ) from error
        self.transform: Callable[[np.ndarray], np.ndarray] = (
            _as_it_is if self.preprocessing else partial(resize_to_fit, **sizes, frame=self.frame)
        )

    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detect objects in one or more images.

        Args:
            images: images ``(H, W, 3)`` uint8 that :attr:`transform` has prepared.
            sizes: output height and width of each image, usually the original size. Boxes are scaled to this size.

        Returns:
            One dictionary per image, sorted by descending score: ``boxes`` ``(n, 4)``, xyxy in pixels of the output
            size, ``scores`` ``(n,)`` and ``labels`` ``(n,)``.
        """
        detections, start = [], 0
        for inputs in self._prepare(images):
            end = start + len(inputs[0])
            outputs = {name: torch.from_numpy(values) for name, values in self.model(*inputs).items()}
            if self.decoded:
                detections += self._in_frames(outputs, images[start:end], sizes[start:end])
            else:
                detections += self._decode(outputs, images[start:end], sizes[start:end])
            start = end
        return detections

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Convert prepared images to batches for the ONNX graph. Yield each batch as a list of input arrays.

        Args:
            images: images ``(H, W, 3)`` uint8 that :attr:`transform` has prepared.
        """
        for inputs in self._prepare(images):
            yield from self.model.batches(*inputs)

    def _prepare(self, images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        if self.preprocessing:  # images keep their own sizes
            yield from ([image[None]] for image in images)
            return
        batch, _ = pad(list(map(to_planes, images)), self.frame)
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        yield [normalise(batch, self.model.metadata["mean"], self.model.metadata["std"]).numpy(), sizes]

    def _in_frames(
        self, outputs: dict[str, Tensor], images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image of a batch, for a graph that returns detections.

        Args:
            outputs: outputs of the graph, with the detections of all images.
            images: input images of the graph. The boxes in ``outputs`` are in pixels of these images.
            sizes: list with a tuple (height, width) for each image. The returned boxes are scaled to this size.

        Returns:
            List with one dictionary for each image: ``boxes``, ``scores`` and ``labels``.
        """
        normalised = outputs["boxes"] / _corners([image.shape[:2] for image in images])
        detections = to_pixels(outputs | {"boxes": normalised}, sizes)
        return [
            {name: values[:count] for name, values in found.items()}
            for found, count in zip(detections, outputs["counts"].tolist(), strict=True)
        ]

    def _decode(
        self, outputs: dict[str, Tensor], images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image of a batch, for a graph that returns raw logits and boxes.

        The detections are computed as in the detector's PyTorch method ``postprocess``. Arguments and result are
        those of :meth:`_in_frames`, except that ``outputs`` contains raw logits and boxes.
        """
        logits, boxes = outputs["logits"], outputs["boxes"]
        if not self.of_anchors:
            probabilities = logits.sigmoid() if self.of_sigmoid else logits.softmax(-1)[..., :-1]
            return to_pixels(best_classes(probabilities, boxes), sizes)
        options = self.model.metadata
        seen = [image.shape[:2] for image in images]
        if self.preprocessing:
            seen = [resized(*size, options["short_side"], options["longest"], self.frame) for size in seen]
        place = self.frame or [-(-max(size[axis] for size in seen) // MULTIPLE) * MULTIPLE for axis in (0, 1)]
        levels = [-(-place[0] // stride) * -(-place[1] // stride) * PER_POSITION for stride in STRIDES]
        corners = _corners(seen)
        candidates = best_candidates(logits, cxcywh_to_xyxy(boxes) * corners, levels)
        return suppress_candidates(candidates, corners[:, 0, :2], sizes, self.max_detections)


def _corners(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the factors (width, height, width, height) that scale normalised xyxy boxes to pixels: ``(B, 1, 4)``."""
    return torch.tensor([[width, height, width, height] for height, width in sizes], dtype=torch.float32)[:, None]


def _as_it_is(image: np.ndarray) -> np.ndarray:
    """Return the image unchanged.

    This function is used as the image transform if the ONNX graph contains the preprocessing.
    """
    return image
