"""Drawing of images with boxes and captions."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from detection.boxes.geometry import cxcywh_to_xyxy
from mobile_former.training.run.figures import COLOURS

_LEAST_SIDE = 640  # pixels; smaller images are enlarged, so that captions do not cover them
_CELL = 300  # pixels, square for one image of a sheet
_GAP = 8  # pixels between images of a sheet
_LETTERS = 14  # pixels, minimum font size of a picture
_SHEET_LETTERS = 11  # pixels, font size of captions on a sheet
_TITLE_LETTERS = 16  # pixels, font size of the title of a sheet
_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def with_detections(
    image: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    """Draw boxes and captions on a copy of an image, and return the copy as a Pillow image.

    A small image is enlarged, so that the captions are legible.

    Args:
        image: image ``(H, W, 3)``, uint8 RGB.
        boxes: list of boxes, each xyxy in pixels. Earlier boxes are drawn over later ones.
        labels: class label of each box. The label determines the colour.
        captions: text of each box.
    """
    height, width = image.shape[:2]
    scale = max(1.0, _LEAST_SIDE / max(height, width))
    # Large images are viewed scaled down, so letters grow with them.
    letters = max(_LETTERS, min(scale * max(height, width) / 60, scale * min(height, width) / 8))
    return _draw(image, boxes, labels, captions, scale, round(letters))


def draw_sheet(
    images: Sequence[np.ndarray],
    targets: Sequence[dict[str, Tensor]],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str,
    columns: int = 4,
) -> None:
    """Draw images with their labelled boxes in a grid, and save the grid as an image file.

    Args:
        images: images of any sizes, each ``(H, W, 3)`` uint8 RGB.
        targets: list with one dictionary for each image: ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``, cxcywh,
            normalised to [0, 1].
        class_names: class names in the order of the labels.
        path: path of the image file to write.
        title: title above the grid.
        columns: maximum number of images in a row.
    """
    cells = [_draw_objects(image, target, class_names) for image, target in zip(images, targets, strict=True)]
    _arrange(cells, max(1, min(columns, len(images))), title).save(path)


def draw_comparison(
    images: Sequence[np.ndarray],
    targets: Sequence[dict[str, Tensor]],
    detections: Sequence[dict[str, Tensor]],
    class_names: Sequence[str],
    path: Path,
    *,
    threshold: float,
) -> None:
    """Draw images in a grid, each image twice, and save the grid as an image file.

    The left copy of an image shows its true boxes. The right copy shows its detected boxes.

    Args:
        images: images of any sizes, each ``(H, W, 3)`` uint8 RGB.
        targets: labels and true boxes of each image, as in :func:`draw_sheet`.
        detections: list with one dictionary for each image: ``boxes`` ``(n, 4)``, xyxy in pixels, ``scores`` ``(n,)``
            and ``labels`` ``(n,)``, sorted by descending score.
        class_names: class names in the order of the labels.
        path: path of the image file to write.
        threshold: minimum score of the detections that are drawn.
    """
    cells = []
    for image, target, found in zip(images, targets, detections, strict=True):
        shown = found["scores"] >= threshold
        labels = found["labels"][shown].tolist()
        scores = found["scores"][shown].tolist()
        captions = [caption(class_names[label], score) for label, score in zip(labels, scores, strict=True)]
        cells.append(_draw_objects(image, target, class_names))
        cells.append(_draw_cell(image, found["boxes"][shown].tolist(), labels, captions))
    title = f"validation images: objects on the left, detections with scores from {threshold:g} on the right"
    _arrange(cells, 4, title).save(path)


def caption(class_name: str, score: float) -> str:
    """Return the caption of a detection: class name and score in percent, such as ``dog: 87%``."""
    return f"{class_name}: {score:.0%}"


def _arrange(cells: Sequence[Image.Image], columns: int, title: str) -> Image.Image:
    font = ImageFont.truetype(_FONT, _TITLE_LETTERS)
    top = 2 * _TITLE_LETTERS
    width = max(columns * (_CELL + _GAP), round(font.getlength(title))) + _GAP
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (width, top + sum(height + _GAP for height in heights)), "white")
    ImageDraw.Draw(sheet).text((_GAP, top / 2), title, "black", font, anchor="lm")
    upper = top
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _GAP + column * (_CELL + _GAP) + (_CELL - cell.width) // 2
            sheet.paste(cell, (left, upper + (height - cell.height) // 2))
        upper += height + _GAP
    return sheet


def _draw_objects(image: np.ndarray, target: dict[str, Tensor], class_names: Sequence[str]) -> Image.Image:
    height, width = image.shape[:2]
    boxes = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
    labels = target["labels"].tolist()
    return _draw_cell(image, boxes.tolist(), labels, [class_names[label] for label in labels])


def _draw_cell(
    image: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    return _draw(image, boxes, labels, captions, _CELL / max(image.shape[:2]), _SHEET_LETTERS)


def _draw(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    scale: float,
    letters: int,
) -> Image.Image:
    """Resize a copy of an image by the factor ``scale``, and draw boxes and captions on it.

    The copy is returned as a Pillow image. The font size is ``letters`` pixels. Pillow is used, because matplotlib
    does not return pixel positions and text sizes before it draws.
    """
    picture = Image.fromarray(image)
    if scale != 1:
        size = [max(1, round(scale * side)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    line, edge = max(2, letters // 8), max(1, letters // 14)
    frames = [_frame(box, scale, line + edge, picture.size) for box in boxes]
    # The best box is drawn last, over all others. Lines have a black or white edge, so that they show on any image.
    for frame, label in reversed(list(zip(frames, labels, strict=True))):
        colour, contrast = _colours(label)
        left, top, right, bottom = frame
        pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=contrast, width=line + 2 * edge)
        pen.rectangle(frame, outline=colour, width=line)

    tags: list[tuple[int, int, int, int]] = []
    texts = []
    for frame, text in zip(frames, captions, strict=True):
        # At most half of the width of the picture, or about twelve letters
        room = min(picture.width - letters, max(picture.width // 2, 8 * letters))
        text, font = _legible(text, letters, room)
        size = round(font.getlength(text)) + letters // 2 + 2 * edge, sum(font.getmetrics()) + 2 * edge
        tags.append(_free_place(frame, size, picture.size, tags))
        texts.append((text, font))
    for tag, (text, font), label in reversed(list(zip(tags, texts, labels, strict=True))):
        colour, contrast = _colours(label)
        left, top, right, bottom = tag
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour, outline=contrast, width=edge)
        pen.text((left + edge + letters // 4, top + edge), text, contrast, font)
    return picture


def _frame(box: Sequence[float], scale: float, margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Multiply a box by ``scale``, enlarge it by ``margin`` pixels on each side, and clip it to the image.

    ``box`` is xyxy. ``size`` is the width and height of the image. Return a tuple (left, top, right, bottom) in pixels.
    The pixels at right and bottom belong to the enlarged box.
    """
    left, top, right, bottom = (round(scale * value) for value in box)
    width, height = size
    left, top = min(max(0, left - margin), width - 1), min(max(0, top - margin), height - 1)
    right, bottom = min(right + margin, width) - 1, min(bottom + margin, height) - 1
    return left, top, max(left, right), max(top, bottom)


def _free_place(
    frame: tuple[int, int, int, int],
    size: tuple[int, int],
    picture: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Choose the position of a caption near its bounding box. Return the rectangle of the caption, xyxy in pixels.

    The candidates are above, below and inside the bounding box. All candidates are inside the picture. The candidate
    that overlaps other captions by the fewest pixels is chosen. If several candidates have the same overlap, a
    candidate that covers at most a quarter of the bounding box is preferred.

    Args:
        frame: bounding box, xyxy in pixels.
        size: width and height of the caption.
        picture: width and height of the picture.
        taken: rectangles of the captions that are already placed, xyxy.
    """
    left, top, right, bottom = frame
    width, height = size
    # Above the frame, inside at its top, below it, inside at its bottom; each aligned left and right.
    rows = (top - height, top, bottom + 1, bottom + 1 - height)
    places = []
    for y in rows:
        for x in (left, right + 1 - width):
            x, y = max(0, min(x, picture[0] - width)), max(0, min(y, picture[1] - height))
            places.append((x, y, x + width, y + height))
    much = (right + 1 - left) * (bottom + 1 - top) / 4
    return min(
        places, key=lambda place: (sum(_overlap(place, other) for other in taken), _overlap(place, frame) > much)
    )


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> int:
    """Return the number of pixels in the intersection of two xyxy rectangles."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _colours(label: int) -> tuple[str, str]:
    """Return a tuple (colour of a class, colour of text on it).

    The text is black or white, whichever has more contrast.
    """
    colour = COLOURS[label % len(COLOURS)]
    red, green, blue = ((value / 255) ** 2.2 for value in ImageColor.getrgb(colour))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # The luminance with equal WCAG contrast, (lighter + 0.05) / (darker + 0.05), to black and to white
    return colour, "black" if luminance > 0.179 else "white"


def _legible(text: str, letters: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Shorten a text so that it fits into one line of ``width`` pixels. ``…`` replaces the middle of a long text.

    Return a tuple (shortened text, Pillow font for the text). ``letters`` is the font size in pixels.
    """
    text, path = with_font(text)
    font = ImageFont.truetype(path, letters)
    kept = len(text)
    shown = text
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"  # keeps the score at the end
    return shown, font


def with_font(text: str) -> tuple[str, str]:
    """Replace line breaks in a text by spaces, and choose a font that has all characters of the text.

    If no font has all characters, the font is DejaVu Sans. Characters that DejaVu Sans lacks are then replaced by their
    code points, such as ``U+1F600``.

    Returns:
        A tuple (changed text, path of the font file).
    """
    text = " ".join(text.split())
    path = _font_of(frozenset(text))
    if path is not None:
        return text, path
    return "".join(char if ord(char) in _characters(_FONT) else f"U+{ord(char):04X}" for char in text), _FONT


@cache
def _font_of(characters: frozenset[str]) -> str | None:
    """Return the path of a font file that has all given characters, preferably DejaVu Sans.

    Return None if no font has all of them.
    """
    codes = {ord(char) for char in characters}
    if codes <= _characters(_FONT):
        return _FONT
    # "Last Resort" maps every character to a placeholder.
    installed = sorted(font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort"))
    return next((path for path in installed if codes <= _characters(path)), None)


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of all characters in a font file. The set is empty if the font is not scalable."""
    font = FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
