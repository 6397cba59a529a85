"""Sine encodings of map positions (Carion et al., DETR, ECCV 2020) and of boxes (Liu et al., DAB-DETR, ICLR 2022)."""

import math

import torch
from torch import Tensor, nn

from mobile_former.bridge import HEADS

TEMPERATURE = 10000


def sine_encoding(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Encode the rows and columns of a map, relative to the size of the image without padding.

    Each attention head of :mod:`mobile_former.bridge` sees a contiguous chunk of the channels. Each chunk therefore
    encodes rows in its first half and columns in its second half. The frequencies are distributed over the chunks.

    Args:
        x: map ``(B, C, H, W)``, C a multiple of 8.
        padding: ``(B, 1, H, W)`` bool, True on padding; None if there is no padding.

    Returns:
        Encoding ``(B, C, H, W)``, or ``(1, C, H, W)`` without ``padding``, of the dtype of ``x``.
    """
    _, channels, height, width = x.shape
    if padding is None:
        padding = x.new_zeros((1, 1, height, width), dtype=torch.bool)
    content = (~padding[:, 0]).to(torch.float32)
    count = channels // 4
    frequencies = TEMPERATURE ** -(torch.arange(count, device=x.device) / count)
    parts = []
    for head in range(HEADS):
        for dim in (1, 2):
            position = content.cumsum(dim)
            position = 2 * math.pi * (position - 0.5) / position.amax(dim, keepdim=True).clamp(min=1)
            angles = position[:, None] * frequencies[head::HEADS, None, None]
            parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).to(x.dtype)


class BoxEmbedding(nn.Module):
    """Compute position embeddings from boxes: a sine encoding of the four coordinates, then a two-layer MLP.

    Args:
        query_dim: width of a query, a multiple of 4.
    """

    def __init__(self, query_dim: int):
        super().__init__()
        self.frequencies = query_dim // 4
        self.mlp = nn.Sequential(nn.Linear(2 * query_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim))

    def forward(self, boxes: Tensor) -> Tensor:
        """Embed boxes ``(B, Q, 4)``, cxcywh, normalised to 0..1; return ``(B, Q, query_dim)``."""
        exponents = torch.arange(self.frequencies, device=boxes.device) / self.frequencies
        angles = 2 * math.pi * boxes[..., None] * TEMPERATURE**-exponents
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
        return self.mlp(encoded.to(self.mlp[0].weight.dtype))
