"""The PyTorch module that ``python -m classification.export`` exports, and a class that runs the exported file."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classification.data.resizing import middle, resize_and_crop, shorter_side
from mobile_former.errors import InputError
from mobile_former.training.data.images import normalise, to_batch
from mobile_former.training.export.fixed_model import FixedModel
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.run.checkpoint import require_data_options

# Preprocessing inside the graph, and the input that the graph expects:
#   none                  float32 (B, 3, S, S), normalised
#   normalise             uint8 RGB (B, S, S, 3), S: input size of the model
#   resize_and_normalise  uint8 RGB (B, H, W, 3), of any size
Preprocessing = Literal["none", "normalise", "resize_and_normalise"]


class ClassifierGraph(nn.Module):
    """Wrapper of a classifier for the export. It preprocesses images and then classifies them.

    Args:
        model: classifier in evaluation mode that maps normalised images ``(B, 3, H, W)`` to logits ``(B, K)``.
        preprocessing: ``"none"``, ``"normalise"`` or ``"resize_and_normalise"``: the preprocessing that the module
            applies.
        data_options: dictionary with ``image_size``, ``crop_fraction``, ``mean`` and ``std``, as in a checkpoint.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, data_options: dict):
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.options = data_options

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` of images.

        Args:
            images: If ``preprocessing`` is "none": normalised float32 ``(B, 3, S, S)``, where S is the input size of
                the model. If it is "normalise": uint8 RGB ``(B, S, S, 3)``. If it is "resize_and_normalise": uint8 RGB
                ``(B, H, W, 3)`` of any size.
        """
        if self.preprocessing == "none":
            return self.model(images)
        images = images.permute(0, 3, 1, 2)
        if self.preprocessing == "resize_and_normalise":
            images = resized_and_cropped(images, self.options["image_size"], self.options["crop_fraction"])
        return self.model(normalise(images, self.options["mean"], self.options["std"]))


def resized_and_cropped(images: Tensor, image_size: int, crop_fraction: float) -> Tensor:
    """Resize images and crop the centre with operations that ONNX supports.

    In PyTorch, the results are identical to those of :func:`classification.data.resizing.resize_and_crop`. In ONNX,
    one value in a thousand differs by 1, on the scale from 0 to 255.

    Args:
        images: images ``(B, 3, H, W)`` uint8 of any size.
        image_size: side of the square crop in pixels.
        crop_fraction: fraction of the shorter side that the crop covers, above 0 and at most 1.

    Returns:
        Images ``(B, 3, image_size, image_size)`` uint8.
    """
    height, width = images.shape[2:]
    shorter, target = torch.sym_min(height, width), shorter_side(image_size, crop_fraction)
    height, width = height * target // shorter, width * target // shorter
    images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    for axis, side in ((2, height), (3, width)):
        half, odd = (side - image_size) // 2, (side - image_size) % 2
        start = half + odd * (half % 2)  # halves are rounded to even, as in CentreCrop
        images = images.index_select(axis, start + torch.arange(image_size))
    return images


class ExportedClassifier:
    """Classifier that runs a file written by ``python -m classification.export``.

    Args:
        model: opened file.

    Attributes:
        class_names: names of the classes in the order of the logits.
        preprocessing: ``"none"``, ``"normalise"`` or ``"resize_and_normalise"``: the preprocessing that the file
            contains.
        transform: function that prepares images ``(..., H, W, 3)`` uint8 for :meth:`logits`.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, model: OnnxModel | FixedModel):
        self.model = model
        metadata = self.model.metadata
        try:
            require_data_options(metadata)
            self.class_names = list(map(str, metadata["class_names"]))
            self.preprocessing: Preprocessing = metadata["preprocessing"]
            if self.preprocessing not in get_args(Preprocessing):
                raise ValueError(f"preprocessing is {self.preprocessing!r}")
            size, fraction = metadata["image_size"], metadata["crop_fraction"]
            self.transform: Callable[[np.ndarray], np.ndarray] = partial(
                resize_and_crop, image_size=size, crop_fraction=fraction
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{model.path} is damaged: export does not write this metadata ({type(error).__name__}: {error}); "
                "export it again"
            ) from error
        if self.preprocessing == "resize_and_normalise":
            self.transform = middle

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the logits ``(B, K)`` of images as a CPU tensor.

        Args:
            images: list of images ``(H, W, 3)`` uint8 that :attr:`transform` has prepared.

        Raises:
            InputError: the number of logits per image differs from the number of class names, so the file is damaged.
        """
        logits = torch.cat([torch.from_numpy(self.model(batch)["logits"]) for batch in self._prepare(images)])
        if logits.shape[1] != len(self.class_names):
            raise InputError(
                f"{self.model.path} is damaged: it has {len(self.class_names)} class names, but {logits.shape[1]} "
                "logits; export it again"
            )
        return logits

    def batches(self, images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Convert prepared images to batches for the exported model. Yield each batch as a list of input arrays.

        Args:
            images: list of images ``(H, W, 3)`` uint8 that :attr:`transform` has prepared.
        """
        for batch in self._prepare(images):
            yield from self.model.batches(batch)

    def _prepare(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        if self.preprocessing == "none":
            batch = to_batch(images, self.model.metadata["mean"], self.model.metadata["std"])
            yield batch.contiguous().numpy()
        elif self.preprocessing == "normalise":
            yield np.stack(images)
        else:  # each image has its own size
            yield from (image[None] for image in images)
