"""Figures of the attention between feature map and tokens, and of the boxes after each block of E2E-MF's head."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure  # pyplot would look for a display
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from torch import Tensor

from detection.boxes.geometry import iou
from detection.pictures import caption, with_font
from experiments.attention.recording import BlockAttention
from mobile_former.errors import InputError
from mobile_former.training.run.figures import COLOURS

QUERIES = 6  # detector queries whose attention is drawn
BOXES = len(COLOURS)  # detector queries whose boxes are drawn

_DPI = 110
_PANEL = 1.35  # longer side of a panel, inches
_GAP = 0.07  # between panels, inches
_LABEL = 1.25  # width of the row labels, inches
_BAR = 0.62  # width of a colour bar with its numbers, inches
_PIXELS = 240  # longer side of a panel's image
_COLOUR_MAP = colormaps["viridis"]  # perceptually uniform and readable with colour blindness
_OPACITY = 0.68  # of colours on the image
_OTHER_COLOUR = "#D9D9D9"  # of tokens without a column


def draw_bridge(
    image: np.ndarray,
    blocks: Sequence[BlockAttention],
    *,
    index: int = 0,
    head: int | None = None,
    queries: dict[int, str] | None = None,
    title: str = "",
) -> Figure:
    """Draw the attention between feature map and tokens over the image, one row of panels per block.

    The first columns show the attention of each token to the map. The last two columns show, for each position of the
    map, which token it attends to most, and what fraction of its attention this token gets.

    Args:
        image: input of the model, ``(H, W, 3)`` uint8 RGB, without padding.
        blocks: output of :func:`~experiments.attention.recording.bridge_attention`.
        index: index of the image in the batch.
        head: attention head, 1 or 2. Default: the mean of both heads.
        queries: the queries to draw, as a dictionary from the index of a query to its caption, see
            :func:`best_queries`. Default: the first six. Queries are the tokens in the head of the detector E2E-MF.
        title: title of the figure.

    Returns:
        The figure. Save it with ``savefig``. A notebook displays it.

    Raises:
        InputError: ``blocks`` is empty, or there is no such head.
    """
    if not blocks:
        raise InputError("there are no blocks to draw")
    heads = blocks[0].to_former.shape[1]
    if head is not None and not 1 <= head <= heads:
        raise InputError(f"head is {head}: the bridge has heads 1 to {heads}")
    sections = []
    for detects, group in itertools.groupby(blocks, key=lambda block: block.name.startswith("detector")):
        section = list(group)
        count = section[0].to_former.shape[2]
        captions = {number: f"token {number + 1}" for number in range(count)}
        if detects:
            captions = queries or {number: f"query {number + 1}" for number in range(min(QUERIES, count))}
        captions = dict(itertools.islice(captions.items(), len(COLOURS)))  # one colour per token
        sections.append((section, captions, detects, len(captions) < count))

    photo = _thumbnail(image)
    page = _Page(photo, columns=max(len(captions) for _, captions, *_ in sections))
    page.head(title, head, detects=any(detects for _, _, detects, _ in sections))
    for section, captions, detects, others in sections:
        page.section(captions, detects, others)
        for block in section:
            page.row(block, index, head, list(captions), image.shape[:2])
    return page.figure()


def draw_boxes(
    image: np.ndarray,
    steps: Sequence[dict[str, Tensor]],
    class_names: Sequence[str],
    *,
    index: int = 0,
    score_threshold: float = 0.3,
    title: str = "",
) -> Figure:
    """Draw the boxes of E2E-MF's best queries after each block of its head.

    Args:
        image: ``(H, W, 3)`` uint8 RGB of any size, without padding.
        steps: output of :func:`~experiments.attention.recording.box_steps`.
        class_names: class names in the order of the labels.
        index: index of the image in the batch.
        score_threshold: minimum score of a query after the last block, in [0, 1]. The best query is always drawn.
        title: title of the figure.

    Returns:
        A figure with one picture per block. The picture shows the boxes after the block, in one colour per query. Two
        charts show how two values of each query change from block to block: its score, and the IoU of its box with its
        box after the last block.
    """
    captions = best_queries(steps, class_names, index=index, score_threshold=score_threshold, most=BOXES)
    queries = list(captions)
    boxes = torch.stack([step["boxes"][index][queries] for step in steps]).float().cpu()  # (steps, queries, 4)
    scores = torch.stack([step["scores"][index][queries] for step in steps]).float().cpu()
    height, width = image.shape[:2]
    ratio = float(np.clip(height / width, 0.4, 2.0))
    columns = 4
    rows = -(-(len(steps) + 2) // columns)
    cell, tall = 2.6, 2.48 * ratio  # width of a cell and height of its image, inches
    lines = _wrap(title, round(columns * cell * 12))
    above = 0.2 + 0.2 * len(lines)
    legend = 0.2 * -(-len(queries) // columns) + 0.25
    figure = Figure(figsize=(columns * cell, above + rows * (tall + 0.4) + legend), dpi=_DPI)
    size = figure.get_size_inches()

    def add_axes(number: int, inset: tuple[float, float, float, float] = (0.06, 0.0, 0.06, 0.0)) -> Axes:
        row, column = divmod(number, columns)
        left, bottom, right, top = inset
        x, y = column * cell + left, size[1] - above - (row + 1) * (tall + 0.4) + 0.1 + bottom
        return figure.add_axes(
            (x / size[0], y / size[1], (cell - left - right) / size[0], (tall - bottom - top) / size[1])
        )

    _draw_title(figure, lines, size)
    note = "boxes after each block, one colour per query; dotted: its last box"
    figure.text(0.06 / size[0], 1 - (above - 0.12) / size[1], note, fontsize=9, color="#444444", va="top")
    photo = _thumbnail(image, 400)
    for number, step in enumerate(boxes):
        axis = add_axes(number)
        axis.imshow(photo, extent=(0, 1, 1, 0), aspect="auto")
        axis.set_axis_off()
        last = number == len(boxes) - 1
        axis.set_title(f"after block {number + 1}" + (" (the last)" if last else ""), fontsize=9, pad=3)
        for each, (box, final) in reversed(list(enumerate(zip(step.tolist(), boxes[-1].tolist(), strict=True)))):
            if not last:
                _draw_box(axis, final, COLOURS[each], 0.9, linestyle=":")
            _draw_box(axis, box, COLOURS[each], 1.8)
    numbers = range(1, len(steps) + 1)
    overlaps = iou(boxes, boxes[-1])
    charts = {"overlap with the last box (IoU)": overlaps, "score of the query's best class": scores}
    for number, (name, values) in enumerate(charts.items(), start=len(steps)):
        axis = add_axes(number, (0.42, 0.38, 0.12, 0.0))
        for each in reversed(range(len(queries))):
            axis.plot(numbers, values[:, each].tolist(), color=COLOURS[each], marker=".", linewidth=1.4)
        axis.set_title(name, fontsize=9, pad=3)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xticks(list(numbers))
        axis.set_xlabel("block", fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for number, text in enumerate(captions.values()):
        row, column = divmod(number, columns)
        x, y = column * cell + 0.06, legend - 0.2 * (row + 1)
        figure.add_artist(_swatch(x, y, COLOURS[number], size))
        text, font = _choose_font(text, 34)
        figure.text((x + 0.18) / size[0], y / size[1], text, fontproperties=font, fontsize=9, parse_math=False)
    return figure


def best_queries(
    steps: Sequence[dict[str, Tensor]],
    class_names: Sequence[str],
    *,
    index: int = 0,
    score_threshold: float = 0.3,
    most: int = QUERIES,
) -> dict[int, str]:
    """Return a dictionary from the indices of E2E-MF's best queries to their captions, best first.

    The dictionary always contains the best query, even if its score is below the threshold.

    Args:
        steps: output of :func:`~experiments.attention.recording.box_steps`.
        class_names: class names in the order of the labels.
        index: index of the image in the batch.
        score_threshold: minimum score of a query after the last block, in [0, 1].
        most: maximum number of queries.
    """
    scores, labels = steps[-1]["scores"][index].tolist(), steps[-1]["labels"][index].tolist()
    order = sorted(range(len(scores)), key=lambda query: -scores[query])[:most]
    kept = [query for query in order if scores[query] >= score_threshold] or order[:1]
    return {query: caption(class_names[labels[query]], scores[query]) for query in kept}


class _Page:
    """A figure that is built from top to bottom, one row of panels per block.

    All positions are computed here, in inches, instead of by Matplotlib's layout functions.
    """

    def __init__(self, photo: np.ndarray, columns: int):
        self.photo, self.columns = photo, columns
        height, width = photo.shape[:2]
        self.panel = _PANEL * np.array([width, height]) / max(width, height)
        self.right = _LABEL + columns * (self.panel[0] + _GAP) + _BAR  # left edge of the Former→Mobile panels
        self.width = max(7.2, self.right + 2 * (self.panel[0] + _GAP) + _BAR)
        self.grey = 0.25 + 0.75 * cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None] / 255
        self.y = 0.0
        self.parts: list = []  # functions of figure and height, called when the height is known

    def head(self, title: str, head: int | None, *, detects: bool) -> None:
        """Add the image, the title and the explanation of the panels at the top of the figure.

        Args:
            title: title of the figure.
            head: attention head that is shown, 1 or 2. None: the mean of both heads.
            detects: whether the explanation also covers the panels of E2E-MF's queries.
        """
        width, height = self.panel
        shown = "mean of both heads" if head is None else f"head {head}"
        token = "token (in E2E-MF's head: each of the best queries)" if detects else "token"
        notes = [
            f"Mobile→Former: where each {token} looks, {shown}. 1x is uniform attention over the map; lower values "
            "have the same colour as 1x. Each row has its own logarithmic scale.",
            f"Former→Mobile: the {'token or query' if detects else 'token'} that each position of the map attends to "
            "most, and its share of the attention, from uniform to 100%.",
            "Rows: blocks in forward order, with the size of the map. The squares are its positions.",
        ]
        room = self.width - width - 0.35
        lines = _wrap(title, round(room * 10.5))
        notes = [line for note in notes for line in textwrap.wrap(note, round(room * 14.5))]
        self._panel(0.1, 0.1, self.photo)
        y = 0.1
        for line in lines:
            self._text(width + 0.25, y + 0.16, line, fontsize=11, weight="bold")
            y += 0.21
        for line in notes:
            self._text(width + 0.25, y + 0.15, line, fontsize=8.5, color="#333333")
            y += 0.17
        self.y = max(0.1 + height, y) + 0.15

    def section(self, captions: dict[int, str], detects: bool, others: bool) -> None:
        """Add a line of column headers. Each row of panels below it shows one block of the network.

        Args:
            captions: dictionary from the index of a token or query to the caption of its column.
            detects: whether the blocks belong to E2E-MF's head. The tokens of this head are called queries.
            others: whether there are tokens or queries without a column. The header then explains their colour.
        """
        token = "query" if detects else "token"
        self._text(_LABEL, self.y + 0.18, f"Mobile→Former: where each {token} looks", fontsize=9.5)
        self._text(self.right, self.y + 0.18, f"Former→Mobile: the {token} attended to", fontsize=9.5)
        y = self.y + 0.39
        for column, text in enumerate(captions.values()):
            left = _LABEL + column * (self.panel[0] + _GAP)
            self._swatch(left, y, COLOURS[column])
            self._text(left + 0.17, y, text, fontsize=8.5, letters=round((self.panel[0] - 0.15) * 13))
        names = ("strongest (grey: other)" if others else "strongest", "its share")
        for column, name in enumerate(names):
            self._text(self.right + column * (self.panel[0] + _GAP), y, name, fontsize=8.5)
        self.y = y + 0.06

    def row(self, block: BlockAttention, index: int, head: int | None, tokens: list[int], size: tuple) -> None:
        """Add a row of panels that show the attention in one block.

        Args:
            block: attention of the block.
            index: index of the image in the batch.
            head: number of the attention head, counted from 1. None: the mean over all heads.
            tokens: indices of the tokens that have a panel.
            size: height and width of the image in pixels, without padding.
        """
        height, width = (-(-side // block.input_stride) for side in size)  # of the map, without padding
        looks = _select_head(block.to_former[index], head)[:, :height, :width] * (height * width)
        most = max(2.0, float(looks[tokens].max()))
        self._text(0.1, self.y + 0.2, block.name, fontsize=9)
        self._text(0.1, self.y + 0.36, f"looks at {height}x{width}", fontsize=7.5, color="#444444")
        for column, token in enumerate(tokens):
            heat = _enlarge(looks[token], block.input_stride, size, self.photo.shape[:2])
            self._panel(_LABEL + column * (self.panel[0] + _GAP), self.y, self._blend(_colour(heat, 1, most)))
        self._bar(_LABEL + len(tokens) * (self.panel[0] + _GAP), [1, 10, most], "{:.2g}x" if most < 10 else "{:.0f}x")
        if block.to_mobile is not None:
            height, width = (-(-side // block.stride) for side in size)
            shares = _select_head(block.to_mobile[index], head)[:, :height, :width]
            self._text(0.1, self.y + 0.5, f"gives to {height}x{width}", fontsize=7.5, color="#444444")
            palette = np.array([to_rgb(_OTHER_COLOUR)] * len(shares))
            palette[tokens] = [to_rgb(colour) for colour in COLOURS[: len(tokens)]]
            strongest = _enlarge(shares.argmax(0), block.stride, size, self.photo.shape[:2])
            share = _enlarge(shares.max(0), block.stride, size, self.photo.shape[:2])
            self._panel(self.right, self.y, self._blend(palette[strongest]))
            left = self.right + self.panel[0] + _GAP
            self._panel(left, self.y, self._blend(_colour(share, 1 / len(shares), 1)))
            self._bar(left + self.panel[0] + _GAP, [1 / len(shares), 1], "{:.0%}")
        self.y += self.panel[1] + _GAP

    def figure(self) -> Figure:
        """Draw all panels and texts that were added by methods of this class, and return the figure."""
        height = self.y + 0.05
        figure = Figure(figsize=(self.width, height), dpi=_DPI)
        for draw in self.parts:
            draw(figure, height)
        return figure

    def _blend(self, colours: np.ndarray) -> np.ndarray:
        return _OPACITY * colours + (1 - _OPACITY) * self.grey

    def _swatch(self, left: float, bottom: float, colour: str) -> None:
        self.parts.append(
            lambda figure, height: figure.add_artist(_swatch(left, height - bottom, colour, (self.width, height)))
        )

    def _panel(self, left: float, top: float, pixels: np.ndarray) -> None:
        def draw(figure: Figure, height: float) -> None:
            axis = self._axes(figure, height, left, top, self.panel[0], self.panel[1])
            axis.imshow(pixels, aspect="auto")
            axis.set_axis_off()

        self.parts.append(draw)

    def _bar(self, left: float, marks: Sequence[float], form: str) -> None:
        """Add a colour bar with a logarithmic scale.

        Args:
            left: left edge in inches.
            marks: values to label, in ascending order. The first and the last value are the ends of the scale, and are
                always labelled. A value between them is labelled only if there is room.
            form: format string of the labels.
        """
        top, least, most = self.y, marks[0], marks[-1]

        def draw(figure: Figure, height: float) -> None:
            axis = self._axes(figure, height, left + 0.02, top + 0.06, 0.09, self.panel[1] - 0.12)
            colours = _colour(np.geomspace(most, least, 100)[:, None], least, most)
            axis.imshow(_OPACITY * colours + (1 - _OPACITY) * 0.7, aspect="auto", extent=(0, 1, 0, 1))
            shown = {mark: np.log(mark / least) / np.log(most / least) for mark in marks}
            shown = {mark: at for mark, at in shown.items() if mark in (least, most) or 0.2 < at < 0.8}
            axis.set_xticks([])
            axis.yaxis.tick_right()
            axis.set_yticks(list(shown.values()), [form.format(mark) for mark in shown], fontsize=7)
            axis.tick_params(length=2, pad=1.5)

        self.parts.append(draw)

    def _axes(self, figure: Figure, height: float, left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / self.width, 1 - (top + tall) / height, width / self.width, tall / height))

    def _text(self, x: float, y: float, text: str, *, letters: int | None = None, **options) -> None:
        text, font = _choose_font(text, letters)
        font.set_weight(options.pop("weight", "normal"))
        self.parts.append(
            lambda figure, height: figure.text(
                x / self.width, 1 - y / height, text, fontproperties=font, parse_math=False, **options
            )
        )


def _select_head(attention: Tensor, head: int | None) -> np.ndarray:
    """Return the attention of one head, or the mean over all heads, as an array ``(M, H, W)``.

    Args:
        attention: attention of all heads, ``(heads, M, H, W)``.
        head: number of the head, counted from 1. None: the mean over all heads.
    """
    return (attention.mean(0) if head is None else attention[head - 1]).float().cpu().numpy()


def _colour(values: np.ndarray, least: float, most: float) -> np.ndarray:
    """Map values to colours ``(..., 3)`` on a logarithmic scale from ``least`` to ``most``.

    Values below ``least`` get the colour of ``least``.
    """
    return _COLOUR_MAP(np.log(np.maximum(values, least) / least) / np.log(most / least))[..., :3]


def _enlarge(cells: np.ndarray, stride: int, size: tuple[int, int], pixels: tuple[int, int]) -> np.ndarray:
    """Enlarge a map to the size of the picture that shows the input image, by nearest-neighbour interpolation.

    Args:
        cells: values of the map, ``(h, w)``.
        stride: stride of the map relative to the input image.
        size: height and width of the input image in pixels, without padding.
        pixels: height and width of the picture in pixels.
    """
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown // stride).astype(int)
        for side, shown in zip(size, pixels, strict=True)
    )
    return cells[rows][:, columns]


def _thumbnail(image: np.ndarray, longest: int = _PIXELS) -> np.ndarray:
    """Resize an image so that its longer side is ``longest`` pixels.

    The shorter side is at least a quarter of ``longest``, even if this changes the aspect ratio.
    """
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    shown = [max(longest // 4, round(scale * side)) for side in (width, height)]
    return cv2.resize(image, shown, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _draw_box(axis: Axes, box: Sequence[float], colour: str, width: float, linestyle: str = "-") -> None:
    left, top, right, bottom = box
    for edge, line, style in (("white", width + 1.2, "-"), (colour, width, linestyle)):
        if style == linestyle:  # a dotted line has no white edge
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=edge, lw=line, ls=style))


def _swatch(x: float, y: float, colour: str, size: Sequence[float]) -> Rectangle:
    """Return a small coloured square for a legend.

    Args:
        x: left edge in inches from the left edge of the figure.
        y: lower edge in inches from the lower edge of the figure.
        colour: colour of the square.
        size: width and height of the figure in inches.
    """
    return Rectangle((x / size[0], y / size[1]), 0.12 / size[0], 0.12 / size[1], color=colour, lw=0)


def _draw_title(figure: Figure, lines: Sequence[str], size: Sequence[float]) -> None:
    for number, line in enumerate(lines):
        text, font = _choose_font(line)
        font.set_weight("bold")
        y = 1 - (0.22 + 0.2 * number) / size[1]
        figure.text(0.06 / size[0], y, text, fontproperties=font, fontsize=11, parse_math=False)


def _wrap(text: str, letters: int) -> list[str]:
    return textwrap.wrap(text, letters, max_lines=3, placeholder=" …")


def _choose_font(text: str, letters: int | None = None) -> tuple[str, FontProperties]:
    """Return a tuple (text to draw on one line, font that has all of its characters).

    Args:
        text: text on one or several lines.
        letters: maximum number of characters. The middle of a longer text is replaced by an ellipsis. None: no limit.
    """
    text, path = with_font(text)
    if letters is not None and len(text) > letters:
        text = f"{text[: letters // 2]}…{text[len(text) - (letters - letters // 2 - 1) :]}"
    # DejaVu Sans by name, since a font given by its file has one weight.
    return text, FontProperties() if Path(path).name == "DejaVuSans.ttf" else FontProperties(fname=path)
