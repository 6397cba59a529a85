"""Pointwise convolutions of small batches on a single thread, computed by oneDNN.

On one thread, PyTorch gives a 1×1 convolution to oneDNN only if the batch has at least 16 images (``use_mkldnn`` in
ATen's ``Convolution.cpp``). Otherwise it computes a matrix product, which takes up to twice as long. A pointwise
convolution computes each position separately. The positions of a channels-last map can therefore be viewed as those of
16 or more images, and oneDNN computes these.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mobile_former.layers.eager import is_channels_last

_FEWEST = 16  # images in a batch for oneDNN
_MOST = 64  # with more images, which are smaller, oneDNN is slower


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute ``conv(x)`` for a feature map ``(B, C, H, W)``. On one thread, oneDNN computes small batches too.

    A convolution with hooks is called with ``x`` itself, so that the hooks receive the whole map.
    """
    batch = batch_for_onednn(x, conv.weight, conv.stride, conv.padding, conv.groups)
    hooks = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks
    if batch is None or hooks or _has_any_global_hook():
        return conv(x)
    return join_positions(conv(divide_positions(x, batch)), x)


def batch_for_onednn(
    x: Tensor, kernel: Tensor, stride: tuple[int, int], padding: str | tuple[int, int], groups: int
) -> int | None:
    """Return the number of images into which :func:`divide_positions` should divide a feature map ``(B, C, H, W)``.

    Return None if a division would not be faster, if the map cannot be divided, or if the convolution with the given
    kernel and options is not pointwise.
    """
    if kernel.shape[2:] != (1, 1) or (stride, padding, groups) != ((1, 1), (0, 0), 1):
        return None
    if not (x.is_cpu and is_channels_last(x)):  # false for compilers, which allow none of the checks below
        return None
    if len(x) >= _FEWEST or x.dtype != torch.float32 or torch.get_num_threads() > 1 or torch.is_autocast_enabled("cpu"):
        return None
    return _divisor(x.numel() // x.shape[1])


@functools.cache
def _divisor(positions: int) -> int | None:
    return next((count for count in range(_FEWEST, _MOST + 1) if positions % count == 0), None)


def divide_positions(x: Tensor, batch: int) -> Tensor:
    """View a channels-last feature map ``(B, C, H, W)`` as ``batch`` images, ``(batch, C, B·H·W / batch, 1)``."""
    return x.permute(0, 2, 3, 1).reshape(batch, -1, 1, x.shape[1]).permute(0, 3, 1, 2)


def join_positions(divided: Tensor, x: Tensor) -> Tensor:
    """Reverse :func:`divide_positions` after a convolution.

    Args:
        divided: output of the convolution, ``(batch, C', B·H·W / batch, 1)``.
        x: the map before it was divided, ``(B, C, H, W)``.

    Returns:
        The output of the convolution, viewed as a map ``(B, C', H, W)``.
    """
    shape = (len(x), *x.shape[2:], divided.shape[1])
    return divided.permute(0, 2, 3, 1).reshape(shape).permute(0, 3, 1, 2)
