"""Functions that convert box formats or compute the overlap of boxes."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes ``(..., 4)`` from (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes ``(..., 4)`` from (left, top, right, bottom) to (centre x, centre y, width, height)."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], dim=-1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes (Rezatofighi et al., CVPR 2019).

    Args:
        first: boxes ``(..., 4)``, xyxy.
        second: boxes ``(..., 4)``, xyxy, broadcast against ``first``.

    Returns:
        Values ``(...)`` in −1..1. The value is 1 for equal boxes, even if their area is 0.
    """
    intersection, union = _intersection_and_union(first, second)
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    enclosing = _product(outer)
    tiny = torch.finfo(first.dtype).tiny
    iou = torch.where(union > 0, intersection / union.clamp(min=tiny), (enclosing == 0).to(first.dtype))
    gap = torch.where(enclosing > 0, (enclosing - union) / enclosing.clamp(min=tiny), 0)
    return iou - gap


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes.

    Args:
        first: boxes ``(..., 4)``, xyxy.
        second: boxes ``(..., 4)``, xyxy, broadcast against ``first``.

    Returns:
        Values ``(...)`` in 0..1. The value is 0 if the area of a box is 0.
    """
    intersection, union = _intersection_and_union(first, second)
    return intersection / union.clamp(min=torch.finfo(first.dtype).tiny)


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    intersection = _product(inner)
    return intersection, _area(first) + _area(second) - intersection


def _area(boxes: Tensor) -> Tensor:
    return _product((boxes[..., 2:] - boxes[..., :2]).clamp(0))


def _product(sides: Tensor) -> Tensor:
    """Return width times height of sides ``(..., 2)``. Core ML Tools 9.0 do not know ``prod`` along an axis."""
    return sides[..., 0] * sides[..., 1]
