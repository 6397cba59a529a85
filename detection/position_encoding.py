"""The 2-D sine encoding of map positions (Carion et al., DETR, ECCV 2020, appendix)."""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000


def sine_encoding(padding: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Encode rows in the first half of the channels and columns in the second, relative to the image's own extent.

    Args:
        padding: ``(B, 1, H, W)`` bool, True on padding.
        channels: a multiple of 4.
        dtype: of the result.

    Returns:
        ``(B, channels, H, W)``.
    """
    content = (~padding[:, 0]).to(torch.float32)
    exponents = torch.arange(channels // 4, device=padding.device) / (channels // 4)
    frequencies = TEMPERATURE**-exponents  # (channels / 4,)
    parts = []
    for dim in (1, 2):
        place = content.cumsum(dim)
        place = 2 * math.pi * (place - 0.5) / place.amax(dim, keepdim=True).clamp(min=1)
        angles = place[:, None] * frequencies[:, None, None]  # (B, channels / 4, H, W)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).to(dtype)
