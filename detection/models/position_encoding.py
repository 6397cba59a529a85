"""Sine position encodings of feature maps and of boxes.

Sources: Carion et al., DETR, ECCV 2020, for feature maps; Liu et al., DAB-DETR, ICLR 2022, for boxes.
"""

import math

import torch
from torch import Tensor, nn

from mobile_former.bridge import HEADS

TEMPERATURE = 10000


def sine_encoding(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return the sine position encoding of a feature map.

    Rows and columns are scaled by the size of the image without padding. In :mod:`mobile_former.bridge`, each
    attention head reads a contiguous chunk of the channels. Therefore the first half of each chunk encodes rows, and
    the second half encodes columns. With n heads, the chunk of head k has the frequencies with the indices k, k + n,
    k + 2n and so on.

    Args:
        x: feature map ``(B, C, H, W)``, C a multiple of 8. Only its shape, dtype and device are used.
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
    """Module that computes position embeddings from boxes.

    It applies a sine encoding to the four coordinates, then a two-layer MLP.

    Args:
        query_dim: dimension of an embedding, a multiple of 4.
    """

    def __init__(self, query_dim: int):
        super().__init__()
        self.frequencies = query_dim // 4
        self.mlp = nn.Sequential(nn.Linear(2 * query_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim))

    def forward(self, boxes: Tensor) -> Tensor:
        """Return embeddings ``(B, Q, query_dim)`` of boxes ``(B, Q, 4)``, cxcywh, normalised to 0..1."""
        exponents = torch.arange(self.frequencies, device=boxes.device) / self.frequencies
        angles = 2 * math.pi * boxes[..., None] * TEMPERATURE**-exponents
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
        return self.mlp(encoded.to(self.mlp[0].weight.dtype))
