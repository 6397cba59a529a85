"""Resizing of images for evaluation and prediction, without albumentations."""

import numpy as np

from mobile_former.training.data.images import resize

SHORT_SIDE = 800  # pixels, in evaluation
LONGEST = 1333  # pixels


def resize_to_fit(
    image: np.ndarray, short_side: int = SHORT_SIDE, longest: int = LONGEST, frame: tuple[int, int] | None = None
) -> np.ndarray:
    """Resize an image and keep its aspect ratio. The resizing is antialiased.

    The result is the same as that of :func:`detection.transforms.eval_transform`.

    Args:
        image: image ``(H, W, 3)`` uint8 RGB.
        short_side: length of the shorter side in pixels. It becomes smaller if ``longest`` requires it.
        longest: maximum length of the longer side in pixels.
        frame: maximum height and width of the result in pixels. Default: no limit.
    """
    return resize(image, *resized(*image.shape[-3:-1], short_side, longest, frame))


def resized(
    height: int, width: int, short_side: int, longest: int | None, frame: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the height and width of an image after it is resized with its aspect ratio kept. All sizes are in pixels.

    Args:
        height: height of the image.
        width: width of the image.
        short_side: length of the shorter side of the result.
        longest: maximum length of the longer side of the result. It takes precedence over ``short_side``. None: no
            limit.
        frame: maximum height and width of the result. None: no limit.
    """
    shorter, longer = min(height, width), max(height, width)
    if longest is not None and longer * short_side > longest * shorter:
        short_side = max(1, round(longest * shorter / longer))
    # rounded down, as in DETR
    other = short_side * longer // shorter
    if longest is not None:
        other = min(other, longest)  # a shorter side that was rounded up may give a pixel too much
    height, width = (short_side, other) if height <= width else (other, short_side)
    if frame is None or (height <= frame[0] and width <= frame[1]):
        return height, width
    if height * frame[1] > width * frame[0]:
        return frame[0], max(1, width * frame[0] // height)
    return max(1, height * frame[1] // width), frame[1]
