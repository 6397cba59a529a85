"""PyTorch data sets that transform images and handle unreadable files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch.utils.data import Dataset

from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError, read_image
from mobile_former.training.data.sampler import Draw, seed_transforms

if TYPE_CHECKING:  # prediction reads and resizes images without albumentations
    import albumentations as A


class ImageSource(Protocol):
    """Interface (protocol) of a sequence of images that are read by index.

    Classification and detection extend this interface with labels.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Read the image at ``index`` and return it as an RGB array ``(H, W, 3)`` uint8.

        Raises:
            ImageError: the image cannot be read.
        """

    def name(self, index: int) -> str:
        """Return the name that error messages use for the image at ``index``."""


class ListedImages:
    """A sequence of image files without labels.

    Args:
        paths: paths of the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Read the image at ``index`` and return it as an RGB array ``(H, W, 3)`` uint8.

        Raises:
            FileNotFoundError: the file does not exist.
            ImageError: the file cannot be read as an image.
        """
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """Return the path of the image at ``index`` as a string. Error messages use it."""
        return str(self.paths[index])


def indices_to_look_at(source: ImageSource, most: int) -> list[int]:
    """Return a list of evenly spaced image indices, from the first image to the last.

    A source that reads scattered images slowly has a method ``leading(most)``, which returns a number N. The indices
    are then chosen only among the first N images, see :meth:`classification.data.shards.ShardSource.leading`.

    Args:
        source: sequence of images.
        most: maximum number of indices.
    """
    count = source.leading(most) if hasattr(source, "leading") else len(source)
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


# Takes source, index, image and transforms; returns a sample with ``"image"`` ``(3, H, W)`` uint8.
MakeSample = Callable[[ImageSource, int, np.ndarray, "A.Compose"], dict]


class TrainingImages(Dataset):
    """Data set of augmented training images.

    The index of an item is a :class:`Draw`, not an integer. An item is the dictionary that ``make_sample`` returns,
    with one more entry ``"failures"``, a list of error messages. If an image cannot be read, its error message is added
    to this list, and the item contains the next readable image of ``source`` instead. If any other error occurs or no
    image can be read, the item contains no image, and its entry ``"error"`` is the error message.

    Args:
        source: sequence of images.
        transforms: albumentations pipeline that is applied to an image and its labels.
        make_sample: function that takes ``source``, index, image and ``transforms``. It returns a dictionary with
            ``"image"`` ``(3, H, W)`` uint8 and the labels.
        seed: seed of the run. The augmentation of an image depends only on this seed and the :class:`Draw`.
    """

    def __init__(self, source: ImageSource, transforms: "A.Compose", make_sample: MakeSample, seed: int):
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
    """Data set of images for evaluation.

    Each item is a dictionary:

    - If the image can be read, the entries are those that ``make_sample`` returns, and ``"failures"`` is an empty list.
    - If ``source`` raises an ImageError, the only entry is ``"failures"``, a list with the error message.
    - If ``source`` raises an InputError that is not an ImageError, ``"failures"`` is an empty list, ``"error"`` is the
      error message, and there are no other entries.

    Args:
        source: sequence of images.
        transforms: albumentations pipeline that is applied to an image and its labels.
        make_sample: function that takes ``source``, index, image and ``transforms``. It returns a dictionary with
            ``"image"`` ``(3, H, W)`` uint8 and the labels.
    """

    def __init__(self, source: ImageSource, transforms: "A.Compose", make_sample: MakeSample):
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
    """Separate the samples that have an image from the error messages that samples contain.

    Args:
        samples: items of :class:`TrainingImages` or :class:`EvaluationImages`.

    Returns:
        A tuple (samples, messages). ``samples`` is a list of the samples that have an image. ``messages`` is a
        dictionary with two lists of error messages: ``"failures"`` (images that could not be read) and ``"errors"``
        (faults that must stop the run).
    """
    messages = {
        "failures": [failure for sample in samples for failure in sample["failures"]],
        "errors": [sample["error"] for sample in samples if "error" in sample],
    }
    return [sample for sample in samples if "image" in sample], messages
