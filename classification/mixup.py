"""Mixup (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with another one, and their labels alike.

    Args:
        images: ``(B, 3, H, W)``.
        labels: ``(B,)``, from 0 to ``num_classes - 1``.
        num_classes: number of classes.
        alpha: of the Beta distribution from which each image's own weight is drawn, above 0.
        generator: draws the weights.

    Returns:
        Images ``(B, 3, H, W)`` and label distributions ``(B, num_classes)``. The partner is the image as far from the
        batch's end as this one is from its start: batches are shuffled already.
    """
    weights = torch.from_numpy(generator.beta(alpha, alpha, len(images))).to(images)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    images = torch.lerp(images.flip(0), images, weights[:, None, None, None])
    return images, torch.lerp(targets.flip(0), targets, weights[:, None])
