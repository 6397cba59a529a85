"""Functions that fold BatchNorm, shuffles, constant factors and shifts into weights."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mobile_former.deployment.modules import InferenceLinear, InferenceNorm
from mobile_former.layers.conv_norm import ChannelShuffle, ConvNorm


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """Fold the BatchNorm of a layer into its convolution."""
    return fuse_conv_bn_eval(layer.conv.eval(), layer.norm.eval())


def fold_features_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    """Fold a BatchNorm into the linear layer before it."""
    return fuse_linear_bn_eval(layer.eval(), norm.eval())


def merged(layers: list[nn.Linear]) -> InferenceLinear:
    """Merge linear layers with the same input into one, which concatenates their outputs."""
    return InferenceLinear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def scaled(layer: nn.Linear, factor: float = 1) -> InferenceLinear:
    """Fold a factor on the output into a linear layer."""
    return InferenceLinear(layer.weight * factor, layer.bias * factor)


def whole(weight: Tensor, groups: int) -> Tensor:
    """Convert the weight of a grouped pointwise convolution to that of an ungrouped one, with zeros between the groups.

    The ungrouped convolution has more multiplications but is faster in PyTorch: small groups do not fill the vector
    registers, and the shuffles around grouped convolutions become a permutation of rows and columns.

    Args:
        weight: ``(out, in / groups, 1, 1)``.
        groups: number of groups.

    Returns:
        ``(out, in)``.
    """
    return torch.block_diag(*weight[:, :, 0, 0].chunk(groups))


def shuffle_order(shuffle: nn.Module | None, channels: int) -> Tensor:
    """Return the input channel of each output channel of a shuffle; the identity if it is not a ChannelShuffle."""
    numbers = torch.arange(channels, device="cpu")
    return shuffle(numbers[None, :, None, None]).flatten() if isinstance(shuffle, ChannelShuffle) else numbers


def inverse(order: Tensor) -> Tensor:
    """Return the inverse of a permutation."""
    return order.argsort()


def shifted(layer: nn.Linear, shift: Tensor) -> InferenceLinear:
    """Adjust the bias so that ``shifted(layer, shift)(x + shift)`` equals ``layer(x)``; ``shift`` is ``(in,)``."""
    return InferenceLinear(layer.weight, layer.bias - layer.weight @ shift)


def with_shift(norm: nn.LayerNorm, shift: Tensor | float = 0) -> InferenceNorm:
    """Add a shift ``(d,)`` to the output of a LayerNorm."""
    return InferenceNorm(norm.weight, norm.bias + shift, norm.eps)
