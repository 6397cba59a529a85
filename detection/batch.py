"""Images with their boxes, transformed and put together in padded batches."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from detection.boxes import xyxy_to_cxcywh
from mobile_former.errors import InputError
from mobile_former.training.images import ImageError, to_planes
from mobile_former.training.sampler import Draw, EpochSampler, seed_transforms

MULTIPLE = 32  # of pixels: the coarsest stride

_WINDOW = 50  # batches among which images of similar shape find together


class Source(Protocol):
    """Where images with boxes come from."""

    class_names: Sequence[str]
    category_ids: Sequence[int]

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB; raises ImageError where it cannot be read."""

    def boxes(self, index: int) -> np.ndarray:
        """The objects to train on: ``(n, 4)`` xyxy in pixels, within the image."""

    def labels(self, index: int) -> np.ndarray:
        """Their labels, ``(n,)``."""

    def image_id(self, index: int) -> int:
        """The id that results call the image by."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""

    def name(self, index: int) -> str:
        """What to call an image in messages."""

    def ground_truth(self) -> dict[str, list[dict]]:
        """What detections are scored against, in COCO's format."""


class TrainingImages(Dataset):
    """Augmented images. In place of one that cannot be read comes the next, and its failure is told in the batch.

    Args:
        source: the images.
        transforms: of images with boxes.
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
            except InputError as error:
                return {"failures": failures, "error": str(error)}
            seed_transforms(self.transforms, self.seed, draw)
            return _sample(self.source, index, image, self.transforms) | {"failures": failures}
        return {
            "failures": [],
            "error": f"none of the {len(self.source)} training images can be read; the first: {failures[0]}",
        }


class EvaluationImages(Dataset):
    """Images in order, without augmentation; one that cannot be read is told as the failure it is.

    Args:
        source: the images.
        transforms: of images with boxes.
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
        except InputError as error:
            return {"failures": [], "error": str(error)}
        return _sample(self.source, index, image, self.transforms) | {"failures": []}


class ShapeBatchSampler(Sampler[list[Draw]]):
    """Batches of images of similar shape, so that less of them is padding.

    The sampler's order is cut into windows of 50 batches, each of which is sorted by the images' shapes and cut into
    batches; batches come in random order. So an epoch depends on seed and epoch alone, every process has as many
    batches, and at one time all of them have similar shapes.

    Args:
        sampler: each image once an epoch, in an order of its own. (Lightning tells it the epoch under this name.)
        source: of the images.
        batch_size: images in a batch.
        drop_last: whether to leave out the images that are too few for a batch, the last in the sampler's order.
    """

    def __init__(self, sampler: EpochSampler, source: Source, batch_size: int, drop_last: bool = False):
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        sizes = np.array([source.size(index) for index in range(len(source))], dtype=np.float64)
        self.ratios = sizes[:, 1] / sizes[:, 0]

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = list(self.sampler)
        if self.drop_last:
            draws = draws[: len(self) * self.batch_size]
        batches = []
        window = _WINDOW * self.batch_size
        for start in range(0, len(draws), window):
            similar = sorted(draws[start : start + window], key=lambda draw: self.ratios[draw.index])
            batches += [similar[first : first + self.batch_size] for first in range(0, len(similar), self.batch_size)]
        order = np.random.default_rng((self.sampler.seed % 2**64, self.sampler.epoch)).permutation(len(batches))
        yield from (batches[number] for number in order)

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (rest > 0 and not self.drop_last)


def collate(samples: list[dict]) -> dict:
    """A batch, its images padded on the right and below to the largest of them, and to a multiple of 32.

    Returns:
        ``images`` ``(B, 3, H, W)`` uint8, 0 on padding; ``padding_mask`` ``(B, H, W)`` bool, True on padding;
        ``targets``, for each image ``labels`` ``(n,)`` long and ``boxes`` ``(n, 4)`` float cxcywh in 0..1 of the image
        without its padding; ``image_ids`` ``(B,)`` long; ``image_sizes`` ``(B, 2)`` long, height and width before any
        transform; and, not one for each image, ``failures``, messages about images that could not be read, and
        ``errors``, messages of input for which the run has to stop. Of nothing but such images, these two alone.
    """
    messages = {
        "failures": [failure for sample in samples for failure in sample["failures"]],
        "errors": [sample["error"] for sample in samples if "error" in sample],
    }
    samples = [sample for sample in samples if "image" in sample]
    if not samples:
        return messages
    images, padding_mask = pad([sample["image"] for sample in samples])
    return messages | {
        "images": images,
        "padding_mask": padding_mask,
        "targets": [sample["target"] for sample in samples],
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
        "image_sizes": torch.tensor([sample["size"] for sample in samples]),
    }


def pad(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay images into one array, at the top left.

    Args:
        images: each ``(3, H, W)`` uint8, of sizes of their own.

    Returns:
        ``(B, 3, H, W)`` uint8, and a ``(B, H, W)`` bool mask, True on padding; H and W are multiples of 32.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // MULTIPLE) * MULTIPLE for axis in (1, 2))
    batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for number, image in enumerate(images):
        batch[number, :, : image.shape[1], : image.shape[2]] = image
        mask[number, : image.shape[1], : image.shape[2]] = False
    return batch, mask


def _sample(source: Source, index: int, image: np.ndarray, transforms: A.Compose) -> dict:
    labels = np.asarray(source.labels(index), dtype=np.int64)
    result = transforms(image=image, bboxes=np.asarray(source.boxes(index), dtype=np.float64), labels=labels)
    planes = to_planes(result["image"])
    # albumentations passes labels through as what is lighter for it
    labels = torch.from_numpy(np.asarray(result["labels"]).astype(np.int64))
    corners = torch.from_numpy(np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4))
    height, width = planes.shape[1:]
    boxes = xyxy_to_cxcywh(corners / torch.tensor([width, height, width, height])).float()
    return {
        "image": planes,
        "target": {"labels": labels, "boxes": boxes},
        "image_id": source.image_id(index),
        "size": source.size(index),
    }
