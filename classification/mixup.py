"""Mixup (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with another image, and blend the two labels with the same weight.

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
