"""Data sets of transformed images that handle unreadable files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import albumentations as A
import numpy as np
from torch.utils.data import Dataset

from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError, read_image
from mobile_former.training.data.sampler import Draw, seed_transforms


class ImageSource(Protocol):
    """A source of images. Each task extends this protocol with the labels of the images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Read an image ``(H, W, 3)``, uint8 RGB; raise ImageError if it cannot be read."""

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""


class ListedImages:
    """Image files without labels.

    Args:
        paths: paths of the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Read an image ``(H, W, 3)``, uint8 RGB."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        return str(self.paths[index])


def indices_to_look_at(source: ImageSource, most: int) -> list[int]:
    """Choose images that represent a source: evenly spaced indices from the first to the last.

    Args:
        source: images. If the source has a method ``leading(most)``, the indices are chosen among the first N images.
            N is the result of this method. A source whose scattered reads are slow has such a method, see
            :meth:`classification.data.shards.ShardSource.leading`.
        most: maximum number of images.
    """
    count = source.leading(most) if hasattr(source, "leading") else len(source)
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


# Takes source, index, image and transforms; returns a sample with ``"image"`` ``(3, H, W)`` uint8.
MakeSample = Callable[[ImageSource, int, np.ndarray, A.Compose], dict]


class TrainingImages(Dataset):
    """Augmented images. An image that cannot be read is replaced by the next image, and reported in the batch.

    Args:
        source: source of the images.
        transforms: albumentations transforms of an image and its labels.
        make_sample: function that builds a sample, see ``MakeSample``.
        seed: seed of the run. A sample depends only on this seed and on the :class:`Draw` (index and epoch).
    """

    def __init__(self, source: ImageSource, transforms: A.Compose, make_sample: MakeSample, seed: int):
        self.source = source
        self.transforms = transforms
        self.make_sample = make_sample
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
            except InputError as error:
                return {"failures": failures, "error": str(error)}
            seed_transforms(self.transforms, self.seed, draw)
            return self._transformed(index, image) | {"failures": failures}
        return {
            "failures": [],
            "error": f"none of the {len(self.source)} training images can be read; the first: {failures[0]}",
        }

    def _transformed(self, index: int, image: np.ndarray) -> dict:
        try:
            return self.make_sample(self.source, index, image, self.transforms)
        except InputError as error:
            return {"error": str(error)}
        except Exception as error:  # transforms of a user may raise anything
            reason = f"{type(error).__name__}: {error}"
            return {"error": f"--data.train_transforms failed on {self.source.name(index)}: {reason}"}


class EvaluationImages(Dataset):
    """Images in order, without augmentation. An image that cannot be read is reported in the batch.

    Args:
        source: source of the images.
        transforms: albumentations transforms of an image and its labels.
        make_sample: function that builds a sample, see ``MakeSample``.
    """

    def __init__(self, source: ImageSource, transforms: A.Compose, make_sample: MakeSample):
        self.source = source
        self.transforms = transforms
        self.make_sample = make_sample

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        try:
            image = self.source.read(index)
        except ImageError as error:
            return {"failures": [str(error)]}
        except InputError as error:
            return {"failures": [], "error": str(error)}
        return self.make_sample(self.source, index, image, self.transforms) | {"failures": []}


def split_messages(samples: list[dict]) -> tuple[list[dict], dict[str, list[str]]]:
    """Separate the samples of images from the messages about unreadable images and errors.

    Returns:
        The samples that have an image, and a dictionary with two lists of messages: ``"failures"`` (images that could
        not be read) and ``"errors"`` (faults that must stop the run).
    """
    messages = {
        "failures": [failure for sample in samples for failure in sample["failures"]],
        "errors": [sample["error"] for sample in samples if "error" in sample],
    }
    return [sample for sample in samples if "image" in sample], messages
