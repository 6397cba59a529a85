"""RetinaNet's anchors, and boxes as offsets from them (Lin et al., ICCV 2017; Girshick, Fast R-CNN, ICCV 2015)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detection.models.position_encoding import cell_centres

OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)  # height over width
PER_POSITION = len(OCTAVES) * len(RATIOS)

_LARGEST = math.log(1000 / 16)  # of the logarithm of a side over its anchor's, as in Detectron


def make_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], base: float, device: torch.device) -> Tensor:
    """The anchors of all positions of maps.

    Args:
        sizes: of the maps, height and width.
        strides: of the maps in pixels.
        base: side of the smallest square anchor over its map's stride.
        device: where to make them.

    Returns:
        ``(A, 4)``, cxcywh in pixels, map by map, row by row, at each position the ratios within the octaves.
    """
    shapes = torch.tensor(
        [[octave / ratio**0.5, octave * ratio**0.5] for octave in OCTAVES for ratio in RATIOS], device=device
    )
    anchors = []
    for size, stride in zip(sizes, strides, strict=True):
        centres = cell_centres(size, stride, device)[:, None]
        sides = (base * stride * shapes)[None].expand(centres.shape[0], -1, -1)  # len() would fix it in torch.export
        anchors.append(torch.cat([centres.expand(-1, PER_POSITION, -1), sides], dim=-1).flatten(0, 1))
    return torch.cat(anchors)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes ``(n, 4)`` as offsets from anchors ``(n, 4)``, both cxcywh in pixels, with sides above 0."""
    centres = (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:]
    return torch.cat([centres, (boxes[:, 2:] / anchors[:, 2:]).log()], dim=1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes that offsets ``(..., n, 4)`` from anchors ``(n, 4)`` stand for, cxcywh in pixels."""
    centres = anchors[:, :2] + offsets[..., :2] * anchors[:, 2:]
    sides = anchors[:, 2:] * offsets[..., 2:].clamp(max=_LARGEST).exp()
    return torch.cat([centres, sides], dim=-1)
