"""Images of a task, transformed; and what happens to one that cannot be read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import albumentations as A
import numpy as np
from torch.utils.data import Dataset

from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError, read_image
from mobile_former.training.data.sampler import Draw, seed_transforms
from mobile_former.training.run.figures import spread


class ImageSource(Protocol):
    """Where images come from; each task's own protocol adds what it knows about them."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB; raises ImageError where it cannot be read."""

    def name(self, index: int) -> str:
        """What to call an image in messages."""


class ListedImages:
    """Image files as they are given, of which nothing else is known.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        return str(self.paths[index])


def indices_to_look_at(source: ImageSource, most: int) -> list[int]:
    """Which images stand for all of a source where a few have to do: evenly from the first to the last.

    Args:
        source: the images. One that reads many for one has ``leading(most)``, see
            :meth:`classification.data.shards.ShardSource.leading`.
        most: how many, at most.
    """
    count = source.leading(most) if hasattr(source, "leading") else len(source)
    return spread(count, most)


# From source, index, image and transforms to a sample, with ``"image"`` ``(3, H, W)`` uint8 in it.
MakeSample = Callable[[ImageSource, int, np.ndarray, A.Compose], dict]


class TrainingImages(Dataset):
    """Augmented images. In place of one that cannot be read comes the next, and its failure is told in the batch.

    Args:
        source: the images.
        transforms: of images, and what belongs to them.
        make_sample: what a sample is made of.
        seed: of the run; with it and the :class:`Draw`, a sample is the same whoever loads it.
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
        except Exception as error:  # a user's own transforms may fail in any way
            reason = f"{type(error).__name__}: {error}"
            return {"error": f"--data.train_transforms failed on {self.source.name(index)}: {reason}"}


class EvaluationImages(Dataset):
    """Images in order, without augmentation; one that cannot be read is told as the failure it is.

    Args:
        source: the images.
        transforms: of images, and what belongs to them.
        make_sample: what a sample is made of.
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
    """Part samples from what is told about them.

    Returns:
        The samples that hold an image, and ``failures``, messages about images that could not be read, and ``errors``,
        messages of input for which the run has to stop.
    """
    messages = {
        "failures": [failure for sample in samples for failure in sample["failures"]],
        "errors": [sample["error"] for sample in samples if "error" in sample],
    }
    return [sample for sample in samples if "image" in sample], messages
