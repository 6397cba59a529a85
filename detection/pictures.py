"""Images with boxes drawn on them."""

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

from detection.boxes.boxes import cxcywh_to_xyxy
from mobile_former.training.run.figures import COLOURS

_LEAST_SIDE = 640  # pixels of a picture's longer side: captions on a smaller one would cover it
_CELL = 300  # pixels of a sheet's square for one image
_GAP = 8  # pixels between them
_LETTERS = 14  # pixels: height of the smallest letters of a picture
_SHEET_LETTERS = 11  # of captions on a sheet, and
_TITLE_LETTERS = 16  # of what stands above it
_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def draw_detections(
    image: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str], path: Path
) -> None:
    """Write an image with boxes, see :func:`with_detections`.

    Args:
        image: and
        boxes: and
        labels: and
        captions: as there.
        path: the picture, its ending telling the format.
    """
    # JPEG only: no blur of colours, in which thin lines and letters would fade
    with_detections(image, boxes, labels, captions).save(path, quality=92, subsampling=0)


def with_detections(
    image: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    """An image with boxes, in its own size; a small one is enlarged, so that the captions can be read.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: xyxy in pixels; the first ones come to lie uppermost.
        labels: which choose the colours.
        captions: of the boxes.
    """
    height, width = image.shape[:2]
    scale = max(1.0, _LEAST_SIDE / max(height, width))
    # Large images are looked at as a whole, so that letters have to grow with them.
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
    """Write a grid of images with their objects.

    Args:
        images: each ``(H, W, 3)`` uint8 RGB, of any size.
        targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``, cxcywh in 0..1.
        class_names: of the labels.
        path: the picture.
        title: above the grid.
        columns: images in a row, at most.
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
    """Write a sheet of images twice, side by side: with their objects, and with what was detected.

    Args:
        images: each ``(H, W, 3)`` uint8 RGB, of any size.
        targets: as of :func:`draw_sheet`.
        detections: for each image ``boxes`` ``(n, 4)`` xyxy in its pixels, ``scores`` and ``labels`` ``(n,)``, best
            first.
        class_names: of the labels.
        path: the picture.
        threshold: score from which detections are drawn.
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
    """What stands on a detection's box: its class, and its score in 0..1 as a percentage."""
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
    """The image enlarged or shrunk, with boxes around its objects and captions of a height in pixels beside them.

    Not matplotlib's work: its axes know neither the image's pixels nor how much room a text will take.
    """
    picture = Image.fromarray(image)
    if scale != 1:
        size = [max(1, round(scale * side)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    line, edge = max(2, letters // 8), max(1, letters // 14)
    frames = [_frame(box, scale, line + edge, picture.size) for box in boxes]
    # The best last, over all others; every line has an edge in black or white, as one of the two shows on any image.
    for frame, label in reversed(list(zip(frames, labels, strict=True))):
        colour, contrast = _colours(label)
        left, top, right, bottom = frame
        pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=contrast, width=line + 2 * edge)
        pen.rectangle(frame, outline=colour, width=line)

    tags: list[tuple[int, int, int, int]] = []
    texts = []
    for frame, text in zip(frames, captions, strict=True):
        # At most half of the picture's width, or some twelve letters
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
    """The outermost pixels, xyxy, of a line around a box; where it would leave the picture it runs along the border."""
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
    """A caption's place, xyxy, within the picture: the one by its frame that covers least of other captions, and
    preferably not much of what is framed.

    Args:
        frame: xyxy.
        size: width and height of the caption.
        picture: width and height.
        taken: places of other captions, xyxy.
    """
    left, top, right, bottom = frame
    width, height = size
    # Above, within at the top, below, within at the bottom; each on the left and on the right.
    rows = (top - height, top, bottom + 1, bottom + 1 - height)
    places = []
    for y in rows:
        for x in (left, right + 1 - width):
            x, y = max(0, min(x, picture[0] - width)), max(0, min(y, picture[1] - height))
            places.append((x, y, x + width, y + height))
    much = (right + 1 - left) * (bottom + 1 - top) / 4
    return min(
        places,
        key=lambda place: (sum(_overlap(place, other) for other in taken), _overlap(place, frame) > much),
    )


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> int:
    """Pixels that two rectangles, xyxy, share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _colours(label: int) -> tuple[str, str]:
    """A class's colour, and black or white, whichever can be read on it."""
    colour = COLOURS[label % len(COLOURS)]
    red, green, blue = ((value / 255) ** 2.2 for value in ImageColor.getrgb(colour))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Where WCAG's contrast, (lighter + 0.05) / (darker + 0.05), is the same to black and to white
    return colour, "black" if luminance > 0.179 else "white"


def _legible(text: str, letters: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text in a line that a font can show, shortened in its middle to a width in pixels; and that font."""
    text, path = with_font(text)
    font = ImageFont.truetype(path, letters)
    kept = len(text)
    shown = text
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"  # with the score, at the end
    return shown, font


def with_font(text: str) -> tuple[str, str]:
    """A text of any script in a line, and the file of a font that can show it.

    Where no font can, a character's code stands for it, which tells more than an empty box.
    """
    text = " ".join(text.split())
    path = _font_of(frozenset(text))
    if path is not None:
        return text, path
    return "".join(char if ord(char) in _characters(_FONT) else f"U+{ord(char):04X}" for char in text), _FONT


@cache
def _font_of(characters: frozenset[str]) -> str | None:
    """The file of a font that has all characters: the one that is always there, else an installed one, else None."""
    codes = {ord(char) for char in characters}
    if codes <= _characters(_FONT):
        return _FONT
    # "Last Resort" has a placeholder for every character and a shape for none.
    installed = sorted(font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort"))
    return next((path for path in installed if codes <= _characters(path)), None)


@cache
def _characters(path: str) -> frozenset[int]:
    """The codes of all characters that a font file has; none, if it cannot be scaled."""
    font = FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
