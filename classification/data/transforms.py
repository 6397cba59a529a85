"""Image transforms of classification: augmentation for training, and resize and crop for evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import albumentations as A
import cv2
import numpy as np
from albumentations.core.serialization import Serializable

from classification.data.resizing import centre_crop, resize_shorter_side, shorter_side
from mobile_former.errors import InputError
from mobile_former.training.data.images import resize
from mobile_former.variants import MIN_SIZE
from mobile_former.weights.usage import IMAGENET_MEAN

# ImageNet's mean colour fills the area beyond the border of rotated, sheared and shifted images.
_FILL = tuple(round(255 * value) for value in IMAGENET_MEAN)


@dataclass(frozen=True)
class TransformOptions:
    """Options of the image transforms for training and evaluation.

    Attributes:
        image_size: side of the square input in pixels.
        crop_scale: smallest and largest fraction of the image area that a random crop covers.
        flip: probability of a horizontal flip.
        rand_augment: whether to apply RandAugment.
        random_erasing: probability that noise replaces a rectangle of the image.
        crop_fraction: fraction of the shorter side that the centre crop of evaluation covers.

    Raises:
        InputError: a value is out of range.
    """

    image_size: int
    crop_scale: Sequence[float]
    flip: float
    rand_augment: bool
    random_erasing: float
    crop_fraction: float

    def __post_init__(self):
        if self.image_size < MIN_SIZE:
            raise InputError(
                f"--data.image_size is {self.image_size}: the model takes images from {MIN_SIZE} pixels up"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(
                f"--data.crop_scale is {list(self.crop_scale)}: give two fractions, 0 < smallest <= largest <= 1"
            )
        for name in ("flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--data.{name} is {getattr(self, name)}: give a probability from 0 to 1")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"--data.crop_fraction is {self.crop_fraction}: give a fraction above 0, at most 1")

    def training(self, custom: Sequence[Serializable] | None = None) -> A.Compose:
        """Build the pipeline of transforms for training images.

        Args:
            custom: transforms that the user has chosen. A resize to ``image_size`` is appended to them. None: the
                published Mobile-Former recipe, see :func:`train_transform`.
        """
        if custom is not None:
            return custom_transform(custom, self.image_size)
        return train_transform(
            self.image_size,
            crop_scale=self.crop_scale,
            flip=self.flip,
            rand_augment=self.rand_augment,
            random_erasing=self.random_erasing,
        )

    def evaluation(self) -> A.Compose:
        """Build the pipeline of transforms for evaluation images, see :func:`eval_transform`."""
        return eval_transform(self.image_size, self.crop_fraction)


def train_transform(
    image_size: int,
    *,
    crop_scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    rand_augment: bool = False,
    random_erasing: float = 0.0,
) -> A.Compose:
    """Build the training pipeline of the published Mobile-Former recipe.

    The transforms are random resized crop, flip, RandAugment and random erasing.

    Args:
        image_size: side of the square output in pixels.
        crop_scale: smallest and largest fraction of the image area that a crop covers.
        flip: probability of a horizontal flip.
        rand_augment: whether to apply RandAugment with 2 operations, magnitude 9 and standard deviation 0.5.
        random_erasing: probability that noise replaces a rectangle of the image.

    Returns:
        A pipeline from images ``(H, W, 3)`` uint8 RGB to images ``(image_size, image_size, 3)``.
    """
    augmentations = [RandomResizedCrop((image_size, image_size), scale=tuple(crop_scale)), A.HorizontalFlip(p=flip)]
    if rand_augment:
        augmentations.append(rand_augment_ops(num_ops=2, magnitude=9, magnitude_std=0.5))
    if random_erasing > 0:
        augmentations.append(A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), fill="random", p=random_erasing))
    return A.Compose(augmentations)


def custom_transform(transforms: Sequence[Serializable], image_size: int) -> A.Compose:
    """Build a pipeline of the given transforms and a final resize to a square of ``image_size`` pixels."""
    return A.Compose([*transforms, A.Resize(image_size, image_size)])


def eval_transform(image_size: int, crop_fraction: float = 0.875) -> A.Compose:
    """Build the evaluation pipeline: resize the shorter side to ``image_size / crop_fraction``, then crop the centre.

    Args:
        image_size: side of the square crop in pixels.
        crop_fraction: fraction of the shorter side that the crop covers, above 0 and at most 1.

    Returns:
        A pipeline from images ``(H, W, 3)`` uint8 RGB to images ``(image_size, image_size, 3)``.
    """
    return A.Compose([ResizeShorterSide(shorter_side(image_size, crop_fraction)), CentreCrop(image_size)])


class RandomResizedCrop(A.RandomResizedCrop):
    """Version of albumentations' RandomResizedCrop that uses antialiasing.

    Antialiasing is applied only if a side of the crop is reduced to less than half of its length. Then all pixels of
    the crop contribute to the output. Otherwise, plain bilinear interpolation is used, which reads four pixels of the
    crop per output pixel.
    """

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **params) -> np.ndarray:
        """Crop an image ``(H, W, 3)`` to ``crop_coords`` (left, top, right, bottom, in pixels), and resize the crop."""
        left, top, right, bottom = crop_coords
        height, width = self.size
        if bottom - top > 2 * height or right - left > 2 * width:
            return resize(img[top:bottom, left:right], height, width)
        return super().apply(img, crop_coords, **params)


class ResizeShorterSide(A.ImageOnlyTransform):
    """Resize an image so that its shorter side has ``size`` pixels, see :func:`resize_shorter_side`.

    Args:
        size: length of the shorter side in pixels.
    """

    def __init__(self, size: int, p: float = 1.0):
        super().__init__(p=p)
        self.size = size

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        """Resize an image ``(H, W, 3)`` uint8 so that its shorter side has ``size`` pixels."""
        return resize_shorter_side(img, self.size)


class CentreCrop(A.ImageOnlyTransform):
    """Crop the central square of an image, see :func:`centre_crop`.

    Args:
        size: side of the square in pixels. The image must have at least this height and width.
    """

    def __init__(self, size: int, p: float = 1.0):
        super().__init__(p=p)
        self.size = size

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        """Return the central square of an image ``(H, W, 3)``."""
        return centre_crop(img, self.size)


def rand_augment_ops(num_ops: int, magnitude: float, magnitude_std: float) -> A.RandomOrder:
    """Build RandAugment (Cubuk et al., 2020) from albumentations' operations.

    The published training recipe of Mobile-Former uses timm's ``rand-m9-mstd0.5``. This function uses the same
    operations, the same parameter ranges, and the same probability ½ for each operation, with two differences.
    SolarizeAdd is left out, because albumentations does not have it. The magnitude of an operation is uniformly
    distributed. In timm, it is normally distributed, with the same mean and standard deviation.

    Args:
        num_ops: number of operations per image. They are chosen at random, with replacement.
        magnitude: mean of the magnitude (strength) of an operation, in [0, 10].
        magnitude_std: standard deviation of the magnitude.
    """
    spread = magnitude_std * math.sqrt(3)  # half-width of a uniform distribution with this standard deviation
    low, high = max(0.0, magnitude - spread) / 10, min(10.0, magnitude + spread) / 10

    def signed(operation, limit: float) -> A.OneOf:
        """Return a transform that applies an operation with probability ½.

        The operation has one parameter, such as an angle. The sign of this parameter is random.

        Args:
            operation: function that maps a range of the parameter (minimum, maximum) to a transform.
            limit: absolute value of the parameter at the maximum magnitude of 10.
        """
        return A.OneOf([operation((limit * low, limit * high)), operation((-limit * high, -limit * low))], p=0.5)

    def affine(**parameters) -> A.Affine:
        return A.Affine(**parameters, fill=_FILL, border_mode=cv2.BORDER_CONSTANT, p=1)

    def shear(axis: str):
        def operation(slopes: tuple[float, float]) -> A.Affine:
            angles = tuple(math.degrees(math.atan(slope)) for slope in slopes)
            return affine(shear={"x": (0, 0), "y": (0, 0), axis: angles})

        return operation

    def shift(axis: str):
        return lambda shares: affine(translate_percent={"x": (0, 0), "y": (0, 0), axis: shares})

    # Factors of the enhancements range from 0.1 to 1.9; a factor of 1 changes nothing.
    factor = (0.1 + 1.8 * low, 0.1 + 1.8 * high)

    def colour(**factors) -> A.ColorJitter:
        unchanged = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        return A.ColorJitter(**(unchanged | factors), p=0.5)

    # The reference extrapolates away from a 3×3 smoothing filter whose centre has weight 5/13. A.Sharpen does the same
    # with alpha = (factor - 1) / 13.
    sharpen = tuple(max(0.0, value - 1) / 13 for value in factor)
    bits = tuple(max(1, math.floor(4 * value)) for value in (low, high))
    operations = [
        A.AutoContrast(method="pil", p=0.5),
        A.Equalize(p=0.5),
        A.InvertImg(p=0.5),
        signed(lambda degrees: affine(rotate=degrees), 30),
        A.Posterize(num_bits=bits, p=0.5),
        A.Solarize(threshold_range=(low, high), p=0.5),
        colour(saturation=factor),
        colour(contrast=factor),
        colour(brightness=factor),
        A.Sharpen(alpha=sharpen, lightness=(1, 1), p=0.5),
        signed(shear("x"), 0.3),
        signed(shear("y"), 0.3),
        signed(shift("x"), 0.45),
        signed(shift("y"), 0.45),
    ]
    return A.RandomOrder(operations, n=num_ops, replace=True)
