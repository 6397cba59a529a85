"""scikit-learn's handwritten digits: a small data set that needs no download."""

import cv2
import numpy as np

from mobile_former.training.data.digits import digits_of

SIDE = 64  # pixels
BORDER = 1  # black pixels around the 8×8 original, because its digit touches the edge


class Digits:
    """One split of scikit-learn's 1 797 handwritten digits, enlarged from 8×8 to 64×64 pixels.

    The validation split has one fifth of the images of each class.

    Args:
        split: ``"train"`` (1 437 images) or ``"val"`` (360 images).
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str):
        images, self.labels = digits_of(split)
        self.images = (images * (255 / 16)).astype(np.uint8)
        self.split = split

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """Return the image number ``index`` as an array ``(64, 64, 3)``, uint8 RGB."""
        grey = cv2.copyMakeBorder(self.images[index], *[BORDER] * 4, cv2.BORDER_CONSTANT, value=0)
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def name(self, index: int) -> str:
        """Return the name of an image that error messages use, such as ``train digit 5``."""
        return f"{self.split} digit {index}"
