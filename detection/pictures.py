"""Drawing of images with boxes and captions.

Captions get a smaller font if they would overlap or hide objects. If even small captions would do so, a legend of the
colours replaces the captions.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
_LETTERS = 14  # pixels, minimum font size of a picture, unless captions shrink
_SHRINKING = (1.0, 0.85, 0.7)  # font sizes of captions that are tried, as fractions of the usual one
_LEAST_LETTERS = 9  # pixels, minimum font size of captions that shrink
_TOLERATED = 0.1  # fraction of the captions that may be illegible, and of the boxes that may be hidden
_COVERED = 0.125  # maximum fraction of the picture that the captions cover, if there are more than five
_SHEET_LETTERS = 11  # pixels, font size of captions on a sheet
_TITLE_LETTERS = 16  # pixels, font size of the title of a sheet
_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def with_detections(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    class_names: Mapping[int, str],
) -> Image.Image:
    """Draw boxes and captions on a copy of an image, and return the copy as a Pillow image.

    A small image is enlarged, so that the captions are legible. If there is no room for the captions, a legend below
    the image replaces them.

    Args:
        image: image ``(H, W, 3)``, uint8 RGB.
        boxes: list of boxes, each xyxy in pixels. Earlier boxes are drawn over later ones.
        labels: class label of each box. The label determines the colour.
        captions: text of each box.
        class_names: dictionary from label to class name, for the legend.
    """
    height, width = image.shape[:2]
    scale = max(1.0, _LEAST_SIDE / max(height, width))
    # Large images are viewed scaled down, so letters grow with them.
    letters = max(_LETTERS, min(scale * max(height, width) / 60, scale * min(height, width) / 8))
    picture, captioned = _draw(image, boxes, labels, captions, scale, round(letters))
    return picture if captioned else _with_legend(picture, labels, class_names, round(letters))


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
    cells = [_true_cell(image, target, class_names) for image, target in zip(images, targets, strict=True)]
    draw_cells(cells, dict(enumerate(class_names)), path, title=title, columns=columns)


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
            and ``labels`` ``(n,)``. The detections of an image are sorted by descending score.
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
        cells.append(_true_cell(image, target, class_names))
        cells.append(Cell(image, found["boxes"][shown].tolist(), labels, captions))
    title = f"validation images: objects on the left, detections with scores from {threshold:g} on the right"
    draw_cells(cells, dict(enumerate(class_names)), path, title=title)


def caption(class_name: str, score: float) -> str:
    """Return the caption of a detection: class name and score in percent, such as ``dog: 87%``."""
    return f"{class_name}: {score:.0%}"


class Cell(NamedTuple):
    """One image of a grid of images, and the boxes to draw on it.

    Attributes:
        image: image ``(H, W, 3)``, uint8 RGB.
        boxes: list of boxes, each xyxy in pixels.
        labels: class label of each box. The label determines the colour.
        captions: text of each box.
    """

    image: np.ndarray
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    captions: Sequence[str]


def draw_cells(
    cells: Sequence[Cell],
    class_names: Mapping[int, str],
    path: Path,
    *,
    title: str,
    columns: int = 4,
    legend: bool = False,
) -> None:
    """Draw images with boxes in a grid, and save the grid as an image file.

    Args:
        cells: images and their boxes.
        class_names: dictionary from label to class name, for the legend.
        path: path of the image file to write.
        title: title above the grid.
        columns: maximum number of images in a row.
        legend: whether to draw a legend in any case. If False, it is drawn only if an image has no room for captions.
    """
    drawn = [_draw(*cell, _CELL / max(cell.image.shape[:2]), _SHEET_LETTERS) for cell in cells]
    sheet = _grid([picture for picture, _ in drawn], max(1, min(columns, len(cells))), title)
    explained = [
        label
        for cell, (_, captioned) in zip(cells, drawn, strict=True)
        if legend or not captioned
        for label in cell.labels
    ]
    if explained:
        sheet = _with_legend(sheet, explained, class_names, _SHEET_LETTERS + 2)
    sheet.save(path)


def _grid(cells: Sequence[Image.Image], columns: int, title: str) -> Image.Image:
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


def _with_legend(
    picture: Image.Image, labels: Sequence[int], class_names: Mapping[int, str], letters: int
) -> Image.Image:
    """Return a copy of a picture with a legend below it: the colour and class name of each label in ``labels``.

    ``class_names`` is a dictionary from label to class name. ``letters`` is the font size in pixels.
    """
    names: dict[str, list[str]] = {}
    for label in sorted(set(labels)):  # some of many classes have the same colour
        names.setdefault(COLOURS[label % len(COLOURS)], []).append(class_names[label])
    places, left, top, row = [], letters, letters // 2, round(1.6 * letters)
    for colour, shared in names.items():
        text, font = _legible(", ".join(shared), letters, picture.width - 4 * letters)
        width = round(font.getlength(text)) + 3 * letters
        if left + width > picture.width and left > letters:
            left, top = letters, top + row
        places.append((left, top, colour, text, font))
        left += width
    result = Image.new("RGB", (picture.width, picture.height + top + row), "white")
    result.paste(picture)
    pen = ImageDraw.Draw(result)
    for left, top, colour, text, font in places:
        top += picture.height
        pen.rectangle((left, top, left + letters, top + letters), fill=colour, outline="black")
        pen.text((left + round(1.5 * letters), top + letters / 2), text, "black", font, anchor="lm")
    return result


def _true_cell(image: np.ndarray, target: dict[str, Tensor], class_names: Sequence[str]) -> Cell:
    height, width = image.shape[:2]
    boxes = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
    labels = target["labels"].tolist()
    return Cell(image, boxes.tolist(), labels, [class_names[label] for label in labels])


def _draw(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    scale: float,
    letters: int,
) -> tuple[Image.Image, bool]:
    """Resize a copy of an image by the factor ``scale``, and draw boxes and captions on it.

    Pillow is used, because matplotlib does not return pixel positions and text sizes before it draws.

    Args:
        image: image ``(H, W, 3)``, uint8 RGB.
        boxes: list of boxes, each xyxy in pixels of ``image``.
        labels: class label of each box.
        captions: text of each box.
        scale: factor of the size.
        letters: font size in pixels. It is reduced if the captions need more room.

    Returns:
        A tuple (picture, bool). The bool is True if the captions are drawn. It is False if they are left out, because
        even small captions would overlap or hide objects.
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

    sizes = sorted({max(min(letters, _LEAST_LETTERS), round(factor * letters)) for factor in _SHRINKING}, reverse=True)
    for size in sizes:
        tags = _tags(frames, captions, picture.size, size, edge)
        if _are_legible([tag.place for tag in tags], frames, picture.size):
            break
    else:
        return picture, False
    for tag, label in reversed(list(zip(tags, labels, strict=True))):
        colour, contrast = _colours(label)
        left, top, right, bottom = tag.place
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour, outline=contrast, width=edge)
        pen.text((left + edge + size // 4, top + edge), tag.text, contrast, tag.font)
    return picture, True


class Tag(NamedTuple):
    """Caption of a box: its rectangle in the picture (xyxy, in pixels), text and font."""

    place: tuple[int, int, int, int]
    text: str
    font: ImageFont.FreeTypeFont


def _tags(
    frames: Sequence[tuple[int, int, int, int]],
    captions: Sequence[str],
    picture: tuple[int, int],
    letters: int,
    edge: int,
) -> list[Tag]:
    """Choose position and font of the caption of each box. Return a list with one :class:`Tag` for each box.

    Args:
        frames: bounding box of each object, xyxy in pixels.
        captions: text of each box.
        picture: width and height of the picture.
        letters: font size in pixels.
        edge: width of the outline of a caption in pixels.
    """
    tags: list[Tag] = []
    for frame, text in zip(frames, captions, strict=True):
        # At most half of the width of the picture, or about twelve letters
        room = min(picture[0] - letters, max(picture[0] // 2, 8 * letters))
        text, font = _legible(text, letters, room)
        size = round(font.getlength(text)) + letters // 2 + 2 * edge, sum(font.getmetrics()) + 2 * edge
        tags.append(Tag(_free_place(frame, size, picture, [tag.place for tag in tags], frames), text, font))
    return tags


def _are_legible(
    places: Sequence[tuple[int, int, int, int]], frames: Sequence[tuple[int, int, int, int]], picture: tuple[int, int]
) -> bool:
    """Return whether most captions are legible and most boxes visible.

    A caption is illegible if earlier captions cover more than a twentieth of it. A box is hidden if captions cover more
    than half of it. The result is True if all of these conditions hold:

    - at most a tenth of the captions are illegible;
    - at most a tenth of the boxes are hidden;
    - there are at most five captions, or all captions together cover at most an eighth of the picture.

    Args:
        places: rectangle of each caption, xyxy in pixels.
        frames: bounding box of each object, xyxy in pixels.
        picture: width and height of the picture.
    """

    def area(rectangle: tuple[int, int, int, int]) -> int:
        return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])

    illegible = sum(_overlap(place, places[:number]) > area(place) / 20 for number, place in enumerate(places))
    hidden = sum(_overlap(frame, places) > area(frame) / 2 for frame in frames)
    few = len(places) <= 5 or sum(map(area, places)) <= _COVERED * picture[0] * picture[1]
    return few and max(illegible, hidden) <= _TOLERATED * len(places)


def _frame(box: Sequence[float], scale: float, margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Multiply a box by ``scale``, enlarge it by ``margin`` pixels on each side, and clip it to the image.

    ``box`` is xyxy in pixels. ``size`` is the width and height of the image. Return a tuple (left, top, right, bottom)
    in pixels. Column ``right`` and row ``bottom`` are the last ones inside the enlarged box.
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
    frames: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Choose the position of a caption near its bounding box. Return the rectangle of the caption, xyxy in pixels.

    The candidates are above, below and inside the bounding box. All candidates are inside the picture. The candidate
    that overlaps other captions by the fewest pixels is chosen. If several candidates have the same overlap, those that
    cover at most a quarter of the object's own bounding box are preferred. If several of these are left, the one that
    covers the fewest pixels of all bounding boxes is chosen.

    Args:
        frame: bounding box, xyxy in pixels.
        size: width and height of the caption.
        picture: width and height of the picture.
        taken: rectangles of the captions that are already placed, xyxy.
        frames: bounding boxes of all objects, xyxy in pixels.
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
        places, key=lambda place: (_overlap(place, taken), _overlap(place, [frame]) > much, _overlap(place, frames))
    )


def _overlap(place: tuple[int, int, int, int], others: Sequence[tuple[int, int, int, int]]) -> int:
    """Return the sum of the areas, in pixels, in which a rectangle overlaps each rectangle in ``others``."""
    others = np.array(others).reshape(-1, 4)
    sides = np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2])
    return int(sides.clip(0).prod(1).sum())


def _colours(label: int) -> tuple[str, str]:
    """Return a tuple (colour of the class ``label``, colour of text on this background).

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
