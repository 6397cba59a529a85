"""Boxes and captions on images of any kind."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from detection import pictures
from detection.pictures import caption, draw_comparison, draw_sheet, with_detections
from mobile_former.training.prediction.drawings import save_picture

DARK, GREY, LIGHT = 0, 128, 255


def plain(height, width, value=GREY):
    return np.full((height, width, 3), value, np.uint8)


def drawn(path, image, boxes, captions, labels=None):
    labels = list(range(len(boxes)) if labels is None else labels)
    names = {label: f"class {label}" for label in labels}
    save_picture(with_detections(image, boxes, labels, captions, names), path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def changed(picture, value=GREY):
    """Rows and columns that hold anything but the plain image: the first, and the one after the last."""
    rows, columns = (picture != value).any(2).nonzero()
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (640, 640)), ((1, 1), (640, 640)), ((100, 300), (213, 640)), ((2000, 3000), (2000, 3000))],
)
def test_pictures_keep_the_aspect_and_small_images_are_enlarged(size, expected, tmp_path):
    assert drawn(tmp_path / "x.png", plain(*size), [], []).shape[:2] == expected


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (2000, 3000)])
def test_a_box_surrounds_its_object_and_leaves_it_visible(size, tmp_path):
    height, width = size
    box = (0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height)
    picture = drawn(tmp_path / "x.png", plain(*size), [box], ["x"])
    scale = picture.shape[0] / height
    left, top, right, bottom = (round(scale * value) for value in box)
    assert (picture[top:bottom, left:right] == GREY).all()
    thick = picture.shape[1] // 100 + 4
    for line in (
        picture[top:bottom, left - 1], picture[top:bottom, right], picture[bottom, left:right],
    ):  # fmt: skip
        assert (line != GREY).any(1).all()
    _, lowest, leftmost, _ = changed(picture)
    assert lowest <= bottom + thick
    assert leftmost >= left - thick


@pytest.mark.parametrize("value", [DARK, GREY, LIGHT])
@pytest.mark.parametrize("label", range(7))
def test_lines_and_captions_stand_out_from_any_image(value, label, tmp_path):
    picture = drawn(tmp_path / "x.png", plain(640, 640, value), [(100, 300, 300, 500)], ["MMMM"], [label])

    def luminance(pixels):
        return ((pixels / 255) ** 2.2) @ [0.2126, 0.7152, 0.0722]

    def contrast(first, second):
        lighter, darker = max(first, second), min(first, second)
        return (lighter + 0.05) / (darker + 0.05)

    ground = luminance(np.array([value] * 3))
    across = luminance(picture[400, 90:110])  # over the left line
    assert max(contrast(shade, ground) for shade in across) > 3
    tag = luminance(picture[285:296, 102:140].reshape(-1, 3))
    assert contrast(tag.max(), tag.min()) > 4.5


CORNERS = [(0, 0, 60, 60), (580, 0, 640, 60), (0, 420, 60, 480), (580, 420, 640, 480), (0, 0, 640, 480)]


@pytest.mark.parametrize("box", CORNERS)
def test_a_caption_at_the_border_stays_within_the_picture(box, tmp_path, monkeypatch):
    places = []
    place = pictures._free_place
    monkeypatch.setattr(pictures, "_free_place", lambda *given: places.append(place(*given)) or places[-1])
    drawn(tmp_path / "x.png", plain(480, 640), [box], ["somewhat long 50%"])
    ((left, top, right, bottom),) = places
    assert 0 <= left < right <= 640
    assert 0 <= top < bottom <= 480


def test_captions_find_places_beside_each_other(tmp_path, monkeypatch):
    places = []
    place = pictures._free_place
    monkeypatch.setattr(pictures, "_free_place", lambda *given: places.append(place(*given)) or places[-1])
    boxes = [(200 + shift, 200 + shift, 400 + shift, 350 + shift) for shift in range(6)]
    drawn(tmp_path / "x.png", plain(480, 640), boxes, [f"thing {number}" for number in range(6)])
    for number, first in enumerate(places):
        assert not pictures._overlap(first, places[:number])


def grid(count, side):
    """Boxes in rows and columns, with gaps of a fifth of their side."""
    return [(1.2 * side * column, 1.2 * side * row, 1.2 * side * column + side, 1.2 * side * row + side)
            for row in range(count) for column in range(count)]  # fmt: skip


@pytest.mark.parametrize(("count", "size"), [(3, 14), (6, 12)])
def test_captions_shrink_before_they_hide_much_of_the_picture(count, size, tmp_path, monkeypatch):
    sizes = []
    write = pictures.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        pictures.ImageDraw.ImageDraw, "text", lambda *given: sizes.append(given[4].size) or write(*given)
    )
    picture = drawn(tmp_path / "x.png", plain(640, 640), grid(count, 530 / count), ["thing: 57%"] * count**2)
    assert sizes == [size] * count**2
    assert picture.shape == (640, 640, 3)  # no legend


def test_a_legend_of_the_colours_replaces_captions_without_room(tmp_path):
    boxes = grid(12, 40)
    labels = [number % 3 for number in range(len(boxes))]
    picture = drawn(tmp_path / "x.png", plain(640, 640), boxes, ["thing: 57%"] * len(boxes), labels)
    assert picture.shape[0] > 640
    legend = picture[640:]
    for label in range(3):
        colour = pictures.ImageColor.getrgb(pictures.COLOURS[label])
        assert (legend == colour).all(2).sum() > 100  # a swatch
        left, top, right, bottom = map(round, boxes[label])
        assert (picture[top + 5 : bottom - 5, right + 1] == colour).all()  # the lines of the box
        assert (picture[top + 5 : bottom - 5, left + 5 : right - 5] == GREY).all()  # nothing hides the objects
    few = drawn(tmp_path / "few.png", plain(640, 640), boxes[:1], ["thing: 57%"], [0])
    assert few.shape[0] == 640


def test_a_legend_names_all_classes_that_share_a_colour_and_breaks_lines(tmp_path, monkeypatch):
    texts = []
    write = pictures.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        pictures.ImageDraw.ImageDraw,
        "text",
        lambda *given, **options: texts.append(given[2]) or write(*given, **options),
    )
    boxes = grid(12, 40)
    picture = drawn(tmp_path / "x.png", plain(640, 640), boxes, ["x: 57%"] * len(boxes), [n % 22 for n in range(144)])
    assert sorted(text for text in texts if text != "x: 57%") == sorted(
        ", ".join(f"class {label}" for label in range(colour, 22, 10)) for colour in range(10)
    )
    assert picture.shape[0] > 640 + 3 * 14


def test_a_long_caption_is_cut_in_its_middle_so_that_the_score_stays():
    text, font = pictures._legible(f"{'very ' * 40}long 57%", 14, 300)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert text.startswith("very very")
    assert text.endswith("long 57%")
    assert font.getlength(text) <= 300


def test_class_names_are_drawn_as_they_are_written(tmp_path):
    names = ["$5 and $x^2$", "\\frac{1}{2} $", "tab\tand\nline", "猫 犬", "éüжλ", "🙂", ""]
    boxes = [(20 * number, 60 * number, 300, 60 * number + 50) for number in range(len(names))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that a font lacks
        drawn(tmp_path / "x.png", plain(480, 640), boxes, names)
    assert pictures._legible("$x^2$", 14, 500)[0] == "$x^2$"
    assert pictures._legible("tab\tand\nline", 14, 500)[0] == "tab and line"


def test_characters_without_a_font_are_told_apart_by_their_codes(monkeypatch):
    monkeypatch.setattr(pictures, "_font_of", lambda characters: None)
    assert pictures._legible("a猫 5%", 14, 500)[0] == "aU+732B 5%"


def test_a_font_that_has_all_characters_is_found():
    script = "\U0001d49e"  # a mathematical alphabet that DejaVu Sans lacks and matplotlib's STIX fonts have
    assert ord(script) not in pictures._characters(pictures._FONT)
    path = pictures._font_of(frozenset(f"{script} 5%"))
    assert path != pictures._FONT
    assert {ord(script), ord("5"), ord("%")} <= pictures._characters(path)
    assert pictures._font_of(frozenset("\U0010fffd")) is None


def test_boxes_without_area_or_beyond_the_image_are_drawn_within_it(tmp_path):
    boxes = [(10, 10, 10, 10), (-50, -50, 900, 900), (700, 700, 900, 900), (639.7, 479.7, 640, 480)]
    drawn(tmp_path / "x.png", plain(480, 640), boxes, ["a", "b", "c", "d"])


def test_jpeg_keeps_the_colours_of_thin_lines(tmp_path):
    image, boxes = plain(480, 640), [(100, 100, 300, 300)]
    lossless = drawn(tmp_path / "x.png", image, boxes, ["x"])
    lossy = drawn(tmp_path / "x.jpg", image, boxes, ["x"])
    assert np.abs(lossless - lossy).mean() < 1
    assert np.abs(lossless - lossy)[200, 90:110].max() < 40


def test_captions_tell_class_and_score():
    assert caption("cat", 0.8765) == "cat: 88%"


def test_sheets_show_images_of_any_shape_and_detections_from_the_threshold_on(tmp_path):
    images = [plain(50, 50), plain(900, 300), plain(60, 400)]
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 2
    targets.append({"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)})
    draw_sheet(images, targets, ["$x$ 猫"], tmp_path / "sheet.png", title="title", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.std() > 5
    found = [
        {"boxes": torch.tensor([[5.0, 5, 20, 20]]), "scores": torch.tensor([0.4]), "labels": torch.tensor([0])}
    ] * 3
    for threshold in (0.3, 0.5):
        path = tmp_path / f"{threshold}.png"
        draw_comparison(images, targets, found, ["x"], path, threshold=threshold)
    first, second = (np.asarray(Image.open(tmp_path / f"{threshold}.png")) for threshold in (0.3, 0.5))
    assert first.shape == second.shape
    assert (first[40:] != second[40:]).any()
