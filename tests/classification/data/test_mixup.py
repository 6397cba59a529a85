import numpy as np
import pytest
import torch

from classification.data.mixup import cutmix, mixup


def batch(count, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 5, 4, generator=generator), torch.randint(classes, (count,), generator=generator)


class Fixed:
    """A generator that returns known weights."""

    def __init__(self, weights):
        self.weights = np.array(weights)

    def beta(self, a, b, size):
        assert a == b
        assert size == len(self.weights)
        return self.weights


@pytest.mark.parametrize("weights", [[0.3, 1.0, 0.0, 0.75], [0.2, 0.5, 0.9]])
def test_images_and_labels_are_blended_with_those_of_the_reversed_batch(weights):
    count = len(weights)
    images, labels = batch(count, 6)
    before = images.clone()
    mixed, targets = mixup(images, labels, 6, 0.2, Fixed(weights))
    for index, weight in enumerate(weights):
        partner = count - 1 - index
        expected = weight * before[index] + (1 - weight) * before[partner]
        torch.testing.assert_close(mixed[index], expected)
        target = torch.zeros(6)
        target[labels[index]] += weight
        target[labels[partner]] += 1 - weight
        torch.testing.assert_close(targets[index], target)
    assert torch.equal(images, before), "the given images should not change"


@pytest.mark.parametrize("method", [mixup, cutmix])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_targets_are_distributions_with_the_dtype_of_the_images(count, dtype, method):
    images, labels = batch(count, 10)
    mixed, targets = method(images.to(dtype), labels, 10, 0.2, np.random.default_rng(0))
    assert mixed.shape == images.shape
    assert targets.shape == (count, 10)
    assert mixed.dtype == targets.dtype == dtype
    assert targets.min() >= 0
    torch.testing.assert_close(
        targets.float().sum(1), torch.ones(count), atol=1e-6 if dtype != torch.bfloat16 else 0.01, rtol=0
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_the_weights_have_the_mean_and_variance_of_the_beta_distribution(alpha):
    count = 20_000
    images = torch.zeros(count, 3, 1, 1, dtype=torch.float64)
    images[: count // 2] = 1  # the blend equals the weight, because the partner is 0
    mixed, _ = mixup(images, torch.zeros(count, dtype=torch.long), 2, alpha, np.random.default_rng(0))
    weights = mixed[: count // 2, 0, 0, 0].numpy()
    assert len(np.unique(weights)) > count // 4
    assert abs(weights.mean() - 0.5) < 0.02
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("mixup", [mixup, cutmix])
def test_the_weights_depend_only_on_the_generator(mixup):
    images, labels = batch(8, 3)
    torch.manual_seed(0), np.random.seed(0)
    first = mixup(images, labels, 3, 0.2, np.random.default_rng([5, 1]))
    torch.manual_seed(1), np.random.seed(1)
    again = mixup(images, labels, 3, 0.2, np.random.default_rng([5, 1]))
    other = mixup(images, labels, 3, 0.2, np.random.default_rng([5, 2]))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


class Rectangle:
    """A generator that returns one weight and one centre."""

    def __init__(self, weight, centre):
        self.weight, self.centre = weight, centre

    def beta(self, a, b, size):
        return np.full(size, self.weight)

    def integers(self, low, high, size):
        return np.tile(self.centre, (size[0], 1))


@pytest.mark.parametrize(
    ("weight", "centre", "rows", "columns"),
    [
        (0.75, (10, 15), (5, 15), (8, 22)),  # √(1-¾) = ½ of 20×30 pixels: 10×15, of which half is 5 and 7
        (0.75, (0, 29), (0, 5), (22, 30)),  # clipped at the corner
        (0.0, (10, 15), (0, 20), (0, 30)),
        (1.0, (3, 3), (3, 3), (3, 3)),  # empty
    ],
)
def test_cutmix_replaces_a_rectangle_and_weights_the_labels_by_its_area(weight, centre, rows, columns):
    images, labels = torch.randn(3, 3, 20, 30), torch.tensor([0, 1, 2])
    mixed, targets = cutmix(images, labels, 4, 1.0, Rectangle(weight, centre))
    expected = images.clone()
    expected[:, :, slice(*rows), slice(*columns)] = images.flip(0)[:, :, slice(*rows), slice(*columns)]
    assert torch.equal(mixed, expected)
    share = (rows[1] - rows[0]) * (columns[1] - columns[0]) / 600
    middle = [0.0, 1.0, 0.0, 0.0]  # the middle image is its own partner
    torch.testing.assert_close(targets, torch.tensor([[1 - share, 0, share, 0], middle, [share, 0, 1 - share, 0]]))


def test_each_image_of_a_batch_has_its_own_rectangle_anywhere_in_the_image():
    count = 4000
    images = torch.zeros(count, 1, 9, 12)
    images[count // 2 :] = 1
    mixed, targets = cutmix(images, torch.arange(count) // (count // 2), 2, 1.0, np.random.default_rng(0))
    torch.testing.assert_close(mixed[: count // 2].mean((1, 2, 3)), targets[: count // 2, 1])
    assert len(mixed[: count // 2].unique(dim=0)) > 200
    frequency = mixed[: count // 2, 0].mean(0)
    assert frequency.min() > 0.05  # the rectangles reach the corners
    assert frequency.argmax() not in (0, 11, 96, 107)  # and cover the middle more often
