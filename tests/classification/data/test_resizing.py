"""Resizing without albumentations."""

import numpy as np
import pytest

from classification.data.resizing import resize_and_crop
from classification.data.transforms import eval_transform


@pytest.mark.parametrize("size", [(50, 50), (97, 211), (301, 64), (9, 400), (640, 33)])
@pytest.mark.parametrize(("image_size", "fraction"), [(32, 0.875), (64, 1.0), (33, 0.7)])
def test_the_pixels_are_those_of_the_transforms_of_evaluation(size, image_size, fraction):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = eval_transform(image_size, fraction)(image=image)["image"]
    found = resize_and_crop(image, image_size, fraction)
    assert found.shape == (image_size, image_size, 3)
    np.testing.assert_array_equal(found, expected)
