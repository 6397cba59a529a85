"""Reference boxes of object queries: initial values, correction, effect on attention, and sampling of feature maps.

Each decoder block corrects the box of a query (Liu et al., DAB-DETR, ICLR 2022). A query attends mainly to the area
around its box, because a Gaussian weights the attention (Gao et al., Fast Convergence of DETR with Spatially Modulated
Co-Attention, ICCV 2021).
"""

import math

import torch
from torch import Tensor

_EDGE = 1e-4  # coordinates are clamped to [_EDGE, 1 - _EDGE] before their logit is taken


def grid_boxes(count: int) -> Tensor:
    """Return boxes on a regular grid over the image.

    Args:
        count: number of boxes.

    Returns:
        Boxes ``(count, 4)``, cxcywh, normalised to 0..1. Width and height of each box are 1.5 times the distance
        between two rows of the grid, at most 1.
    """
    rows = round(math.sqrt(count))
    boxes = []
    for row in range(rows):
        columns = count // rows + (row < count % rows)
        boxes += [[(column + 0.5) / columns, (row + 0.5) / rows, 1.5 / rows, 1.5 / rows] for column in range(columns)]
    return torch.tensor(boxes).clamp(max=1)


def correct(boxes: Tensor, correction: Tensor) -> Tensor:
    """Add corrections to the logits (inverse sigmoid) of box coordinates, and return the corrected boxes.

    Args:
        boxes: ``(B, Q, 4)``, cxcywh, normalised to 0..1.
        correction: ``(B, Q, 4)``, added to the logits.

    Returns:
        Corrected boxes ``(B, Q, 4)``, cxcywh in 0..1.
    """
    return (boxes.clamp(_EDGE, 1 - _EDGE).logit() + correction).sigmoid()


def attention_bias(boxes: Tensor, size: tuple[int, int], stride: int, extent: Tensor) -> Tensor:
    """Return an attention bias that decreases with the distance between a map position and the box of a query.

    The bias is the logarithm of a Gaussian that is centred on the box and has the maximum 1. In x, its standard
    deviation is half the width of the box plus a quarter of the stride. In y, the height replaces the width. The
    quarter of the stride ensures that the query can attend to at least one position, even if its box is very small.

    Args:
        boxes: ``(B, Q, 4)``, cxcywh, normalised by the size of the image without padding.
        size: height H and width W of the feature map.
        stride: stride of the feature map in pixels.
        extent: ``(B, 2)``, width and height of the images without padding, in pixels.

    Returns:
        ``(B, Q, H·W)``, 0 or less, to be added to the attention logits.
    """
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    cell = stride / extent[:, None]  # (B, 1, 2)
    deviations = boxes[..., 2:] / 2 + cell / 4
    across = (columns * cell[..., :1] - boxes[..., :1]) / deviations[..., :1]  # (B, Q, W)
    down = (rows * cell[..., 1:] - boxes[..., 1:2]) / deviations[..., 1:]  # (B, Q, H)
    return -0.5 * (down.square()[..., :, None] + across.square()[..., None, :]).flatten(2)


def sampling_weights(
    boxes: Tensor, size: tuple[int, int], stride: int, extent: Tensor, grid: int, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weights that sample a feature map at the points of a regular grid in each box.

    The sample at a grid point is a weighted mean of the map's cells. The weight of a cell is the product of a weight of
    its row and a weight of its column. These weights decrease linearly with the distance from the point. They reach 0
    at a distance of one cell, as in bilinear interpolation, or of one grid spacing if the grid points are further apart
    than one cell. The samples of a large box thus cover all of its cells.

    Args:
        boxes: ``(B, Q, 4)``, cxcywh, normalised by the size of the image without padding.
        size: height H and width W of the feature map.
        stride: stride of the feature map in pixels.
        extent: ``(B, 2)``, width and height of the images without padding, in pixels.
        grid: number of grid points G in each dimension.
        padding: ``(B, 1, H, W)`` bool, True on padding, which has weight 0; None if there is no padding.

    Returns:
        A tuple of the weights of the rows ``(B, Q, G, H)`` and of the columns ``(B, Q, G, W)``. The weights of a grid
        point sum to 1, or are all 0 if the point is far outside the image.
    """
    places = (torch.arange(grid, device=boxes.device) + 0.5) / grid - 0.5  # in box sides from the centre
    weights = []
    for axis, length in ((1, size[0]), (0, size[1])):
        cells = extent[:, None, axis] / stride
        centre, side = boxes[..., axis] * cells, boxes[..., 2 + axis] * cells
        points = centre[..., None] + places * side[..., None]  # (B, Q, G)
        reach = (side / grid).clamp(min=1)[..., None, None]
        distance = (torch.arange(length, device=boxes.device) + 0.5 - points[..., None]).abs() / reach
        weight = (1 - distance).clamp(min=0)
        if padding is not None:
            row_or_column = padding[:, 0, :, 0] if axis else padding[:, 0, 0]
            weight = weight.masked_fill(row_or_column[:, None, None], 0)
        weights.append(weight / weight.sum(-1, keepdim=True).clamp(min=_EDGE))
    return weights[0], weights[1]
