"""From an image and its boxes as read to what the model takes: the published recipe, one for scenes, and evaluation."""

from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
from albumentations.core.serialization import Serializable

from mobile_former.training.data.images import resize

SHORT_SIDES = tuple(range(480, 801, 32))
SHORT_SIDE = 800  # in evaluation
LONGEST = 1333

_CROP_SHORT_SIDES = (400, 500, 600)
_CROP_SIDES = (384, 600)
# DETR has no limit here, but resized strips (a pixel by 60 000) would fill memory; photographs do not come near it.
_CROP_LONGEST = 16_000

# What moved and shrunk images show beyond their border: ImageNet's mean colour.
_FILL = (124, 116, 104)


def train_transform(
    short_sides: Sequence[int] = SHORT_SIDES, longest: int = LONGEST, *, flip: float = 0.5, crop: float = 0.5
) -> A.Compose:
    """DETR's recipe: flip, random crop, resize.

    Args:
        short_sides: lengths in pixels of which the shorter side takes one at random.
        longest: most pixels of the longer side.
        flip: probability of a horizontal flip.
        crop: probability of a random crop.

    Returns:
        A pipeline from ``image`` ``(H, W, 3)`` uint8 RGB, ``bboxes`` ``(n, 4)`` xyxy in pixels and ``labels`` ``(n,)``
        to the same. Of a box that a crop cuts, the part in sight stays, however small, as in DETR.
    """
    cropping = A.Sequential([ResizeShortSide(_CROP_SHORT_SIDES, _CROP_LONGEST), RandomSizeCrop(*_CROP_SIDES)], p=crop)
    return _compose([A.HorizontalFlip(p=flip), cropping, ResizeShortSide(short_sides, longest)])


def scenes_transform() -> A.Compose:
    """For small images of things that are not the same mirrored, as digits: light scaling, shift and colours.

    Returns:
        A pipeline as of :func:`train_transform`; the size stays. A box keeps at least half of its area, or goes: less
        than half a digit is a stroke, of which nobody could tell the box.
    """
    move = A.Affine(
        scale=(0.8, 1.2),
        translate_percent=(-0.1, 0.1),
        # A mirrored border would bring mirrored digits.
        border_mode=cv2.BORDER_CONSTANT,
        fill=_FILL,
        p=0.7,
    )
    colour = A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.5)
    return _compose([move, colour], min_visibility=0.5)


def custom_transform(transforms: Sequence[Serializable]) -> A.Compose:
    """A user's own albumentations transforms of image and boxes; what a box loses to the border is cut off."""
    # albumentations warns where no transform looks at boxes, as with colours alone; one that does nothing is content.
    return _compose([*transforms, A.NoOp()])


def eval_transform(
    short_side: int = SHORT_SIDE, longest: int = LONGEST, frame: tuple[int, int] | None = None
) -> A.Compose:
    """Resize the shorter side, without the longer one passing a limit.

    Args:
        short_side: in pixels.
        longest: in pixels.
        frame: height and width into which the result has to fit; default: any.

    Returns:
        A pipeline as of :func:`train_transform`.
    """
    return _compose([ResizeShortSide((short_side,), longest, frame)])


class ResizeShortSide(A.DualTransform):
    """Resize, antialiased, to a random length of the shorter side, the longer side in proportion.

    Args:
        sizes: lengths in pixels to draw from.
        longest: most pixels of the longer side, for which the shorter one gives way; default: no limit.
        frame: height and width into which the result has to fit; default: any.
        p: probability.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        longest: int | None = None,
        frame: tuple[int, int] | None = None,
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.sizes = tuple(sizes)
        self.longest = longest
        self.frame = frame

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Draw ``size``, the height and width of the result."""
        return {"size": resized(*params["shape"][:2], self.py_random.choice(self.sizes), self.longest, self.frame)}

    def apply(self, img: np.ndarray, size: tuple[int, int], **params) -> np.ndarray:
        """Resize an ``(H, W, 3)`` image."""
        return resize(img, *size)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params) -> np.ndarray:
        """Boxes stay: albumentations passes them as shares of the image's sides."""
        return bboxes


class RandomSizeCrop(A.DualTransform):
    """Cut out a rectangle whose sides are drawn independently.

    Args:
        shortest: least pixels of a side, where the image has as many.
        longest: most pixels of a side.
        p: probability.
    """

    def __init__(self, shortest: int, longest: int, p: float = 1.0):
        super().__init__(p=p)
        self.shortest = shortest
        self.longest = longest

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        """Draw ``crop``: left, top, right and bottom in pixels."""
        height, width = params["shape"][:2]
        across, down = (
            self.py_random.randint(min(self.shortest, side), min(self.longest, side)) for side in (width, height)
        )
        left, top = self.py_random.randint(0, width - across), self.py_random.randint(0, height - down)
        return {"crop": (left, top, left + across, top + down)}

    def apply(self, img: np.ndarray, crop: tuple[int, int, int, int], **params) -> np.ndarray:
        """Crop an ``(H, W, 3)`` image."""
        left, top, right, bottom = crop
        return img[top:bottom, left:right]

    def apply_to_bboxes(self, bboxes: np.ndarray, crop: tuple[int, int, int, int], **params) -> np.ndarray:
        """Move boxes, ``(n, 4+)`` in shares of the image's sides; albumentations clips them and drops those outside."""
        left, top, right, bottom = crop
        height, width = params["shape"][:2]
        bboxes = bboxes.copy()
        bboxes[:, [0, 2]] = (bboxes[:, [0, 2]] * width - left) / (right - left)
        bboxes[:, [1, 3]] = (bboxes[:, [1, 3]] * height - top) / (bottom - top)
        return bboxes


def resized(
    height: int, width: int, short_side: int, longest: int | None, frame: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width, in proportion, with a given shorter side, or less where the longer one would pass a limit.

    Where a frame's height and width are given, they are less yet where they would not fit into it.
    """
    shorter, longer = min(height, width), max(height, width)
    if longest is not None and longer * short_side > longest * shorter:
        short_side = max(1, round(longest * shorter / longer))
    # Rounded down, as DETR does
    other = short_side * longer // shorter
    if longest is not None:
        other = min(other, longest)  # for which a rounded-up shorter side may ask a pixel too much
    height, width = (short_side, other) if height <= width else (other, short_side)
    if frame is None or (height <= frame[0] and width <= frame[1]):
        return height, width
    if height * frame[1] > width * frame[0]:
        return frame[0], max(1, width * frame[0] // height)
    return max(1, height * frame[1] // width), frame[1]


def _compose(transforms: Sequence, min_visibility: float = 0.0) -> A.Compose:
    """A pipeline of images with boxes.

    Clipping and the filter of invalid boxes take care of rounding, and of transforms that push boxes out. Boxes that
    end less than a pixel wide or high are no objects to find.
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
