import albumentations as A
import cv2
import numpy as np
import pytest
from PIL import Image

from detection.transforms import (
    LONGEST,
    SHORT_SIDES,
    custom_transform,
    eval_transform,
    resized,
    scenes_transform,
    train_transform,
)
from mobile_former.training.data.sampler import Draw, seed_transforms


def one_box(height=240, width=320, box=(100, 60, 220, 150)):
    """A black image with a white box."""
    image = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    return {"image": image, "bboxes": np.array([box], dtype=np.float64), "labels": np.array([3])}


def extent(image):
    """Where an image is white: xyxy."""
    rows, columns = np.nonzero(image[..., 0] > 190)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def run(transforms, sample, index, epoch=0, seed=0):
    seed_transforms(transforms, seed, Draw(index, epoch))
    return transforms(**sample)


def test_short_sides_are_those_of_detr():
    assert SHORT_SIDES == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640), (800, 1066)),  # 1066.67 rounded down
        ((640, 480), (1066, 800)),
        ((500, 500), (800, 800)),
        ((300, 600), (666, 1332)),  # 1333 / 2 = 666.5, rounded to the even side
        ((100, 1000), (133, 1330)),
        ((800, 1066), (800, 1066)),
        ((2400, 3200), (800, 1066)),
        ((2, 5000), (1, 1333)),
    ],
)
def test_evaluation_resizes_the_shorter_side_to_800_unless_the_longer_would_pass_1333(given, expected):
    assert resized(*given, 800, 1333) == expected
    image = np.zeros((*given, 3), np.uint8)
    result = eval_transform()(image=image, bboxes=np.zeros((0, 4)), labels=np.zeros(0, int))
    assert result["image"].shape == (*expected, 3)


def test_no_size_passes_the_limit():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (2000, 2)):
        short_side = int(generator.choice(SHORT_SIDES))
        result = resized(int(height), int(width), short_side, LONGEST)
        assert 1 <= min(result) <= short_side
        assert max(result) <= LONGEST
        if min(result) > 50:
            assert result[0] / result[1] == pytest.approx(height / width, rel=0.02)


def test_evaluation_scales_boxes_with_the_image():
    result = eval_transform()(**one_box())
    np.testing.assert_allclose(result["bboxes"], np.array([[100, 60, 220, 150]]) * 800 / 240, atol=0.5)
    np.testing.assert_allclose(result["bboxes"][0], extent(result["image"]), atol=2)
    assert list(result["labels"]) == [3]


def test_shrinking_averages_all_pixels():
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[::2] = 255
    image = eval_transform(400)(image=stripes, bboxes=np.zeros((0, 4)), labels=[])["image"]
    assert np.abs(image[5:-5].astype(int) - 127).max() < 12


def move_only():
    """The scenes' recipe without its colours, which would blur what is white."""
    return custom_transform(scenes_transform().transforms[:1])


@pytest.mark.parametrize("recipe", [train_transform, move_only])
def test_boxes_follow_their_pixels(recipe):
    transforms, checked = recipe(), 0
    for index in range(60):
        result = run(transforms, one_box(), index)
        if len(result["bboxes"]) == 1:
            height, width = result["image"].shape[:2]
            scale = max(1, height / 240)
            np.testing.assert_allclose(result["bboxes"][0], extent(result["image"]), atol=1.5 * scale)
            assert (result["bboxes"][0] >= 0).all()
            assert (result["bboxes"][0] <= [width, height, width, height]).all()
            checked += 1
    assert checked > 45


def test_training_draws_all_short_sides_flips_half_of_the_images_and_crops_half_of_them():
    transforms, sides, flips, crops = train_transform(), set(), 0, 0
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :, 0] = np.linspace(0, 255, 640)
    for index in range(200):
        result = run(transforms, {"image": image, "bboxes": np.zeros((0, 4)), "labels": []}, index)["image"]
        sides.add(min(result.shape[:2]))
        assert max(result.shape[:2]) <= 1333
        across = result[0, :, 0].astype(int)
        flips += across[0] > across[-1]
        crops += abs(across[-1] - across[0]) < 250 or abs(result.shape[1] / result.shape[0] - 4 / 3) > 0.01
    assert sides >= set(SHORT_SIDES)
    assert 75 < flips < 125
    assert 75 < crops < 125


def test_boxes_outside_a_crop_go_with_their_labels_and_those_cut_are_clipped():
    boxes = np.array([[0, 0, 40, 40], [600, 440, 640, 480], [300, 200, 340, 280], [0, 0, 640, 480]], dtype=float)
    sample = {"image": np.zeros((480, 640, 3), np.uint8), "bboxes": boxes, "labels": np.array([5, 6, 7, 8])}
    transforms, kept = train_transform(), []
    for index in range(60):
        result = run(transforms, sample, index)
        height, width = result["image"].shape[:2]
        assert len(result["bboxes"]) == len(result["labels"])
        found = dict(zip(map(int, result["labels"]), result["bboxes"], strict=True))
        np.testing.assert_allclose(found[8], [0, 0, width, height], atol=0.01)  # covers every crop
        kept.append(frozenset(found))
    assert {frozenset({5, 6, 7, 8}), frozenset({7, 8})} <= set(kept)


@pytest.mark.parametrize("recipe", [train_transform, scenes_transform, eval_transform])
def test_an_image_may_have_no_boxes(recipe):
    transforms = recipe()
    for index in range(5):
        result = run(transforms, {"image": one_box()["image"], "bboxes": np.zeros((0, 4)), "labels": []}, index)
        assert len(result["bboxes"]) == len(result["labels"]) == 0


@pytest.mark.parametrize("recipe", [train_transform, scenes_transform])
def test_what_a_sample_becomes_depends_on_seed_epoch_and_index_alone(recipe):
    transforms = recipe()
    first = [run(transforms, one_box(), index) for index in range(8)]
    again = {index: run(recipe(), one_box(), index) for index in (5, 2, 7, 0)}
    for index, result in again.items():
        np.testing.assert_array_equal(result["image"], first[index]["image"])
        np.testing.assert_array_equal(result["bboxes"], first[index]["bboxes"])
    others = [run(transforms, one_box(), 5, epoch=1), run(transforms, one_box(), 5, seed=1)]
    for other in others:
        assert other["image"].shape != first[5]["image"].shape or (other["image"] != first[5]["image"]).any()


def test_scenes_keep_their_size_and_are_never_mirrored():
    transforms = scenes_transform()
    image = np.zeros((128, 128, 3), np.uint8)
    image[40:90, 30:50] = 255
    image[40:60, 50:90] = 255  # an L on its head
    sample = {"image": image, "bboxes": np.array([[30, 40, 90, 90]]), "labels": [1]}
    for index in range(50):
        result = run(transforms, sample, index)["image"].astype(int)
        assert result.shape == (128, 128, 3)
        bright = result.sum(2) > 560
        rows, columns = np.nonzero(bright)
        if len(rows):
            assert bright[:, : int(np.median(columns))].any()
            middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
            assert columns.mean() < middle[0]
            assert rows.mean() < middle[1]


def test_a_digit_that_is_moved_out_by_more_than_half_is_no_longer_asked_for():
    transforms = scenes_transform()
    boxes = np.array([[0, 50, 12, 80], [60, 50, 90, 90]], dtype=float)
    sample = {"image": np.zeros((128, 128, 3), np.uint8), "bboxes": boxes, "labels": [0, 1]}
    results = [run(transforms, sample, index) for index in range(150)]
    assert all(1 in result["labels"] for result in results)
    gone = [0 not in result["labels"] for result in results]
    assert 5 < sum(gone) < 75
    widths = [result["bboxes"][list(result["labels"]).index(0)] for result in results if 0 in result["labels"]]
    assert min(box[2] - box[0] for box in widths) > 0.5 * 0.8 * 12 - 0.1


@pytest.mark.filterwarnings("error")
def test_a_users_transforms_take_the_place_of_the_recipe():
    transforms = custom_transform([A.VerticalFlip(p=1), A.Resize(120, 160)])
    result = transforms(**one_box())
    assert result["image"].shape == (120, 160, 3)
    np.testing.assert_allclose(result["bboxes"], [[50, 45, 110, 90]], atol=1e-3)
    assert custom_transform([])(**one_box())["bboxes"].tolist() == [pytest.approx([100, 60, 220, 150], abs=1e-3)]


def test_recipes_are_pillows_antialiasing():
    image = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (5, 5), 0)
    result = eval_transform(300)(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"].astype(int)
    expected = np.asarray(Image.fromarray(image).resize((400, 300), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(result - expected).max() <= 1


def test_a_strip_is_not_resized_without_limit():
    transform = train_transform((64,), 128, crop=1.0)
    for shape in ((1, 60_000, 3), (60_000, 2, 3)):
        result = transform(image=np.zeros(shape, np.uint8), bboxes=np.zeros((0, 4)), labels=[])
        assert max(result["image"].shape) <= 128
