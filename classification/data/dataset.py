"""The interface of a labelled data set, and functions that build samples and batches."""

from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import default_collate

from mobile_former.training.data.dataset import ImageSource, split_messages
from mobile_former.training.data.images import to_planes


class Source(ImageSource, Protocol):
    """Interface of a data set of labelled images. Images are read one at a time, by index.

    Attributes:
        labels: integer label of each image, indexed like the images.
    """

    labels: list[int]


def make_sample(source: Source, index: int, image: np.ndarray, transforms: A.Compose) -> dict:
    """Transform an image and return it as a sample with its label.

    The sample is a dictionary: ``image`` is the transformed image ``(3, H, W)`` uint8, ``label`` is an integer, and
    ``name`` is a string.

    Args:
        source: data set of the image.
        index: index of the image in the data set.
        image: original image ``(H, W, 3)``, uint8 RGB.
        transforms: albumentations transforms of the image.
    """
    planes = to_planes(transforms(image=image)["image"])
    return {"image": planes, "label": source.labels[index], "name": source.name(index)}


def collate(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """Combine samples into a batch, a dictionary of tensors and lists.

    The entries are ``image`` ``(B, 3, H, W)`` uint8, ``label`` ``(B,)``, ``name`` (list of B strings), ``failures`` and
    ``errors``. ``failures`` are error messages about unreadable images, which are left out. ``errors`` are messages
    about faults that must stop the run, see :func:`split_messages`. If no image is readable, the dictionary has only
    the entries ``failures`` and ``errors``.
    """
    readable, messages = split_messages(samples)
    columns = [{name: sample[name] for name in ("image", "label", "name")} for sample in readable]
    return (default_collate(columns) if columns else {}) | messages
