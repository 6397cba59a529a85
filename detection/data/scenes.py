"""A built-in data set for detection: handwritten digits at random positions on photographs."""

import json
import random
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import pytorch_lightning  # noqa: F401  # before scikit-learn, see mobile_former.training.data.digits
from sklearn.datasets import load_sample_images

from mobile_former.training.data.digits import digits_of

SIDE = 128  # pixels, height and width of a scene
COUNTS = {"train": 4000, "val": 400}  # number of scenes
MOST = 5  # maximum number of digits in a scene
LENGTHS = (20, 56)  # pixels, range of the longer side of a digit
OVERLAP = 0.1  # maximum intersection of two boxes over the smaller area

_SEEDS = {"train": 1, "val": 2}
_TRIES = 20  # random positions tried for a digit before it is left out
_ENLARGED = 64  # pixels, longer side of the stored digits


class Digit(NamedTuple):
    """One digit of a synthetic image.

    It has the class label, the left and top edge in pixels, and the opacity mask ``(h, w)`` uint8.
    """

    label: int
    left: int
    top: int
    ink: np.ndarray  # (h, w) uint8 opacity, tightly cropped

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box of the digit: left, top, right and bottom in pixels."""
        height, width = self.ink.shape
        return self.left, self.top, self.left + width, self.top + height


class Scenes:
    """Synthetic images (scenes): scikit-learn's digits at random sizes and positions on scikit-learn's two photographs.

    A scene depends only on its split and index. The digits are split as in the classification task, by
    :func:`mobile_former.training.data.digits.digits_of`. The two splits share no digits and no parts of photographs.

    Args:
        split: ``"train"`` or ``"val"``.
        count: number of scenes. Default: 4000 for training, 400 for validation.
    """

    class_names = tuple(str(digit) for digit in range(10))
    category_ids = tuple(range(1, 11))
    left_out: ClassVar[dict[str, int]] = {}
    annotated = True

    def __init__(self, split: str, count: int | None = None):
        self.split = split
        self.count = COUNTS[split] if count is None else count
        self._inks, self._ink_labels = _enlarged_digits(split)
        self._photographs = _photographs(split)
        self._last: tuple[int, list[Digit]] | None = None

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> np.ndarray:
        """Return a synthetic image ``(128, 128, 3)``, uint8 RGB."""
        draw = self._draw(index, "picture")
        image = self._background(draw)
        for digit in self._digits(index):
            _paint(image, digit, draw)
        return image

    def boxes(self, index: int) -> np.ndarray:
        """Return the bounding box of each digit in an image: ``(n, 4)`` float32, xyxy in pixels."""
        return np.array([digit.box for digit in self._digits(index)], dtype=np.float32)

    def labels(self, index: int) -> np.ndarray:
        """Return the labels of an image's boxes: ``(n,)`` int64. The label of a digit is its value, 0 to 9."""
        return np.array([digit.label for digit in self._digits(index)])

    def image_id(self, index: int) -> int:
        """Return the id that the image has in COCO results: its index plus 1."""
        return index + 1

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of an image in pixels: 128 and 128."""
        return SIDE, SIDE

    def name(self, index: int) -> str:
        """Return the name of an image that error messages use, such as ``val scene 3``."""
        return f"{self.split} scene {index}"

    def ground_truth(self) -> dict[str, list[dict]]:
        """Return the ground truth for scoring, as a dictionary in COCO format."""
        annotations = []
        for index in range(len(self)):
            for digit in self._digits(index):
                height, width = digit.ink.shape
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": self.image_id(index),
                        "category_id": self.category_ids[digit.label],
                        "bbox": [digit.left, digit.top, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        return {
            "images": [
                {"id": self.image_id(index), "file_name": self._file_name(index), "height": SIDE, "width": SIDE}
                for index in range(len(self))
            ],
            "annotations": annotations,
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def _file_name(self, index: int) -> str:
        return f"{self.split}_{index:05d}.png"

    def _draw(self, index: int, purpose: str) -> random.Random:
        # Only random() is used: its sequence is the same in all versions of Python.
        return random.Random(f"{_SEEDS[self.split]} {index} {purpose}")

    def _digits(self, index: int) -> list[Digit]:
        """Return the list of the digits in an image.

        The last result is cached, because ``read``, ``boxes`` and ``labels`` are called in turn for the same image.
        """
        if self._last is None or self._last[0] != index:
            self._last = index, self._place(self._draw(index, "digits"))
        return self._last[1]

    def _place(self, draw: random.Random) -> list[Digit]:
        digits: list[Digit] = []
        for _ in range(_below(draw, MOST) + 1):
            number = _below(draw, len(self._inks))
            length = LENGTHS[0] + _below(draw, LENGTHS[1] - LENGTHS[0] + 1)
            ink = _shrink(self._inks[number], length)
            for _ in range(_TRIES):
                left, top = _below(draw, SIDE - ink.shape[1] + 1), _below(draw, SIDE - ink.shape[0] + 1)
                digit = Digit(self._ink_labels[number], left, top, ink)
                if all(_overlap(digit.box, other.box) <= OVERLAP for other in digits):
                    digits.append(digit)
                    break
        return digits

    def _background(self, draw: random.Random) -> np.ndarray:
        """Return a random part of a photograph, with random scale, flip, contrast and brightness, as background."""
        photograph = self._photographs[_below(draw, len(self._photographs))]
        side = 80 + _below(draw, 81)
        top, left = (_below(draw, length - side + 1) for length in photograph.shape[:2])
        part = photograph[top : top + side, left : left + side]
        if draw.random() < 0.5:
            part = part[:, ::-1]
        part = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        mean = sum(cv2.mean(part)[:3]) / 3
        contrast = 0.4 + 0.4 * draw.random()
        brightness = mean + (0.6 * draw.random() - 0.3) * 128
        return cv2.convertScaleAbs(part, alpha=contrast, beta=max(0.0, brightness - contrast * mean))


def write_coco(folder: Path, split: str, count: int | None = None) -> None:
    """Write synthetic images in COCO format.

    The files are ``FOLDER/annotations/instances_<split>.json`` and ``FOLDER/images/<split>_<number>.png``.

    Args:
        folder: output folder. It is created if it is missing.
        split: ``"train"`` or ``"val"``.
        count: number of images. Default: 4000 for training, 400 for validation.
    """
    scenes = Scenes(split, count)
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ground_truth = scenes.ground_truth()
    for index, record in enumerate(ground_truth["images"]):
        cv2.imwrite(str(folder / "images" / record["file_name"]), scenes.read(index)[:, :, ::-1])
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(ground_truth), encoding="utf-8")


def _paint(image: np.ndarray, digit: Digit, draw: random.Random) -> None:
    """Paint a digit on an image, in place. The colour is random: light on a dark background, otherwise dark."""
    left, top, right, bottom = digit.box
    below = image[top:bottom, left:right]
    dark = sum(cv2.mean(below)[:3]) / 3 > 127
    colour = [(45 * draw.random()) if dark else (210 + 45 * draw.random()) for _ in range(3)]
    cover = (digit.ink * np.float32(1 / 255))[:, :, None]
    below[:] = below + (np.array(colour, dtype=np.float32) - below) * cover + np.float32(0.5)


def _shrink(ink: np.ndarray, length: int) -> np.ndarray:
    """Return the opacity mask of a digit, resized and then cropped.

    The mask is resized so that its longer side has ``length`` pixels. It is then cropped to the bounding box of all
    pixels that are more than half opaque.
    """
    scale = length / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    return _tight(cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA))


def _tight(ink: np.ndarray) -> np.ndarray:
    """Return the opacity mask of a digit, cropped to the bounding box of all pixels that are more than half opaque."""
    left, top, width, height = cv2.boundingRect(cv2.compare(ink, 127, cv2.CMP_GT))
    return ink[top : top + height, left : left + width]


def _overlap(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Return the area of the intersection of two xyxy boxes, divided by the area of the smaller box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(width, 0) * max(height, 0) / min(areas)


def _below(draw: random.Random, limit: int) -> int:
    """Draw and return a random integer from 0 to ``limit - 1``."""
    return int(draw.random() * limit)


def _enlarged_digits(split: str) -> tuple[list[np.ndarray], list[int]]:
    """Return two lists for the digits of a split: their enlarged, smooth opacity masks, and their labels.

    A mask is ``(h, w)`` uint8. Its longer side is at most 64 pixels.
    """
    images, labels = digits_of(split)
    inks = []
    for original in images.astype(np.float32) / 16:
        # Digits reach the edge of their 8×8 pixels. Cubic interpolation needs a border to fall to 0.
        padded = cv2.copyMakeBorder(original, *[1] * 4, cv2.BORDER_CONSTANT, value=0)
        large = cv2.resize(padded, None, fx=10, fy=10, interpolation=cv2.INTER_CUBIC)
        ink = (255 * np.clip((large - 0.3) / 0.28, 0, 1)).astype(np.uint8)
        inks.append(_shrink(_tight(ink), _ENLARGED))
    return inks, labels


def _photographs(split: str) -> list[np.ndarray]:
    """Return a list with a crop of each photograph in scikit-learn. A crop is ``(H, W, 3)`` uint8 RGB.

    There are two photographs. The training split uses the left 70 % of each photograph. The validation split uses the
    rest.
    """
    parts = []
    for photograph in load_sample_images().images:
        border = photograph.shape[1] * 7 // 10
        parts.append(photograph[:, :border] if split == "train" else photograph[:, border:])
    return parts
