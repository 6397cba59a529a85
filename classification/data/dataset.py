"""Samples and batches of labelled images."""

from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import default_collate

from mobile_former.training.data.dataset import ImageSource, split_messages
from mobile_former.training.data.images import to_planes


class Source(ImageSource, Protocol):
    """Where labelled images come from."""

    labels: list[int]


def make_sample(source: Source, index: int, image: np.ndarray, transforms: A.Compose) -> dict:
    """An image as read, made ready for a batch: ``image`` ``(3, H, W)`` uint8, and ``label``."""
    return {"image": to_planes(transforms(image=image)["image"]), "label": source.labels[index]}


def collate(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """A batch: ``image`` ``(B, 3, H, W)`` uint8, ``label`` ``(B,)``; and the lists of :func:`split_messages`."""
    readable, messages = split_messages(samples)
    columns = [{name: sample[name] for name in ("image", "label")} for sample in readable]
    return (default_collate(columns) if columns else {}) | messages
