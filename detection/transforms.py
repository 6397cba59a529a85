"""albumentations pipelines for images with boxes.

There are pipelines for training as in DETR, for training on the built-in data set of digits, and for evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import albumentations as A
import cv2
import numpy as np
from albumentations.core.serialization import Serializable

from detection.data.resizing import LONGEST, SHORT_SIDE, resized
from mobile_former.errors import InputError
from mobile_former.training.data.images import resize
from mobile_former.variants import MIN_SIZE

SHORT_SIDES = tuple(range(480, 801, 32))

_CROP_SHORT_SIDES = (400, 500, 600)
_CROP_SIDES = (384, 600)
# DETR has no limit here, but an image of 1 x 60 000 pixels would fill the memory. Photographs stay far below.
_CROP_LONGEST = 16_000

# Colour beyond the border of moved and shrunk images: the mean of ImageNet.
_FILL = (124, 116, 104)


@dataclass(frozen=True)
class TransformOptions:
    """Options of the training and evaluation pipelines.

    Attributes:
        short_sides: lengths in pixels. The shorter side of each training image is resized to one of these lengths,
            chosen at random.
        short_side: length in pixels of the shorter side in evaluation.
        longest: maximum length in pixels of the longer side.
        flip: probability of a horizontal flip in training.
        crop: probability of a random crop in training.

    Raises:
        InputError: a value is out of range.
    """

    short_sides: Sequence[int]
    short_side: int
    longest: int
    flip: float
    crop: float

    def __post_init__(self):
        if not self.short_sides or min(*self.short_sides, self.short_side) < MIN_SIZE:
            raise InputError(
                f"--data.short_sides is {list(self.short_sides)}, --data.short_side {self.short_side}: give lengths "
                f"from {MIN_SIZE} pixels up"
            )
        longest_short_side = max(*self.short_sides, self.short_side)
        if self.longest < longest_short_side:
            raise InputError(
                f"--data.longest is {self.longest}, less than the longest short side, {longest_short_side}: give at "
                "least that"
            )
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--data.{name} is {getattr(self, name)}: give a probability from 0 to 1")

    def training(self, custom: Sequence[Serializable] | None = None) -> A.Compose:
        """Build the training pipeline from the transforms in ``custom``. If it is None, use :func:`train_transform`."""
        if custom is not None:
            return custom_transform(custom)
        return train_transform(self.short_sides, self.longest, flip=self.flip, crop=self.crop)

    def evaluation(self) -> A.Compose:
        """Build the evaluation pipeline with :func:`eval_transform`."""
        return eval_transform(self.short_side, self.longest)


def train_transform(
    short_sides: Sequence[int] = SHORT_SIDES, longest: int = LONGEST, *, flip: float = 0.5, crop: float = 0.5
) -> A.Compose:
    """Build DETR's training pipeline: flip, random crop, resize.

    Args:
        short_sides: lengths in pixels. The shorter side of each image is resized to one of these lengths, chosen at
            random.
        longest: maximum length in pixels of the longer side.
        flip: probability of a horizontal flip.
        crop: probability of a random crop.

    Returns:
        A pipeline that takes and returns ``image`` ``(H, W, 3)`` uint8 RGB, ``bboxes`` ``(n, 4)`` xyxy in pixels and
        ``labels`` ``(n,)``. Boxes are clipped to the crop, as in DETR. A box that is then less than a pixel wide or
        high is dropped.
    """
    cropping = A.Sequential([ResizeShortSide(_CROP_SHORT_SIDES, _CROP_LONGEST), RandomSizeCrop(*_CROP_SIDES)], p=crop)
    return _compose([A.HorizontalFlip(p=flip), cropping, ResizeShortSide(short_sides, longest)])


def scenes_transform() -> A.Compose:
    """Build the training pipeline of the built-in data set of handwritten digits: scaling, shift and colour changes.

    The changes are slight. There is no flip, because digits must not be mirrored.

    Returns:
        A pipeline with the inputs and outputs of :func:`train_transform`. The size of the image does not change. A box
        that loses more than half of its area is dropped, because its visible part does not show how large the digit is.
    """
    move = A.Affine(
        scale=(0.8, 1.2),
        translate_percent=(-0.1, 0.1),
        # a reflected border would contain mirrored digits
        border_mode=cv2.BORDER_CONSTANT,
        fill=_FILL,
        p=0.7,
    )
    colour = A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.5)
    return _compose([move, colour], min_visibility=0.5)


def custom_transform(transforms: Sequence[Serializable]) -> A.Compose:
    """Build a pipeline from a user's albumentations transforms. Boxes are clipped to the image."""
    # albumentations warns if no transform handles boxes, as with colour transforms only; NoOp does.
    return _compose([*transforms, A.NoOp()])


def eval_transform(
    short_side: int = SHORT_SIDE, longest: int = LONGEST, frame: tuple[int, int] | None = None
) -> A.Compose:
    """Build the evaluation pipeline, which resizes images and keeps their aspect ratio.

    Args:
        short_side: length of the shorter side in pixels. It becomes smaller if ``longest`` requires it.
        longest: maximum length of the longer side in pixels.
        frame: maximum height and width of the result in pixels. Default: no limit.

    Returns:
        A pipeline with the inputs and outputs of :func:`train_transform`.
    """
    return _compose([ResizeShortSide((short_side,), longest, frame)])


class ResizeShortSide(A.DualTransform):
    """Resize an image so that its shorter side has a random length. The aspect ratio is kept.

    The resizing is antialiased.

    Args:
        sizes: lengths in pixels. The shorter side is resized to one of these lengths, chosen at random.
        longest: maximum length of the longer side in pixels. It takes precedence over ``sizes``. Default: no limit.
        frame: maximum height and width of the result in pixels. Default: no limit.
        p: probability of applying the transform.
    """

    def __init__(
        self, sizes: Sequence[int], longest: int | None = None, frame: tuple[int, int] | None = None, p: float = 1.0
    ):
        super().__init__(p=p)
        self.sizes = tuple(sizes)
        self.longest = longest
        self.frame = frame

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Choose the new size of an image at random. Return it in pixels as ``{"size": (height, width)}``."""
        return {"size": resized(*params["shape"][:2], self.py_random.choice(self.sizes), self.longest, self.frame)}

    def apply(self, img: np.ndarray, size: tuple[int, int], **params) -> np.ndarray:
        """Resize an ``(H, W, 3)`` image to ``size``, a tuple (height, width)."""
        return resize(img, *size)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params) -> np.ndarray:
        """Return the boxes unchanged. Their coordinates are normalised, so they do not depend on the image size."""
        return bboxes


class RandomSizeCrop(A.DualTransform):
    """Crop an image to a random rectangle, whose height and width are chosen independently of each other.

    Args:
        shortest: minimum length of a side in pixels. An image side that is shorter is not cropped.
        longest: maximum length of a side in pixels.
        p: probability of applying the transform.
    """

    def __init__(self, shortest: int, longest: int, p: float = 1.0):
        super().__init__(p=p)
        self.shortest = shortest
        self.longest = longest

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Choose a random crop region. Return it in pixels as ``{"crop": (left, top, right, bottom)}``."""
        height, width = params["shape"][:2]
        across, down = (
            self.py_random.randint(min(self.shortest, side), min(self.longest, side)) for side in (width, height)
        )
        left, top = self.py_random.randint(0, width - across), self.py_random.randint(0, height - down)
        return {"crop": (left, top, left + across, top + down)}

    def apply(self, img: np.ndarray, crop: tuple[int, int, int, int], **params) -> np.ndarray:
        """Crop an image ``(H, W, 3)`` to ``crop``, a tuple (left, top, right, bottom) in pixels."""
        left, top, right, bottom = crop
        return img[top:bottom, left:right]

    def apply_to_bboxes(self, bboxes: np.ndarray, crop: tuple[int, int, int, int], **params) -> np.ndarray:
        """Convert boxes from normalised coordinates of the image to normalised coordinates of the crop.

        ``bboxes`` ``(n, 4 or more)`` has xyxy in its first four columns. Other columns do not change. albumentations
        then clips the boxes and drops those outside the crop.
        """
        left, top, right, bottom = crop
        height, width = params["shape"][:2]
        bboxes = bboxes.copy()
        bboxes[:, [0, 2]] = (bboxes[:, [0, 2]] * width - left) / (right - left)
        bboxes[:, [1, 3]] = (bboxes[:, [1, 3]] * height - top) / (bottom - top)
        return bboxes


def _compose(transforms: Sequence, min_visibility: float = 0.0) -> A.Compose:
    """Build a pipeline of albumentations transforms for images with boxes.

    Boxes are clipped to the image after the transforms. A box is dropped if it is outside the image, if the clipped box
    is less than a pixel wide or high, or if its area is less than the fraction ``min_visibility`` of the area before
    clipping.
    """
    boxes = A.BboxParams(
        "pascal_voc",
        label_fields=["labels"],
        min_visibility=min_visibility,
        min_width=1,
        min_height=1,
        clip=True,
        filter_invalid_bboxes=True,
    )
    return A.Compose(list(transforms), bbox_params=boxes)
