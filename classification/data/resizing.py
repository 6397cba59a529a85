"""Resizing and cropping of images for evaluation and prediction, without albumentations."""

import math

import numpy as np

from mobile_former.training.data.images import resize

_STRIP = 32  # an image is a strip if its longer side is more than 32 times the shorter


def resize_and_crop(image: np.ndarray, image_size: int, crop_fraction: float = 0.875) -> np.ndarray:
    """Resize the shorter side of an image to ``image_size / crop_fraction``, then crop the central square.

    The result is the same as that of :func:`classification.data.transforms.eval_transform`.

    Args:
        image: image ``(H, W, 3)`` uint8 RGB.
        image_size: side of the square in pixels.
        crop_fraction: fraction of the shorter side that the crop covers, above 0 and at most 1.

    Returns:
        The square as an array ``(image_size, image_size, 3)``, uint8 RGB.
    """
    return centre_crop(resize_shorter_side(image, shorter_side(image_size, crop_fraction)), image_size)


def shorter_side(image_size: int, crop_fraction: float) -> int:
    """Return the length in pixels to which the shorter side of an image is resized before the centre crop.

    It is ``image_size / crop_fraction``, rounded down.
    """
    return math.floor(image_size / crop_fraction)


def resize_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image ``(H, W, 3)`` uint8 so that its shorter side has ``size`` pixels.

    The interpolation is Pillow's antialiased bilinear interpolation, which was also used to measure the published
    accuracies. The new length of the longer side is rounded down, as in torchvision. Only the :func:`middle` of a very
    long, narrow image is kept and resized. The rest is not needed, because a centre crop follows. Resizing the whole
    image could fill the memory: the result for an image of 1×60 000 pixels would take 12 GB.
    """
    image = middle(image)
    height, width = image.shape[-3:-1]
    shorter = min(height, width)
    return resize(image, height * size // shorter, width * size // shorter)


def middle(image: np.ndarray) -> np.ndarray:
    """Crop an image ``(H, W, 3)`` to its middle if one side is more than 32 times the other.

    The longer side of the crop is 32 times the shorter. Any other image is returned unchanged.
    """
    height, width = image.shape[-3:-1]
    top, left = (max(0, (side - _STRIP * min(height, width)) // 2) for side in (height, width))
    return image[..., top : height - top, left : width - left, :]


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central square of an image ``(H, W, 3)``. The sides of the square are ``size`` pixels long.

    The sides of the image must be at least as long. If the margins are not whole pixels, the coordinates of the top
    left corner are rounded half to even, as in torchvision.
    """
    top, left = (round((side - size) / 2) for side in image.shape[-3:-1])
    return image[..., top : top + size, left : left + size, :]
