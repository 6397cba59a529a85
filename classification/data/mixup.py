"""Mixup and CutMix, which mix pairs of training images and mix the labels of a pair in the same proportion."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with another image, and blend the two labels with the same weight.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.

    Image ``i`` is blended with image ``B - 1 - i``. No random choice is needed, because batches are already shuffled.

    Args:
        images: images ``(B, 3, H, W)``.
        labels: labels ``(B,)``, from 0 to ``num_classes - 1``.
        num_classes: number of classes.
        alpha: parameter of the Beta distribution of the weights, above 0. Each image has its own weight.
        generator: random generator for the weights.

    Returns:
        A tuple (blended images ``(B, 3, H, W)``, class probabilities ``(B, num_classes)``).
    """
    weights = torch.from_numpy(generator.beta(alpha, alpha, len(images))).to(images)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    images = torch.lerp(images.flip(0), images, weights[:, None, None, None])
    return images, torch.lerp(targets.flip(0), targets, weights[:, None])


def cutmix(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by that of another image, and blend the labels in proportion to the areas.

    Source: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV
    2019. The sides of a rectangle are √(1-λ) times the sides of the image, with λ from a Beta distribution. Its centre
    is uniformly distributed. It is clipped to the image, and the labels are weighted by the clipped area. As in
    :func:`mixup`, image ``i`` is mixed with image ``B - 1 - i``.

    Args:
        images: images ``(B, 3, H, W)``.
        labels: labels ``(B,)``, from 0 to ``num_classes - 1``.
        num_classes: number of classes.
        alpha: parameter of the Beta distribution of λ, above 0. Each image has its own rectangle.
        generator: random generator for the rectangles.

    Returns:
        A tuple (mixed images ``(B, 3, H, W)``, class probabilities ``(B, num_classes)``).
    """
    count, _, *size = images.shape
    half = (np.sqrt(1 - generator.beta(alpha, alpha, count))[:, None] * size).astype(int) // 2
    centre = generator.integers(0, size, (count, 2))
    low, high = np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)  # (B, 2): first row and column, end
    rows, columns = (
        (low[:, axis, None] <= np.arange(side)) & (np.arange(side) < high[:, axis, None])
        for axis, side in enumerate(size)
    )
    replaced = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    weights = 1 - torch.from_numpy((high - low).prod(1) / np.prod(size)).to(images)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    return torch.where(replaced, images.flip(0), images), torch.lerp(targets.flip(0), targets, weights[:, None])
