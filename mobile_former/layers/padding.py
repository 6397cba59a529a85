"""Functions that use padding masks to make the features of an image independent of its padding in a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def padding_pyramid(padding_mask: Tensor, strides: tuple[int, ...]) -> dict[int, Tensor]:
    """Compute the padding masks of the feature maps at several strides.

    Args:
        padding_mask: ``(B, H, W)`` bool, True on padding.
        strides: strides of the maps, in pixels.

    Returns:
        Dictionary from each stride ``s`` to its mask, ``(B, 1, ⌈H/s⌉, ⌈W/s⌉)`` bool. A position is padding if all
        pixels that it covers are padding.
    """
    content = (~padding_mask)[:, None].float()
    return {stride: (_pool(content, stride) if stride > 1 else content) == 0 for stride in strides}


def _pool(content: Tensor, stride: int) -> Tensor:
    if stride <= 32:  # the smallest image
        return F.max_pool2d(content, stride, stride, ceil_mode=True)
    # OpenVINO 2026.4 fails, or returns the previous outputs, if a window is larger than the map.
    return F.max_pool2d(F.pad(content, (0, stride - 1, 0, stride - 1)), stride, stride)


def content_size(images: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return the width and height of the unpadded part of each image in pixels, ``(B, 2)`` float.

    Args:
        images: ``(B, C, H, W)``, with padding only on the right and at the bottom.
        padding_mask: ``(B, H, W)`` bool, True on padding; None for no padding.
    """
    if padding_mask is None:
        # torch.tensor([width, height]) would make the sides constants in torch.export.
        width, height = (
            images.new_full((images.shape[0],), images.shape[axis], dtype=torch.float32) for axis in (3, 2)
        )
        return torch.stack([width, height], dim=1)
    content = ~padding_mask
    return torch.stack([content.any(1).sum(1), content.any(2).sum(1)], dim=1).float()


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return a feature map whose padded positions are set to zero.

    A convolution then reads zeros at these positions, as it does beyond the border of an unpadded image.

    Args:
        x: feature map, ``(B, C, H, W)``.
        padding: ``(B, 1, H, W)`` bool, True on padding; None for no padding.
    """
    return x if padding is None else x.masked_fill(padding, 0)


def mean_pool(x: Tensor, padding: Tensor | None) -> Tensor:
    """Average a feature map ``(B, C, H, W)`` over the positions that are not padding. The result is ``(B, C)``.

    ``padding`` is ``(B, 1, H, W)`` bool, True on padding; None for no padding.
    """
    if padding is None:
        return x.mean((2, 3))
    content = (~padding).sum((2, 3)).clamp(min=1)  # (B, 1)
    return zero_padding(x, padding).sum((2, 3)) / content


def halve(x: Tensor, padding: Tensor | None) -> Tensor:
    """Apply 2×2 average pooling with stride 2 to a feature map. The result is ``(B, C, ⌈H/2⌉, ⌈W/2⌉)``.

    The means ignore positions beyond the border and positions where ``padding``, ``(B, 1, H, W)`` bool, is True.
    """
    if padding is None:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    weights = (~padding).to(x.dtype)
    total = F.avg_pool2d(x * weights, 2, ceil_mode=True, count_include_pad=False)
    share = F.avg_pool2d(weights, 2, ceil_mode=True, count_include_pad=False)
    return total / share.clamp(min=torch.finfo(x.dtype).tiny)


def double(x: Tensor, padding: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Upsample a feature map by a factor of 2 with bilinear interpolation between the positions that are not padding.

    Args:
        x: feature map, ``(B, C, H, W)``.
        padding: ``(B, 1, H, W)`` bool, True on padding; None for no padding.
        size: height and width to which the result is cropped, ``(2H or 2H − 1, 2W or 2W − 1)``.
    """
    if padding is None:
        return _enlarge(x, size)
    weights = (~padding).to(x.dtype)
    total, share = _enlarge(x * weights, size), _enlarge(weights, size)
    return total / share.clamp(min=torch.finfo(x.dtype).tiny)


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
