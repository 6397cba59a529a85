"""The focal loss (Lin et al., RetinaNet, ICCV 2017)."""

import math

import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.25  # weight of positives; of negatives it is 1 − ALPHA
GAMMA = 2.0

# Before anything is learned each class has the probability 0.01, lest the many negatives outweigh all else.
PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy, element by element, of which what is easy counts little.

    Args:
        logits: ``(...)``.
        wanted: ``(...)``, 1 where a class is present, else 0.

    Returns:
        ``(...)``.
    """
    probability = logits.sigmoid()
    missed = wanted * (1 - probability) + (1 - wanted) * probability
    weight = wanted * ALPHA + (1 - wanted) * (1 - ALPHA)
    return weight * missed**GAMMA * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
