"""Reference boxes: where a query looks, refined block by block.

From Liu et al., DAB-DETR (ICLR 2022): a query's position is its box, encoded, and each block corrects the box; and from
Gao et al., SMCA (ICCV 2021): a query's attention is drawn to its box by a Gaussian.
"""

import math

import torch
from torch import Tensor, nn

from detection.models.position_encoding import TEMPERATURE

_EDGE = 1e-4  # how near to 0 and 1 a coordinate may come before its logit is taken


class BoxEmbedding(nn.Module):
    """Boxes as query positions: a sine encoding of the four coordinates, and two linears.

    Args:
        query_dim: width of a query, a multiple of 4.
    """

    def __init__(self, query_dim: int):
        super().__init__()
        self.frequencies = query_dim // 4
        self.mlp = nn.Sequential(nn.Linear(2 * query_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim))

    def forward(self, boxes: Tensor) -> Tensor:
        """``(B, Q, 4)`` cxcywh in 0..1 to ``(B, Q, query_dim)``."""
        exponents = torch.arange(self.frequencies, device=boxes.device) / self.frequencies
        angles = 2 * math.pi * boxes[..., None] * TEMPERATURE**-exponents
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
        return self.mlp(encoded.to(self.mlp[0].weight.dtype))


def grid_boxes(count: int) -> Tensor:
    """Boxes ``(count, 4)``, cxcywh in 0..1, spread evenly over the image, half as large again as their distance."""
    rows = round(math.sqrt(count))
    boxes = []
    for row in range(rows):
        columns = count // rows + (row < count % rows)
        boxes += [[(column + 0.5) / columns, (row + 0.5) / rows, 1.5 / rows, 1.5 / rows] for column in range(columns)]
    return torch.tensor(boxes).clamp(max=1)


def correct(boxes: Tensor, correction: Tensor) -> Tensor:
    """Boxes ``(B, Q, 4)`` in 0..1 moved by corrections of their logits."""
    return (boxes.clamp(_EDGE, 1 - _EDGE).logit() + correction).sigmoid()


def focus(boxes: Tensor, size: tuple[int, int], stride: int, extent: Tensor) -> Tensor:
    """How much less a position of a map is looked at the farther it is from a box.

    Args:
        boxes: ``(B, Q, 4)``, cxcywh in 0..1 of the image without its padding.
        size: of the map, H and W.
        stride: of the map in pixels.
        extent: ``(B, 2)``, width and height of the images without padding, in pixels.

    Returns:
        ``(B, Q, H·W)``, to be added to the logits of attention: the logarithm of a Gaussian at the box's centre, whose
        standard deviations are half of the box's sides, and a quarter of a cell more, so that the smallest box sees a
        cell.
    """
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    cell = stride / extent[:, None]  # (B, 1, 2)
    deviations = boxes[..., 2:] / 2 + cell / 4
    across = (columns * cell[..., :1] - boxes[..., :1]) / deviations[..., :1]  # (B, Q, W)
    down = (rows * cell[..., 1:] - boxes[..., 1:2]) / deviations[..., 1:]  # (B, Q, H)
    return -0.5 * (down.square()[..., :, None] + across.square()[..., None, :]).flatten(2)
