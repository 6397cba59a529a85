"""From an image as read to the square that the model takes: the published recipe, and evaluation."""

import math
from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
from albumentations.core.serialization import Serializable

from mobile_former.training.data.images import resize
from mobile_former.weights.usage import IMAGENET_MEAN

# What rotated, sheared and shifted images show beyond their border: ImageNet's mean colour.
_FILL = tuple(round(255 * value) for value in IMAGENET_MEAN)

_STRIP = 32  # times as long as wide, from where on an image is a strip


def train_transform(
    image_size: int,
    *,
    crop_scale: Sequence[float] = (0.08, 1.0),
    flip: float = 0.5,
    rand_augment: bool = False,
    random_erasing: float = 0.0,
) -> A.Compose:
    """The published recipe: random resized crop, flip, RandAugment, random erasing.

    Args:
        image_size: side of the square crop in pixels.
        crop_scale: smallest and largest share of the image's area that a crop takes, in 0..1.
        flip: probability of a horizontal flip.
        rand_augment: RandAugment of 2 operations at magnitude 9 with standard deviation 0.5.
        random_erasing: probability that a rectangle of noise replaces a part.

    Returns:
        A pipeline from a ``(H, W, 3)`` uint8 RGB image to one of ``(image_size, image_size, 3)``.
    """
    augmentations = [RandomResizedCrop((image_size, image_size), scale=tuple(crop_scale)), A.HorizontalFlip(p=flip)]
    if rand_augment:
        augmentations.append(rand_augment_ops(num_ops=2, magnitude=9, magnitude_std=0.5))
    if random_erasing > 0:
        augmentations.append(A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), fill="random", p=random_erasing))
    return A.Compose(augmentations)


def custom_transform(transforms: Sequence[Serializable], image_size: int) -> A.Compose:
    """A user's own transforms, with resizing to ``image_size`` where they give another size."""
    return A.Compose([*transforms, A.Resize(image_size, image_size)])


def eval_transform(image_size: int, crop_fraction: float = 0.875) -> A.Compose:
    """Resize so that the centre crop is ``crop_fraction`` of the shorter side, and crop.

    Args:
        image_size: side of the square crop in pixels.
        crop_fraction: in 0..1.

    Returns:
        A pipeline from a ``(H, W, 3)`` uint8 RGB image to one of ``(image_size, image_size, 3)``.
    """
    return A.Compose([ResizeShorterSide(shorter_side(image_size, crop_fraction)), CentreCrop(image_size)])


def shorter_side(image_size: int, crop_fraction: float) -> int:
    """Pixels of the shorter side of which a crop of ``image_size`` is ``crop_fraction``."""
    return math.floor(image_size / crop_fraction)


class RandomResizedCrop(A.RandomResizedCrop):
    """albumentations' random resized crop, but without aliasing where a large photograph becomes small.

    Bilinear interpolation looks at four pixels, which is enough down to half the size; below, all pixels are averaged.
    """

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **params) -> np.ndarray:
        """Cut out (left, top, right, bottom) of an ``(H, W, 3)`` image and resize it."""
        left, top, right, bottom = crop_coords
        height, width = self.size
        if bottom - top > 2 * height or right - left > 2 * width:
            return resize(img[top:bottom, left:right], height, width)
        return super().apply(img, crop_coords, **params)


class ResizeShorterSide(A.ImageOnlyTransform):
    """Resize the shorter side as published scores were computed: Pillow's antialiased bilinear interpolation.

    Of a strip only the middle is resized, as a centre crop follows: a pixel's width of 60 000 would fill 12 GB.

    Args:
        size: of the shorter side in pixels; the other one is rounded down, as torchvision does.
    """

    def __init__(self, size: int, p: float = 1.0):
        super().__init__(p=p)
        self.size = size

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        """Resize an ``(H, W, 3)`` image."""
        img = middle(img)
        height, width = img.shape[:2]
        shorter = min(height, width)
        return resize(img, height * self.size // shorter, width * self.size // shorter)


def middle(image: np.ndarray) -> np.ndarray:
    """The middle of an ``(H, W, 3)`` image that is a strip; any other as it is."""
    height, width = image.shape[:2]
    top, left = (max(0, (side - _STRIP * min(height, width)) // 2) for side in (height, width))
    return image[top : height - top, left : width - left]


class CentreCrop(A.ImageOnlyTransform):
    """Cut out the central square, its corner rounded as torchvision does: a half goes to the even side.

    Args:
        size: of the square in pixels; no side of the image is shorter.
    """

    def __init__(self, size: int, p: float = 1.0):
        super().__init__(p=p)
        self.size = size

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        """Crop an ``(H, W, 3)`` image."""
        top, left = (round((side - self.size) / 2) for side in img.shape[:2])
        return img[top : top + self.size, left : left + self.size]


def rand_augment_ops(num_ops: int, magnitude: float, magnitude_std: float) -> A.RandomOrder:
    """RandAugment (Cubuk et al., 2020) composed of albumentations' operations.

    Operations, their ranges and the probability ½ of each are those of timm's ``rand-m9-mstd0.5``, in which the
    published recipe is written, less SolarizeAdd, which albumentations has not. timm draws a magnitude from a normal
    distribution; here it is uniform with the same mean and standard deviation.

    Args:
        num_ops: operations for an image, drawn with replacement.
        magnitude: mean magnitude, in 0..10.
        magnitude_std: standard deviation of the magnitude.
    """
    spread = magnitude_std * math.sqrt(3)  # a uniform distribution's half-width over its standard deviation
    low, high = max(0.0, magnitude - spread) / 10, min(10.0, magnitude + spread) / 10

    def signed(operation, limit: float) -> A.OneOf:
        """The operation with its parameter in either direction."""
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

    # Enhancements multiply by 0.1 … 1.9 where 1 changes nothing.
    factor = (0.1 + 1.8 * low, 0.1 + 1.8 * high)

    def colour(**factors) -> A.ColorJitter:
        unchanged = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        return A.ColorJitter(**(unchanged | factors), p=0.5)

    # Blending away from a 3×3 smoothing whose centre weighs 5 of 13 is sharpening by (factor - 1) / 13.
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
