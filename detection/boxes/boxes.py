"""Boxes: forms and overlaps."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``(..., 4)`` centre, width, height to corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``(..., 4)`` corners to centre, width, height."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], dim=-1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al., CVPR 2019), in −1..1.

    Args:
        first: corners ``(..., 4)``.
        second: corners, broadcast against ``first``.

    Returns:
        ``(...)``; 1 for two equal boxes, also for two equal boxes without area.
    """
    intersection, union = _intersection_and_union(first, second)
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    enclosing = outer.prod(-1)
    tiny = torch.finfo(first.dtype).tiny
    iou = torch.where(union > 0, intersection / union.clamp(min=tiny), (enclosing == 0).to(first.dtype))
    gap = torch.where(enclosing > 0, (enclosing - union) / enclosing.clamp(min=tiny), 0)
    return iou - gap


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union, in 0..1, of corners ``(..., 4)``, broadcast against each other; 0 for empty boxes."""
    intersection, union = _intersection_and_union(first, second)
    return intersection / union.clamp(min=torch.finfo(first.dtype).tiny)


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    intersection = inner.prod(-1)
    return intersection, _area(first) + _area(second) - intersection


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(0).prod(-1)
