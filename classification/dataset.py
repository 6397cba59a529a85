"""Labelled images, transformed; and what happens to one that cannot be read."""

from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from mobile_former.errors import InputError
from mobile_former.training.images import ImageError, to_planes
from mobile_former.training.sampler import Draw, seed_transforms


class Source(Protocol):
    """Where labelled images come from."""

    labels: list[int]

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB; raises ImageError where it cannot be read."""

    def name(self, index: int) -> str:
        """What to call an image in messages."""


class TrainingImages(Dataset):
    """Augmented images. In place of one that cannot be read comes the next, and its failure is told in the batch.

    Args:
        source: the images.
        transforms: from one image to another, of one size for all.
        seed: of the run; with it and the :class:`Draw`, a sample is the same whoever loads it.
    """

    def __init__(self, source: Source, transforms: A.Compose, seed: int):
        self.source = source
        self.transforms = transforms
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> dict:
        failures = []
        for offset in range(len(self.source)):
            index = (draw.index + offset) % len(self.source)
            try:
                image = self.source.read(index)
            except ImageError as error:
                failures.append(str(error))
                continue
            seed_transforms(self.transforms, self.seed, draw)
            planes = to_planes(self.transforms(image=image)["image"])
            return {"image": planes, "label": self.source.labels[index], "failures": failures}
        raise InputError(f"none of the {len(self.source)} training images can be read; the first: {failures[0]}")


class EvaluationImages(Dataset):
    """Images in order, without augmentation; one that cannot be read is told as the failure it is.

    Args:
        source: the images.
        transforms: from one image to another, of one size for all.
    """

    def __init__(self, source: Source, transforms: A.Compose):
        self.source = source
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        try:
            image = self.source.read(index)
        except ImageError as error:
            return {"failures": [str(error)]}
        planes = to_planes(self.transforms(image=image)["image"])
        return {"image": planes, "label": self.source.labels[index], "failures": []}


def collate(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """A batch: ``image`` ``(B, 3, H, W)`` uint8, ``label`` ``(B,)``, ``failures`` (a list, not one for each image)."""
    failures = [failure for sample in samples for failure in sample["failures"]]
    readable = [{k: v for k, v in sample.items() if k != "failures"} for sample in samples if "image" in sample]
    return (default_collate(readable) if readable else {}) | {"failures": failures}
