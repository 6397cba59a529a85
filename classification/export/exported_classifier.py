"""A classifier in a file of ``classification.export``: what goes into its graph, and what it takes to run it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classification.data.transforms import eval_transform, middle, shorter_side
from mobile_former.errors import InputError
from mobile_former.training.data.images import normalise
from mobile_former.training.export.executorch_file import ExecutorchModel
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.run.checkpoint import require_data_options

# What of the preparation lies inside the graph, and so what the graph takes:
#   none                  float32 (B, 3, S, S), normalised
#   normalise             uint8 (B, S, S, 3), RGB as cameras and decoders give it, already of the model's size
#   resize_and_normalise  uint8 (B, H, W, 3), RGB of any size
Preprocessing = Literal["none", "normalise", "resize_and_normalise"]


class ClassifierGraph(nn.Module):
    """A classifier with as much of its images' preparation before it as shall lie in the graph.

    Args:
        model: from normalised images ``(B, 3, H, W)`` to logits ``(B, K)``, in evaluation mode.
        preprocessing: what comes before it.
        data_options: ``image_size``, ``crop_fraction``, ``mean`` and ``std``, as in a checkpoint.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, data_options: dict):
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.options = data_options

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, of the shape and type that ``preprocessing`` says: logits ``(B, K)``."""
        if self.preprocessing == "none":
            return self.model(images)
        images = images.permute(0, 3, 1, 2)
        if self.preprocessing == "resize_and_normalise":
            images = resize_and_crop(images, self.options["image_size"], self.options["crop_fraction"])
        return self.model(normalise(images, self.options["mean"], self.options["std"]))


def resize_and_crop(images: Tensor, image_size: int, crop_fraction: float) -> Tensor:
    """:func:`classification.data.transforms.eval_transform` in operations that ONNX knows.

    In PyTorch the result is the same to the last bit; ONNX's Resize makes one value in a thousand one level of 255
    higher or lower.

    Args:
        images: ``(B, 3, H, W)`` uint8, of any size.
        image_size: side of the square crop in pixels.
        crop_fraction: in 0..1.

    Returns:
        ``(B, 3, image_size, image_size)`` uint8.
    """
    height, width = images.shape[2:]
    shorter, target = torch.sym_min(height, width), shorter_side(image_size, crop_fraction)
    height, width = height * target // shorter, width * target // shorter
    images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    for axis, side in ((2, height), (3, width)):
        half, odd = (side - image_size) // 2, (side - image_size) % 2
        start = half + odd * (half % 2)  # a half goes to the even side
        images = images.index_select(axis, start + torch.arange(image_size))
    return images


class ExportedClassifier:
    """A file that ``python -m classification.export`` wrote, made ready for image files.

    Args:
        model: the file, read.

    Attributes:
        class_names: the classes in the order of the logits.
        transform: makes an image as read, ``(H, W, 3)`` uint8, one that :meth:`logits` takes.

    Raises:
        InputError: a damaged file.
    """

    def __init__(self, model: OnnxModel | ExecutorchModel):
        self.model = model
        metadata = self.model.metadata
        try:
            require_data_options(metadata)
            self.class_names = list(map(str, metadata["class_names"]))
            self.preprocessing: Preprocessing = metadata["preprocessing"]
            if self.preprocessing not in get_args(Preprocessing):
                raise ValueError(f"preprocessing is {self.preprocessing!r}")
            self.transform: Callable[..., dict] = eval_transform(metadata["image_size"], metadata["crop_fraction"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{model.path} is damaged: its metadata is not what export writes ({type(error).__name__}: {error}); "
                "export it again"
            ) from error
        if self.preprocessing == "resize_and_normalise":
            self.transform = _cut_strip

    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """Classify images ``(3, H, W)`` uint8 that have gone through :attr:`transform`: ``(B, K)`` on the CPU."""
        logits = torch.cat([torch.from_numpy(self.model(batch)["logits"]) for batch in self._prepare(images)])
        if logits.shape[1] != len(self.class_names):
            raise InputError(
                f"{self.model.path} is damaged: it names {len(self.class_names)} classes and tells {logits.shape[1]} "
                "apart; export it again"
            )
        return logits

    def batches(self, images: Sequence[Tensor]) -> Iterator[list[np.ndarray]]:
        """What the graph is given for images as :meth:`logits` takes them."""
        for batch in self._prepare(images):
            yield from self.model.batches(batch)

    def _prepare(self, images: Sequence[Tensor]) -> Iterator[np.ndarray]:
        if self.preprocessing == "none":
            yield normalise(torch.stack(list(images)), self.model.metadata["mean"], self.model.metadata["std"]).numpy()
        elif self.preprocessing == "normalise":
            yield torch.stack(list(images)).permute(0, 2, 3, 1).numpy()
        else:  # each of its own size
            yield from (image.permute(1, 2, 0)[None].numpy() for image in images)


def _cut_strip(image: np.ndarray) -> dict[str, np.ndarray]:
    """What evaluation does before it resizes; the graph does the rest."""
    return {"image": middle(image)}
