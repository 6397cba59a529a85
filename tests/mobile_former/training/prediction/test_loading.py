"""Loading images in background threads."""

import threading

import cv2
import numpy as np
import pytest
import torch

from mobile_former.training.prediction.inputs import as_input
from mobile_former.training.prediction.loading import load_batches
from mobile_former.training.processors import available_cores


@pytest.fixture
def images(tmp_path):
    """Eleven images, each of the colour of its number, the seventh unreadable."""
    paths = [tmp_path / f"{number:02d}.png" for number in range(11)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((10 + number, 12, 3), number, np.uint8))
    paths[6].write_bytes(b"")
    return [as_input(path) for path in paths]


def test_batches_are_complete_and_in_order(images):
    batches = list(load_batches(images, lambda images: images[:, :4, :5], 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    loaded = [each for batch in batches for each in batch]
    assert [each.source for each in loaded] == images
    for number, each in enumerate(loaded):
        if number == 6:
            assert each.image is None
            assert "06.png: an empty file" in each.error
        else:
            assert each.error is None
            assert each.size == (10 + number, 12)
            assert np.array_equal(each.image, np.full((4, 5, 3), number))
            assert each.original is None
    (first, *_), *_ = load_batches(images, lambda images: images, 2, keep_originals=True)
    assert first.original.shape == (10, 12, 3)


def test_images_of_one_size_are_transformed_together_and_stay_in_order(tmp_path):
    paths = [tmp_path / f"{number:02d}.png" for number in range(8)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((10 + number % 2, 12, 3), number, np.uint8))
    together = []

    def transform(images):
        together.append(len(images))
        return images[:, :4]

    (batch,) = load_batches(list(map(as_input, paths)), transform, 8)
    assert [each.image[0, 0, 0] for each in batch] == list(range(8))
    assert [each.size for each in batch] == [(10 + number % 2, 12) for number in range(8)]
    assert max(together) > 1 or available_cores() > 4  # the images are divided among the threads


def test_the_threads_end_and_those_of_pytorch_stay(images):
    before, threads = threading.active_count(), torch.get_num_threads()
    batches = load_batches(images, lambda images: images, 1)
    next(batches)
    assert torch.get_num_threads() == threads
    batches.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads


def test_an_error_of_the_transform_is_raised_in_the_main_thread(images):
    def fail(images):
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError, match="a fault"):
        list(load_batches(images, fail, 4))
