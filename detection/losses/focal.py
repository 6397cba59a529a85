"""Focal loss (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017)."""

import math

import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.25  # weight of positives; negatives have weight 1 − ALPHA
GAMMA = 2.0

# Initial class bias: each class starts with probability 0.01. Otherwise the many negatives dominate the first steps.
PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the focal loss of each element: binary cross-entropy that down-weights good predictions.

    Args:
        logits: class logits ``(...)``.
        wanted: targets ``(...)``, 1 if the class is present, else 0.

    Returns:
        Losses ``(...)``.
    """
    probability = logits.sigmoid()
    missed = wanted * (1 - probability) + (1 - wanted) * probability
    weight = wanted * ALPHA + (1 - wanted) * (1 - ALPHA)
    return weight * missed**GAMMA * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
