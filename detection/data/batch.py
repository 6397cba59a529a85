"""Build samples of images with boxes, and padded batches of these samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from detection.boxes.geometry import xyxy_to_cxcywh
from mobile_former.training.data.dataset import ImageSource, split_messages
from mobile_former.training.data.images import to_planes
from mobile_former.training.data.sampler import Draw, EpochSampler
from mobile_former.variants import MIN_SIZE

if TYPE_CHECKING:  # prediction pads batches without albumentations
    import albumentations as A

MULTIPLE = MIN_SIZE  # pixels; batch sides are multiples of the coarsest stride

_WINDOW = 50  # batches that are grouped by shape together


class Source(ImageSource, Protocol):
    """Interface of a detection data set: images with boxes, read by index."""

    class_names: Sequence[str]
    category_ids: Sequence[int]
    left_out: Mapping[str, int]  # number of objects that are not trained on, by reason
    annotated: bool  # False: only images and classes are known, so there is nothing to train on or to score

    def boxes(self, index: int) -> np.ndarray:
        """Return the boxes of an image for training: ``(n, 4)``, xyxy in pixels, clipped to the image."""

    def labels(self, index: int) -> np.ndarray:
        """Return the class labels of an image's boxes, in the order of :meth:`boxes`: ``(n,)``."""

    def image_id(self, index: int) -> int:
        """Return the integer id that identifies an image in detection results in COCO format."""

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of an image in pixels."""

    def ground_truth(self) -> dict[str, list[dict]]:
        """Return the ground truth for scoring, as a dictionary in COCO format."""


def make_sample(source: Source, index: int, image: np.ndarray, transforms: "A.Compose") -> dict:
    """Transform an image and its boxes into a sample for :func:`collate`.

    Args:
        source: data set of the image.
        index: index of the image in the data set.
        image: original image ``(H, W, 3)``, uint8 RGB.
        transforms: albumentations transforms of an image and its boxes.

    Returns:
        A dictionary with

        - ``image``: ``(3, H, W)`` uint8;
        - ``target``: a dictionary with ``labels`` ``(n,)`` long and ``boxes`` ``(n, 4)`` float, cxcywh normalised to
          [0, 1];
        - ``image_id``: id of the image in COCO results;
        - ``size``: tuple (height, width) in pixels, before the transforms.
    """
    labels = np.asarray(source.labels(index), dtype=np.int64)
    result = transforms(image=image, bboxes=np.asarray(source.boxes(index), dtype=np.float64), labels=labels)
    planes = to_planes(result["image"])
    # albumentations may return labels as a list or in another type
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
    """Batch sampler that groups images of similar aspect ratio. Such batches need less padding.

    The images, in the order of ``sampler``, are divided into windows of 50 batches. Each window is sorted by aspect
    ratio and divided into batches. Then all batches of the epoch are shuffled. The batches depend only on the
    seed and the number of the epoch. Every process has the same number of batches.

    Args:
        sampler: sampler that yields each image once per epoch. It is stored as the attribute ``sampler``, because
            Lightning calls ``set_epoch`` on the sampler in this attribute.
        source: data set of the images.
        batch_size: number of images per batch.
        drop_last: whether to drop the last batch of the epoch if it is incomplete.
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
    """Build a batch of padded images from samples of :func:`make_sample`.

    Images are padded on the right and below to the largest height and width, rounded up to multiples of 32.

    Returns:
        A dictionary with

        - ``image``: ``(B, 3, H, W)`` uint8, 0 on padding;
        - ``padding_mask``: ``(B, H, W)`` bool, True on padding; None if nothing is padded;
        - ``targets``: list of one dictionary per image, with ``labels`` ``(n,)`` long and ``boxes`` ``(n, 4)`` float.
          The boxes are cxcywh, normalised to [0, 1] by the size of the image without padding;
        - ``image_ids``: ``(B,)`` long;
        - ``image_sizes``: ``(B, 2)`` long, height and width in pixels before the transforms;
        - ``failures`` and ``errors``: lists of error messages, see :func:`split_messages`.

        If no image could be read, the dictionary has only ``failures`` and ``errors``.
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
    """Pad images on the right and below to a common size.

    Args:
        images: images of any sizes, each ``(3, H, W)`` uint8.
        frame: height and width of the result in pixels. Default: the largest height and the largest width of the
            images, each rounded up to a multiple of 32.

    Returns:
        A tuple (batch ``(B, 3, H, W)`` uint8, mask ``(B, H, W)`` bool). The mask is True on padding. It is None if
        nothing is padded.
    """
    largest = (max(image.shape[axis] for image in images) for axis in (1, 2))
    height, width = frame or (-(-side // MULTIPLE) * MULTIPLE for side in largest)
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(list(images)), None
    batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for number, image in enumerate(images):
        batch[number, :, : image.shape[1], : image.shape[2]] = image
        mask[number, : image.shape[1], : image.shape[2]] = False
    return batch, mask
