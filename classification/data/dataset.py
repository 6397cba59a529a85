"""Samples and batches of labelled images."""

from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import default_collate

from mobile_former.training.data.dataset import ImageSource, split_messages
from mobile_former.training.data.images import to_planes


class Source(ImageSource, Protocol):
    """Labelled images.

    Attributes:
        labels: label of each image.
    """

    labels: list[int]


def make_sample(source: Source, index: int, image: np.ndarray, transforms: A.Compose) -> dict:
    """Transform an image ``(H, W, 3)`` uint8 into a sample: ``image`` ``(3, H, W)`` uint8, and ``label``."""
    return {"image": to_planes(transforms(image=image)["image"]), "label": source.labels[index]}


def collate(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """Build a batch of the readable images: ``image`` ``(B, 3, H, W)`` uint8 and ``label`` ``(B,)``.

    The batch also contains the lists of messages from :func:`split_messages`. If no image is readable, it contains only
    these lists.
    """
    readable, messages = split_messages(samples)
    columns = [{name: sample[name] for name in ("image", "label")} for sample in readable]
    return (default_collate(columns) if columns else {}) | messages
