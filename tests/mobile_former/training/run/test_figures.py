import colorsys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from mobile_former.training.run.figures import COLOURS, draw_confusion, draw_curves, image_sheet


def pixels(path):
    """Return the pixels of a picture file, ``(H, W, 3)`` integers."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of(picture, colour, tolerance=2):
    """Return the fraction of the pixels that have a colour, given in 0..255."""
    return (np.abs(picture - np.array(colour)).max(2) <= tolerance).mean()


def distinct_colours(count):
    """Return saturated colours, none of them black, white or the colour of a caption."""
    hues = (colorsys.hsv_to_rgb(index / count, 1, 0.55 + 0.4 * (index % 2)) for index in range(count))
    return [tuple(round(255 * value) for value in colour) for colour in hues]


def plain(colour, height=32, width=32):
    return np.full((height, width, 3), colour, np.uint8)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 60])
def test_a_sheet_shows_all_images_in_the_same_size(tmp_path, count):
    colours = distinct_colours(count)
    path = tmp_path / "sheet.png"
    image_sheet([plain(colour) for colour in colours], [str(index) for index in range(count)], path, title="all")
    picture = pixels(path)[::3, ::3]
    shares = np.array([share_of(picture, colour) for colour in colours])
    assert shares.min() > 0.5 / (6 * -(-count // 6))
    assert shares.max() < 1.2 * shares.min()


def test_a_sheet_is_filled_row_by_row(tmp_path):
    colours = distinct_colours(8)
    image_sheet([plain(colour) for colour in colours], [""] * 8, tmp_path / "sheet.png", columns=3)
    picture = pixels(tmp_path / "sheet.png")
    centres = []
    for colour in colours:
        rows, columns = np.nonzero(np.abs(picture - np.array(colour)).max(2) <= 2)
        centres.append((3 * rows.mean() / len(picture), 3 * columns.mean() / picture.shape[1]))
    assert [(int(row), int(column)) for row, column in centres] == [divmod(index, 3) for index in range(8)]


def test_images_of_any_size_keep_their_aspect_ratio(tmp_path):
    sizes = [(1, 1), (8, 200), (900, 300), (224, 224), (31, 47)]
    colours = distinct_colours(len(sizes))
    images = [plain(colour, *size) for colour, size in zip(colours, sizes, strict=True)]
    image_sheet(images, ["a"] * 5, tmp_path / "sheet.png")
    picture = pixels(tmp_path / "sheet.png")
    for colour, (height, width) in zip(colours, sizes, strict=True):
        rows, columns = np.nonzero(np.abs(picture - np.array(colour)).max(2) <= 2)
        shown = (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert max(shown) > 100
        assert abs(shown[0] - shown[1] * height / width) <= 3


def test_an_image_keeps_its_orientation_and_the_order_of_its_channels(tmp_path):
    corners = np.array([[[200, 0, 0], [0, 160, 0]], [[0, 0, 180], [240, 200, 0]]], np.uint8)
    image_sheet([corners.repeat(20, 0).repeat(20, 1)], [""], tmp_path / "sheet.png")
    picture = pixels(tmp_path / "sheet.png")
    centres = [
        [axis.mean() for axis in np.nonzero(np.abs(picture - colour).max(2) <= 2)] for colour in corners.reshape(4, 3)
    ]
    (top_left, top_right, bottom_left, bottom_right) = np.array(centres)
    assert top_left[0] == top_right[0] < bottom_left[0] == bottom_right[0]
    assert top_left[1] == bottom_left[1] < top_right[1] == bottom_right[1]


def test_captions_have_the_given_colours(tmp_path):
    colours = ["#009E73", "#D55E00"]
    grey = plain((128, 128, 128))
    image_sheet([grey, grey], ["████", "████"], tmp_path / "sheet.png", colours=colours)
    picture = pixels(tmp_path / "sheet.png")
    for colour in colours:
        assert share_of(picture, [round(255 * value) for value in to_rgb(colour)]) > 0.001


LONG = "/data/a very long path/" + "x" * 300 + ".jpg"


@pytest.mark.parametrize(
    "caption",
    [LONG, f"{LONG}\n{LONG}\n0.97", "", "price_$10_$.jpg", "$_$", "50 % & #1 {\\x} ^_^", "a_b_c", "\n", "Größe"],
)
@pytest.mark.filterwarnings("error")
def test_captions_may_have_any_characters_and_length(tmp_path, caption):
    image_sheet([plain((200, 30, 30))] * 3, [caption] * 3, tmp_path / "sheet.png", title=caption.replace("\n", " "))
    assert share_of(pixels(tmp_path / "sheet.png"), (200, 30, 30)) > 0.2


def hexadecimal(colour):
    return [int(colour[position : position + 2], 16) for position in (1, 3, 5)]


def test_curves_show_each_logged_figure_in_its_panel(tmp_path):
    rows = []
    for epoch in range(5):
        rows.append({"epoch": epoch, "step": 10 * epoch + 9, "train/loss": 5.0 - epoch, "val/loss": 3.0})
        rows.append({"epoch": epoch, "step": 10 * epoch + 9, "val/top1": 0.2 * epoch})
    panels = {"loss": ("train/loss", "val/loss"), "accuracy": ("train/top1", "val/top1")}
    draw_curves(rows, panels, tmp_path / "curves.png")
    picture = pixels(tmp_path / "curves.png")
    left, right = np.array_split(picture, 2, axis=1)
    assert share_of(left, hexadecimal(COLOURS[0])) > 0.001
    assert share_of(left, hexadecimal(COLOURS[1])) > 0.001
    assert share_of(right, hexadecimal(COLOURS[1])) > 0.001
    assert share_of(right, hexadecimal(COLOURS[0])) == 0  # train/top1 was never logged


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"loss": 1.0}],
        [{"epoch": 0.0, "step": 0.0, "loss": 1.0}],
        [{"epoch": 0.0, "step": 0.0, "other": 1.0}],
        [{"epoch": 0.0, "step": step, "loss": value} for step, value in enumerate((float("nan"), float("inf"), 1.0))],
    ],
)
@pytest.mark.filterwarnings("error")
def test_curves_of_few_rows_or_none_are_drawn_without_warnings(tmp_path, rows):
    draw_curves(rows, {"loss": ("loss",), "accuracy": ("top1",)}, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").min() < 50  # the axes at least


@pytest.mark.parametrize("count", [2, 12, 200])
def test_the_rows_of_a_confusion_matrix_show_fractions_of_the_true_class(tmp_path, count):
    """Classes of very different sizes; half of each is predicted as the next class."""
    matrix = np.zeros((count, count), int)
    for row in range(count):
        matrix[row, row] = matrix[row, (row + 1) % count] = 1 + 10 * row
    draw_confusion(matrix, [f"class {index}" for index in range(count)], tmp_path / "confusion.png")
    picture = pixels(tmp_path / "confusion.png")
    half, none = (np.round(255 * np.array(colormaps["Blues"](share)[:3])) for share in (0.5, 0.0))
    matrix_alone = picture[:, : int(0.8 * picture.shape[1])]  # without the colour bar
    assert share_of(matrix_alone, half, 3) > 0.2 / count  # in two cells of each row, partly covered by a number
    if count == 12:
        assert share_of(picture, none, 1) > 0.3  # cells with a count of 0


def test_a_perfect_and_an_empty_class_look_different(tmp_path):
    matrix = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 9]])
    draw_confusion(matrix, ["a", "b", "c"], tmp_path / "confusion.png")
    picture = pixels(tmp_path / "confusion.png")
    full = np.round(255 * np.array(colormaps["Blues"](1.0)[:3]))
    rows, _ = np.nonzero(np.abs(picture[:, : picture.shape[1] * 3 // 4] - full).max(2) <= 1)
    height = np.ptp(rows)
    assert ((rows - rows.min() < 0.36 * height) | (rows.max() - rows < 0.36 * height)).all()


@pytest.mark.parametrize("name", [LONG, "price_$10_$.jpg", "", "a_b"])
@pytest.mark.filterwarnings("error")
def test_class_names_may_have_any_characters_and_length(tmp_path, name):
    draw_confusion(np.eye(3, dtype=int), [name, "b", "c"], tmp_path / "confusion.png")
    assert pixels(tmp_path / "confusion.png").shape[1] < 1500
