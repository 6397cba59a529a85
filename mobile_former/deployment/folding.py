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
    """Merge linear layers with the same input into one layer that returns the concatenated outputs."""
    return InferenceLinear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def scaled(layer: nn.Linear, factor: float = 1) -> InferenceLinear:
    """Multiply the output of a linear layer by a factor: the weight and the bias are multiplied."""
    return InferenceLinear(layer.weight * factor, layer.bias * factor)


def whole(weight: Tensor, groups: int) -> Tensor:
    """Convert the weight of a grouped pointwise convolution to the weight of an ungrouped one, filled up with zeros.

    The ungrouped convolution has more multiplications but is faster in PyTorch. Small groups do not fill the vector
    registers. The shuffles around grouped convolutions become a permutation of the weight's rows and columns.

    Args:
        weight: ``(out, in / groups, 1, 1)``.
        groups: number of groups.

    Returns:
        ``(out, in)``.
    """
    return torch.block_diag(*weight[:, :, 0, 0].chunk(groups))


def shuffle_order(shuffle: nn.Module | None, channels: int) -> Tensor:
    """Return the index of the input channel from which each output channel of a shuffle comes, ``(channels,)``.

    None and modules other than :class:`ChannelShuffle` count as the identity.
    """
    numbers = torch.arange(channels, device="cpu")
    return shuffle(numbers[None, :, None, None]).flatten() if isinstance(shuffle, ChannelShuffle) else numbers


def inverse(order: Tensor) -> Tensor:
    """Return the inverse of a permutation."""
    return order.argsort()


def shifted(layer: nn.Linear, shift: Tensor) -> InferenceLinear:
    """Adjust the bias so that ``shifted(layer, shift)(x + shift)`` equals ``layer(x)``; ``shift`` is ``(in,)``."""
    return InferenceLinear(layer.weight, layer.bias - layer.weight @ shift)


def with_shift(norm: nn.LayerNorm, shift: Tensor | float = 0) -> InferenceNorm:
    """Add a shift ``(d,)`` to the output of a LayerNorm, through its bias. With 0, only convert the LayerNorm."""
    return InferenceNorm(norm.weight, norm.bias + shift, norm.eps)
