"""Pictures of a training run: image grids, metric curves and confusion matrices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which looks for a display
from matplotlib.ticker import MaxNLocator

# The palette of Okabe and Ito, which colour-blind readers can distinguish, and brown and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#8C564B", "#999999")
RIGHT, WRONG = "#009E73", "#D55E00"


def image_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    *,
    title: str = "",
    colours: Sequence[str] | None = None,
    columns: int = 6,
) -> None:
    """Write a picture with a grid of images and their captions.

    Args:
        images: images ``(H, W, 3)`` uint8 RGB of any size.
        captions: caption of each image, of one or more lines.
        path: path of the picture. The suffix determines the format.
        title: title of the grid.
        colours: colour of each caption. None: black.
        columns: maximum number of images in a row.
    """
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    heading = 0.4 if title else 0.1
    figure = Figure(figsize=(2.0 * columns, (1.9 + 0.18 * lines) * rows + heading), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, caption, colour in zip(axes, images, captions, colours or ["black"] * len(images), strict=False):
        axis.imshow(image, interpolation="nearest" if max(image.shape) < 200 else "antialiased")
        axis.set_title(_shorten(caption), fontsize=9, color=colour, pad=3, parse_math=False)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=110)


def draw_curves(rows: Sequence[dict[str, float]], panels: dict[str, Sequence[str]], path: Path) -> None:
    """Plot curves of logged metrics over the epochs, and write the plot to an image file.

    Args:
        rows: list of dictionaries from metric name to value. Rows that lack ``epoch`` or ``step`` are
            ignored. :meth:`mobile_former.training.run.folder.RunFolder.history` returns such a list.
        panels: dictionary with one entry for each subplot. The key is the title of the subplot, and the value is
            the list of metric names.
        path: path of the image file.
    """
    rows = [row for row in rows if "step" in row and "epoch" in row]
    last = max(rows, key=lambda row: row["step"], default={"step": 0, "epoch": 0})
    steps_per_epoch = (last["step"] + 1) / (last["epoch"] + 1)
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axis, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            points = [((row["step"] + 1) / steps_per_epoch, row[name]) for row in rows if name in row]
            if points:
                # A line of few points would be hard to see without markers.
                axis.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 60 else "")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(path, dpi=110)


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Write a picture of a confusion matrix.

    The colour of a cell shows its count divided by the sum of its row.

    Args:
        matrix: counts ``(K, K)``. Rows are true classes, columns are predicted classes.
        class_names: names of the K classes.
        path: path of the picture.
    """
    count = len(class_names)
    side = float(np.clip(1.6 + 0.42 * count, 3.6, 16))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if count <= 40:  # names and numbers of more classes would overlap
        names = [_shorten(name, 18) for name in class_names]
        slanted = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
        axis.set_xticks(range(count), names, parse_math=False, **slanted)
        axis.set_yticks(range(count), names, parse_math=False)
        for row, column in np.argwhere(matrix > 0):
            axis.text(
                column,
                row,
                str(int(matrix[row, column])),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    figure.savefig(path, dpi=110)


def _shorten(text: str, width: int = 28) -> str:
    """Shorten each line of a text to at most ``width`` characters.

    The middle of a longer line is replaced by ``…``. The middle is chosen because many lines are file names, and these
    differ mostly at their beginning and end.
    """
    half = (width - 1) // 2
    return "\n".join(line if len(line) <= width else f"{line[:half]}…{line[-half:]}" for line in text.splitlines())
