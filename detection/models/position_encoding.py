"""The 2-D sine encoding of map positions (Carion et al., DETR, ECCV 2020, appendix)."""

import math

import torch
from torch import Tensor

from mobile_former.bridge import HEADS

TEMPERATURE = 10000


def cell_centres(size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """The centres of a map's cells, row by row: ``(H·W, 2)``, x and y in pixels.

    Args:
        size: of the map, H and W.
        stride: of the map in pixels.
        device: where to make them.
    """
    ys, xs = torch.meshgrid(*(torch.arange(length, device=device) for length in size), indexing="ij")
    return (torch.stack([xs, ys], dim=-1).reshape(-1, 2) + 0.5) * stride


def sine_encoding(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Encode the rows and columns of a map, relative to the image's own extent.

    Each head of the bridge sees a contiguous part of the channels, so each part has rows and columns in it: the first
    half of a part is of rows, the second of columns, and the parts share the frequencies out among them.

    Args:
        x: the map, ``(B, C, H, W)``, C a multiple of 8.
        padding: ``(B, 1, H, W)`` bool, True on padding, or None for none.

    Returns:
        ``(B, C, H, W)``, or ``(1, C, H, W)`` where nothing is padding; of the map's type.
    """
    _, channels, height, width = x.shape
    if padding is None:
        padding = x.new_zeros((1, 1, height, width), dtype=torch.bool)
    content = (~padding[:, 0]).to(torch.float32)
    count = channels // 4  # frequencies
    frequencies = TEMPERATURE ** -(torch.arange(count, device=x.device) / count)
    parts = []
    for head in range(HEADS):
        for dim in (1, 2):
            place = content.cumsum(dim)
            place = 2 * math.pi * (place - 0.5) / place.amax(dim, keepdim=True).clamp(min=1)
            angles = place[:, None] * frequencies[head::HEADS, None, None]
            parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).to(x.dtype)
