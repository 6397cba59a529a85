"""Images with their boxes, transformed and put together in padded batches."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import albumentations as A
import numpy as np
import torch
from torch.utils.data import Sampler

from detection.boxes.boxes import xyxy_to_cxcywh
from mobile_former.training.data.dataset import ImageSource, split_messages
from mobile_former.training.data.images import to_planes
from mobile_former.training.data.sampler import Draw, EpochSampler

MULTIPLE = 32  # of pixels: the coarsest stride

_WINDOW = 50  # batches among which images of similar shape find together


class Source(ImageSource, Protocol):
    """Where images with boxes come from."""

    class_names: Sequence[str]
    category_ids: Sequence[int]

    def boxes(self, index: int) -> np.ndarray:
        """The objects to train on: ``(n, 4)`` xyxy in pixels, within the image."""

    def labels(self, index: int) -> np.ndarray:
        """Their labels, ``(n,)``."""

    def image_id(self, index: int) -> int:
        """The id that results call the image by."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""

    def ground_truth(self) -> dict[str, list[dict]]:
        """What detections are scored against, in COCO's format."""


def make_sample(source: Source, index: int, image: np.ndarray, transforms: A.Compose) -> dict:
    """An image as read, made ready for a batch: ``image`` ``(3, H, W)`` uint8, and what :func:`collate` tells of it."""
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
        ``image`` ``(B, 3, H, W)`` uint8, 0 on padding; ``padding_mask`` ``(B, H, W)`` bool, True on padding, or None
        where nothing is;
        ``targets``, for each image ``labels`` ``(n,)`` long and ``boxes`` ``(n, 4)`` float cxcywh in 0..1 of the image
        without its padding; ``image_ids`` ``(B,)`` long; ``image_sizes`` ``(B, 2)`` long, height and width before any
        transform; and the lists of :func:`split_messages`, which stand alone where no image could be read.
    """
    samples, messages = split_messages(samples)
    if not samples:
        return messages
    images, padding_mask = pad([sample["image"] for sample in samples])
    return messages | {
        "image": images,
        "padding_mask": padding_mask,
        "targets": [sample["target"] for sample in samples],
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
        "image_sizes": torch.tensor([sample["size"] for sample in samples]),
    }


def pad(
    images: Sequence[torch.Tensor], frame: tuple[int, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Lay images into one array, at the top left.

    Args:
        images: each ``(3, H, W)`` uint8, of sizes of their own.
        frame: height and width of the array; default: as small as it can be.

    Returns:
        ``(B, 3, H, W)`` uint8, H and W being multiples of 32; and a ``(B, H, W)`` bool mask, True on padding, or None
        where all images fill their places, so that nothing has to be masked.
    """
    largest = (max(image.shape[axis] for image in images) for axis in (1, 2))
    height, width = frame or (-(-side // MULTIPLE) * MULTIPLE for side in largest)
    batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for number, image in enumerate(images):
        batch[number, :, : image.shape[1], : image.shape[2]] = image
        mask[number, : image.shape[1], : image.shape[2]] = False
    return batch, mask if mask.any() else None
