"""The embedded data set: scikit-learn's handwritten digits. Run as a command, it writes them as an image folder."""

import cv2
import numpy as np

from mobile_former.training.cli.command import parse_folder_and_limit, run_command
from mobile_former.training.data.digits import digits_of

SIDE = 64  # pixels
BORDER = 1  # black pixels around the 8×8 of an original, which its digit fills to the edge


class Digits:
    """1 797 handwritten digits of 8×8 pixels, enlarged; every fifth of a class is held out.

    Args:
        split: ``"train"`` (1 437 images) or ``"val"`` (360).
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str):
        images, self.labels = digits_of(split)
        self.images = (images * (255 / 16)).astype(np.uint8)
        self.split = split

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """The image, ``(64, 64, 3)`` uint8 RGB."""
        grey = cv2.copyMakeBorder(self.images[index], *[BORDER] * 4, cv2.BORDER_CONSTANT, value=0)
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        return f"{self.split} digit {index}"


def main() -> None:
    """Write the digits as ``FOLDER/{train,val}/<digit>/<number>.png``."""
    arguments = parse_folder_and_limit(
        "python -m classification.digits",
        "Write the embedded digits as an image folder.",
        contents="train/ and val/",
        limited="images",
    )
    for split in ("train", "val"):
        digits = Digits(split)
        count = len(digits) if arguments.limit is None else min(arguments.limit, len(digits))
        for index in range(count):
            path = arguments.folder / split / digits.class_names[digits.labels[index]] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), digits.read(index))
        print(f"{count} images in {arguments.folder / split}/")


if __name__ == "__main__":
    run_command(main)
