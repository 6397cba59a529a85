"""Resizing without albumentations."""

import numpy as np
import pytest

from detection.data.resizing import resize_to_fit
from detection.transforms import eval_transform


@pytest.mark.parametrize("size", [(50, 50), (97, 211), (301, 64), (9, 400)])
@pytest.mark.parametrize("options", [(64, 100, None), (120, 1333, None), (96, 200, (64, 128))])
def test_the_pixels_are_those_of_the_transforms_of_evaluation(size, options):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = eval_transform(*options)(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"]
    np.testing.assert_array_equal(resize_to_fit(image, *options), expected)
