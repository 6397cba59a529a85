import math

import albumentations as A
import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from classification.data.transforms import (
    RandomResizedCrop,
    ResizeShorterSide,
    custom_transform,
    eval_transform,
    rand_augment_ops,
    train_transform,
)
from mobile_former.training.data.sampler import Draw, seed_transforms

MEAN_COLOUR = (124, 116, 104)  # ImageNet's, in 0..255


def photograph(height, width, seed=0, low=40, high=220):
    """Draw smooth shapes with fine noise, without pure black or white."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(low, high, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(int)
    return np.clip(smooth + generator.integers(-20, 21, smooth.shape), low, high).astype(np.uint8)


def difference(actual, expected):
    return np.abs(np.asarray(actual).astype(int) - np.asarray(expected).astype(int))


# RandAugment, compared with the operations of timm's rand-m9-mstd0.5


def operations(magnitude_std=0.0):
    """Return the operations by the names of RandAugment's authors."""
    names = [
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "Posterize",
        "Solarize",
        "Color",
        "Contrast",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    ]
    return dict(zip(names, rand_augment_ops(2, 9, magnitude_std).transforms, strict=True))


def applied(operation, image):
    return operation(image=image, force_apply=True)["image"]


FACTOR = 1.72  # 0.1 + 1.8 × 9/10
EXACT = {
    "AutoContrast": lambda image: ImageOps.autocontrast(image),
    "Invert": lambda image: ImageOps.invert(image),
    "Posterize": lambda image: ImageOps.posterize(image, 3),  # int(4 × 9/10) bits
    "Solarize": lambda image: ImageOps.solarize(image, 230),  # int(256 × 9/10)
    "Color": lambda image: ImageEnhance.Color(image).enhance(FACTOR),
    "Contrast": lambda image: ImageEnhance.Contrast(image).enhance(FACTOR),
    "Brightness": lambda image: ImageEnhance.Brightness(image).enhance(FACTOR),
    "Sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(FACTOR),
}


@pytest.mark.parametrize("size", [(64, 48), (224, 224)])
@pytest.mark.parametrize("name", EXACT)
def test_a_colour_operation_at_magnitude_9_gives_pillows_pixels(name, size):
    for seed, (low, high) in enumerate([(40, 220), (0, 255), (90, 130)]):
        image = photograph(*size, seed, low, high)
        expected = EXACT[name](Image.fromarray(image))
        inside = (slice(1, -1), slice(1, -1))  # Pillow does not sharpen the border
        error = difference(applied(operations()[name], image), expected)[inside]
        largest = error.max()
        assert largest <= (2 if name in {"Color", "Sharpness"} else 1)  # Pillow truncates twice instead of rounding
        # Solarize inverts only brighter pixels; AutoContrast has no effect on the full range.
        no_effect = {"Solarize": high < 230, "AutoContrast": high - low > 250}
        if not no_effect.get(name):
            assert difference(image, expected)[inside].max() > 10, "the operation should have an effect"


@pytest.mark.parametrize("size", [(64, 48), (224, 224)])
def test_equalize_maps_each_value_to_its_rank_in_the_channel(size):
    image = photograph(*size, low=90, high=160)
    equal = applied(operations()["Equalize"], image)
    for channel in range(3):
        for value in np.unique(image[..., channel]):
            (result,) = np.unique(equal[..., channel][image[..., channel] == value])
            below = 255 * (image[..., channel] < value).mean()
            up_to = 255 * (image[..., channel] <= value).mean()
            slack = 255 * (image[..., channel] == image[..., channel].min()).mean() + 3
            assert below - slack <= result <= up_to + slack
    assert equal.min() < 5
    assert equal.max() > 250


def marked(side=201):
    """Draw three bright dots on grey, at the centre, right of it and below it; return the offset of the latter too."""
    image = np.full((side, side, 3), 100, np.uint8)
    offset = side // 5
    for row, column in ((0, 0), (0, offset), (offset, 0)):
        image[side // 2 + row, side // 2 + column] = 255
    return image, offset


def dots(image):
    """Return the subpixel position (x, y) of each bright dot."""
    weights = np.clip(image.max(2).astype(float) - 130, 0, None)
    count, labels = cv2.connectedComponents((weights > 0).astype(np.uint8))
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return [
        np.array([(axis * weights * (labels == label)).sum() for axis in (columns, rows)])
        / (weights * (labels == label)).sum()
        for label in range(1, count)
    ]


def linear_map(operation):
    """Return the 2×2 matrix that maps offsets (x, y) from the centre under one random draw of an operation."""
    image, offset = marked()
    moved = applied(operation, image)
    found = dots(moved)
    assert len(found) == 3
    centre = min(found, key=lambda dot: np.abs(dot - 100).sum())
    assert np.abs(centre - 100).max() < 1, "the centre should stay"
    others = sorted((dot - centre for dot in found if dot is not centre), key=lambda dot: dot[1] - dot[0])
    return np.stack(others, axis=1) / offset


def draws(name, measure, count=120):
    operation = operations(0.5)[name]
    compose = A.Compose([operation])
    values = []
    for index in range(count):
        seed_transforms(compose, 0, Draw(index, 0))
        values.append(measure(operation))
    return np.array(values)


def check_distribution(values, limit):
    """Check that the magnitude is 9 of 10 with standard deviation 0.5, with both signs equally often."""
    sizes = np.abs(values) / limit * 10
    assert sizes.max() <= 10.05
    assert abs(sizes.mean() - 9) < 0.2
    assert abs(sizes.std() - 0.5) < 0.12
    assert abs((values > 0).mean() - 0.5) < 0.18  # four standard deviations


def test_rotation_angles_scale_with_the_magnitude_up_to_30_degrees():
    def angle(operation):
        matrix = linear_map(operation)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=0.03)
        return math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))

    check_distribution(draws("Rotate", angle), 30)


@pytest.mark.parametrize(("name", "row"), [("ShearX", 0), ("ShearY", 1)])
def test_shear_slopes_scale_with_the_magnitude_up_to_0_3(name, row):
    def slope(operation):
        matrix = linear_map(operation)
        expected = np.eye(2)
        expected[row, 1 - row] = matrix[row, 1 - row]
        np.testing.assert_allclose(matrix, expected, atol=0.03)
        return matrix[row, 1 - row]

    check_distribution(draws(name, slope), 0.3)


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 0), ("TranslateY", 1)])
def test_translations_scale_with_the_magnitude_up_to_0_45_of_the_side(name, axis):
    image = np.full((240, 400, 3), 100, np.uint8)
    image[120, 200] = 255

    def fraction(operation):
        (dot,) = dots(applied(operation, image))
        shift = dot - (200, 120)
        assert abs(shift[1 - axis]) < 0.1
        return shift[axis] / (400, 240)[axis]

    check_distribution(draws(name, fraction), 0.45)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_the_area_beyond_the_border_has_the_mean_colour_of_imagenet(name):
    moved = applied(operations()[name], np.full((60, 60, 3), 255, np.uint8))
    colours, counts = np.unique(moved.reshape(-1, 3), axis=0, return_counts=True)
    assert MEAN_COLOUR in {tuple(colour.tolist()) for colour in colours[np.argsort(counts)[-2:]]}


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("Color", lambda sizes: (sizes - 0.1) / 0.18),
        ("Contrast", lambda sizes: (sizes - 0.1) / 0.18),
        ("Brightness", lambda sizes: (sizes - 0.1) / 0.18),
    ],
)
def test_the_factors_of_enhancements_follow_magnitude_9(name, level):
    """The factor is computed from the pixels of a simple image."""
    image = np.full((10, 10, 3), 60, np.uint8)
    image[:5] = (80, 60, 60)

    def factor(operation):
        result = applied(operation, image).astype(float)
        if name == "Brightness":
            return result[-1, 0, 0] / 60
        if name == "Contrast":
            return (result[0, 0, 0] - result[-1, 0, 0]) / 20
        return (result[0, 0, 0] - result[0, 0, 1]) / 20

    sizes = level(draws(name, factor, count=300))
    assert abs(sizes.mean() - 9) < 0.15
    assert 0.35 < sizes.std() < 0.65


class Recorder:
    """Replace each operation by one that records its number and does not change the image."""

    def __init__(self, augment):
        self.applied = []
        for number, operation in enumerate(augment.transforms):
            for leaf in (
                getattr(operation, "transforms", [operation]) if isinstance(operation, A.OneOf) else [operation]
            ):
                leaf.apply_with_params = lambda params, number=number, **data: self.applied.append(number) or data

    def run(self, augment, index):
        self.applied.clear()
        pipeline = A.Compose([augment])
        seed_transforms(pipeline, 0, Draw(index, 0))
        pipeline(image=np.zeros((4, 4, 3), np.uint8))
        return tuple(self.applied)


@pytest.fixture(scope="module")
def drawn():
    """Numbers of the operations that two thousand images go through."""
    augment = rand_augment_ops(2, 9, 0.5)
    recorder = Recorder(augment)
    return [recorder.run(augment, index) for index in range(2000)]


def test_two_operations_are_drawn_and_each_is_applied_with_probability_one_half(drawn):
    lengths = np.bincount([len(chosen) for chosen in drawn], minlength=3) / len(drawn)
    assert len(lengths) == 3
    np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=0.045)  # four standard deviations


def test_every_operation_is_drawn_equally_often_and_may_be_drawn_twice(drawn):
    counts = np.bincount([number for chosen in drawn for number in chosen], minlength=14)
    assert np.abs(counts - 2000 / 14).max() < 4 * (2000 / 14) ** 0.5
    assert any(len(chosen) == 2 and chosen[0] == chosen[1] for chosen in drawn)


def test_operations_are_applied_in_random_order(drawn):
    pairs = [chosen for chosen in drawn if len(chosen) == 2 and chosen[0] != chosen[1]]
    assert abs(np.mean([first < second for first, second in pairs]) - 0.5) < 0.1


# Training


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64), (20, 20), (700, 500)])
@pytest.mark.parametrize(("rand_augment", "random_erasing"), [(False, 0.0), (True, 1.0)])
def test_training_images_have_the_given_size_for_any_photograph(shape, rand_augment, random_erasing):
    transform = train_transform(48, rand_augment=rand_augment, random_erasing=random_erasing)
    image = photograph(*shape)
    for index in range(8):
        seed_transforms(transform, 0, Draw(index, 0))
        result = transform(image=image)["image"]
        assert result.shape == (48, 48, 3)
        assert result.dtype == np.uint8


def coordinates(height, width):
    """Draw an image whose first channel is the column and whose second channel is the row, in 0..255."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), 0 * rows], 2).astype(np.uint8)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_the_area_of_a_crop_is_within_crop_scale(scale):
    transform = train_transform(64, crop_scale=scale, flip=0.0)
    image = coordinates(400, 500)
    areas = []
    for index in range(300):
        seed_transforms(transform, 0, Draw(index, 0))
        crop = transform(image=image)["image"].astype(float)
        # The centres of the outer pixels are 63/64 of the side apart.
        areas.append(np.ptp(crop[32, :, 0]) * np.ptp(crop[:, 32, 1]) / 255**2 * (64 / 63) ** 2)
    areas = np.array(areas)
    assert areas.min() > scale[0] * 0.9
    assert areas.max() < scale[1] * 1.1
    # Uniform over the range, except for the largest areas, which do not fit with every aspect ratio.
    assert np.quantile(areas, 0.1) < scale[0] + 0.2 * (scale[1] - scale[0])
    assert np.quantile(areas, 0.9) > scale[0] + 0.7 * (scale[1] - scale[0])


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_images_are_mirrored_with_the_given_probability_and_never_upside_down(flip, expected):
    transform = train_transform(32, flip=flip)
    image = coordinates(40, 40)
    mirrored = []
    for index in range(300):
        seed_transforms(transform, 0, Draw(index, 0))
        result = transform(image=image)["image"].astype(int)
        mirrored.append(result[16, 0, 0] > result[16, -1, 0])
        assert result[0, 16, 1] < result[-1, 16, 1]
    assert abs(np.mean(mirrored) - expected) <= (0.12 if flip == 0.5 else 0)


def test_a_large_reduction_averages_over_all_pixels():
    """A reduced chequerboard is grey. Four pixels per output pixel would give black, white and moiré."""
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    crop = RandomResizedCrop((64, 64), scale=(0.5, 1.0), p=1)
    naive = A.RandomResizedCrop((64, 64), scale=(0.5, 1.0), p=1)
    spread = []
    for seed in range(10):
        for transform in (crop, naive):
            transform.set_random_seed(seed)
        assert difference(crop(image=board)["image"], 127).max() <= 8
        spread.append(np.ptp(naive(image=board)["image"]))
    assert max(spread) > 100


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_erasing_replaces_a_rectangle_with_noise_with_the_given_probability(probability):
    transform = train_transform(48, crop_scale=(1.0, 1.0), flip=0.0, random_erasing=probability)
    image = np.full((48, 48, 3), 77, np.uint8)
    erased = []
    for index in range(400):
        seed_transforms(transform, 0, Draw(index, 0))
        result = transform(image=image)["image"]
        changed = (result != 77).any(2)
        erased.append(changed.any())
        if erased[-1]:
            rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
            area = len(rows) * len(columns) / 48**2
            assert 0.015 < area < 0.36
            assert changed.sum() > 0.95 * len(rows) * len(columns)  # noise may equal the old value
            assert result[changed].std() > 40  # pixel by pixel, not one colour
    error = 4 * math.sqrt(probability * (1 - probability) / 400)
    assert abs(np.mean(erased) - probability) <= error


# Evaluation, compared with torchvision's Resize and CenterCrop of Pillow images


def published_evaluation(image, size, fraction):
    image = Image.fromarray(image)
    width, height = image.size
    shorter = int(size / fraction)
    new = tuple(int(shorter * side / min(width, height)) for side in (width, height))
    image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in new)
    return np.asarray(image.crop((left, top, left + size, top + size)))


# The longer side of some shapes exceeds the crop by an even number, of others by 1 or 3 modulo 4.
SHAPES = [(100, 100), (75, 100), (100, 75), (60, 91), (60, 92), (60, 93), (61, 90), (300, 500), (33, 200), (700, 450)]


@pytest.mark.parametrize(("size", "fraction"), [(64, 0.875), (64, 1.0), (56, 0.9), (33, 0.875)])
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_gives_the_pixels_of_the_published_protocol(shape, size, fraction):
    image = photograph(*shape)
    result = eval_transform(size, fraction)(image=image)["image"]
    assert result.shape == (size, size, 3)
    largest = difference(result, published_evaluation(image, size, fraction)).max()
    assert largest <= 1


def test_evaluation_is_the_same_every_time():
    transform = eval_transform(48)
    image = photograph(70, 90)
    np.testing.assert_array_equal(transform(image=image)["image"], transform(image=image)["image"])


# Custom transforms


def test_custom_transforms_are_applied_and_resized_to_the_size_of_the_model():
    image = photograph(60, 80)
    result = custom_transform([A.HorizontalFlip(p=1), A.CenterCrop(30, 30)], 64)(image=image)["image"]
    assert result.shape == (64, 64, 3)
    crop = Image.fromarray(image[15:45, 25:55][:, ::-1])
    assert difference(result, crop.resize((64, 64), Image.Resampling.BILINEAR)).mean() < 1


def test_images_of_the_right_size_are_not_resized():
    image = photograph(60, 80)
    result = custom_transform([A.CenterCrop(32, 32)], 32)(image=image)["image"]
    np.testing.assert_array_equal(result, image[14:46, 24:56])


@pytest.mark.parametrize("shape", [(1, 60_000, 3), (60_000, 2, 3)])
def test_only_the_middle_of_a_strip_is_resized(shape):
    strip = np.zeros(shape, np.uint8)
    middle = max(shape) // 2
    strip[:, middle - 8 : middle + 8] = 255
    strip[middle - 8 : middle + 8] = 255
    resized = ResizeShorterSide(256)(image=strip)["image"]
    assert min(resized.shape[:2]) == 256
    assert max(resized.shape[:2]) <= 32 * 256
    assert eval_transform(224)(image=strip)["image"].min() == 255
