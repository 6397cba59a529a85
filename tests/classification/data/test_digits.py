import cv2
import numpy as np
import torch

from classification.data.digits import Digits


def test_the_two_splits_are_disjoint_and_contain_all_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    original = sorted(
        (image / 16).round(4).tobytes() + bytes([label])
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    )
    kept = []
    for split in (train, val):
        for image, label in zip(split.images, split.labels, strict=True):
            sixteenths = np.round(image.astype(float) * 16 / 255)
            kept.append((sixteenths.ravel() / 16).round(4).tobytes() + bytes([label]))
    assert sorted(kept) == original


def test_a_fifth_of_each_class_is_held_out():
    train, val = (np.bincount(Digits(split).labels, minlength=10) for split in ("train", "val"))
    assert np.abs(val / (train + val) - 0.2).max() < 0.005


def test_the_split_does_not_depend_on_the_seed():
    np.random.seed(0), torch.manual_seed(0)
    first = Digits("val")
    np.random.seed(1), torch.manual_seed(1)
    again = Digits("val")
    assert first.labels == again.labels
    np.testing.assert_array_equal(first.images, again.images)
    # With another split, old checkpoints would be scored on their own training images.
    assert first.labels[:20] == [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2, 0, 7, 4, 8, 1, 5, 3, 9]


def test_a_digit_is_an_enlarged_grey_rgb_image():
    digits = Digits("train")
    image = digits.read(0)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    likeness = []
    for border in range(3):  # the width of the border does not matter
        small = cv2.resize(image[..., 0], (8 + 2 * border,) * 2, interpolation=cv2.INTER_AREA).astype(int)
        small = small[border : border + 8, border : border + 8]
        likeness.append(np.corrcoef(small.ravel(), digits.images[0].ravel())[0, 1])
    assert max(likeness) > 0.95
