"""RetinaNet's anchors, and the encoding of boxes as offsets from anchors.

Anchors: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017. Offsets: Girshick, Fast R-CNN, ICCV 2015.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)  # height / width
PER_POSITION = len(OCTAVES) * len(RATIOS)

_MAX_LOG_SCALE = math.log(1000 / 16)  # upper bound of log(side / anchor side), as in Detectron


def make_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], base: float, device: torch.device) -> Tensor:
    """Return the nine anchors of every position of the feature maps, as one tensor.

    Args:
        sizes: list with a tuple (height, width) for each feature map.
        strides: stride of each feature map in pixels.
        base: side of the smallest square anchor of a feature map, divided by the stride of the map.
        device: device of the result.

    Returns:
        Anchors ``(A, 4)``, cxcywh in pixels. They are ordered by feature map, row, column, scale (1, 2^⅓, 2^⅔) and
        aspect ratio (height / width 0.5, 1, 2).
    """
    shapes = torch.tensor(
        [[octave / ratio**0.5, octave * ratio**0.5] for octave in OCTAVES for ratio in RATIOS], device=device
    )
    anchors = []
    for size, stride in zip(sizes, strides, strict=True):
        centres = cell_centres(size, stride, device)[:, None]
        sides = (base * stride * shapes)[None].expand(centres.shape[0], -1, -1)  # len() is constant in torch.export
        anchors.append(torch.cat([centres.expand(-1, PER_POSITION, -1), sides], dim=-1).flatten(0, 1))
    return torch.cat(anchors)


def cell_centres(size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """Return the centres of the positions of a feature map, in pixels of the image.

    Args:
        size: height H and width W of the feature map.
        stride: stride of the feature map in pixels.
        device: device of the result.

    Returns:
        Centres ``(H·W, 2)``, x and y, row by row.
    """
    height, width = size
    # Without a reshape of a map, because torch.export would restrict dynamic sizes to maps wider than one position.
    positions = torch.arange(height * width, device=device)
    ys = torch.div(positions, width, rounding_mode="trunc")  # OpenCV 5.0 refuses the ONNX operators of //
    return (torch.stack([positions - width * ys, ys], dim=-1) + 0.5) * stride


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the offsets of boxes from anchors, as in Fast R-CNN.

    Args:
        boxes: ``(n, 4)``, cxcywh in pixels, sides above 0.
        anchors: ``(n, 4)``, cxcywh in pixels, sides above 0.

    Returns:
        Offsets ``(n, 4)``. The first two values are the centre of the box minus the centre of the anchor, divided by
        the sides of the anchor. The last two are the logarithms of the box's sides divided by the anchor's sides.
    """
    centres = (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:]
    return torch.cat([centres, (boxes[:, 2:] / anchors[:, 2:]).log()], dim=1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes at the given offsets from anchors. This is the inverse of :func:`encode`.

    The last two offsets, which are logarithms, are first limited to at most log(1000 / 16).

    Args:
        offsets: ``(..., n, 4)``, see :func:`encode`.
        anchors: ``(n, 4)``, cxcywh in pixels.

    Returns:
        Boxes ``(..., n, 4)``, cxcywh in pixels.
    """
    centres = anchors[:, :2] + offsets[..., :2] * anchors[:, 2:]
    sides = anchors[:, 2:] * offsets[..., 2:].clamp(max=_MAX_LOG_SCALE).exp()
    return torch.cat([centres, sides], dim=-1)
