"""Function that checks the targets (labels and boxes) of a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobile_former.errors import InputError


def check_targets(targets: Sequence[dict[str, Tensor]], images: int, num_classes: int) -> None:
    """Raise an error if targets have a wrong number, shape, type or value.

    Values are checked only if the targets are on the CPU. On a GPU, the check would make the CPU wait for the GPU.

    Args:
        targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``, cxcywh,
            normalised to 0..1.
        images: number of images in the batch.
        num_classes: number of classes K.

    Raises:
        InputError: the targets have a wrong number, shape, type or value.
    """
    if len(targets) != images:
        raise InputError(f"there are {len(targets)} targets for {images} images: give one target per image")
    for number, target in enumerate(targets):
        labels, boxes = target["labels"], target["boxes"]
        if labels.ndim != 1 or labels.dtype != torch.long or boxes.shape != (len(labels), 4):
            raise InputError(
                f"target {number} has labels of shape {tuple(labels.shape)} and type {labels.dtype}, and boxes of "
                f"shape {tuple(boxes.shape)}: give labels (n,) of type torch.long and boxes (n, 4)"
            )
        if labels.device.type != "cpu" or len(labels) == 0:
            continue
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(f"target {number} has labels {labels.tolist()}: give labels from 0 to {num_classes - 1}")
        if boxes.min() < 0 or boxes.max() > 1.001:
            raise InputError(
                f"target {number} has boxes outside 0..1: give cxcywh, normalised by the width and height of the image"
            )
