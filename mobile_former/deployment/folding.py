"""Constants folded into the weights before or after them: what training keeps apart, inference computes at once."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mobile_former.deployment.modules import InferenceLinear, InferenceNorm
from mobile_former.layers.conv_norm import ChannelShuffle, ConvNorm


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """A convolution with its BatchNorm's statistics and weights folded into its own."""
    return fuse_conv_bn_eval(layer.conv.eval(), layer.norm.eval())


def fold_features_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> InferenceLinear:
    """A linear with the BatchNorm after it folded into its own weights."""
    return scaled(fuse_linear_bn_eval(layer.eval(), norm.eval()))


def merged(layers: list[nn.Linear]) -> InferenceLinear:
    """Linears that read the same input as one, their outputs after one another."""
    return InferenceLinear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def scaled(layer: nn.Linear, factor: float = 1) -> InferenceLinear:
    """A linear with its output multiplied."""
    return InferenceLinear(layer.weight * factor, layer.bias * factor)


def whole(weight: Tensor, groups: int) -> Tensor:
    """Weights ``(out, in / groups, 1, 1)`` of a pointwise convolution in groups, as of a single one, ``(out, in)``.

    With its zeros between groups it multiplies more, and in PyTorch takes less time: small groups fill no processor's
    registers, and the shuffles between grouped convolutions, which move maps, become an order of rows and columns.
    """
    return torch.block_diag(*weight[:, :, 0, 0].chunk(groups))


def shuffle_order(shuffle: nn.Module | None, channels: int) -> Tensor:
    """For each channel that a shuffle gives, or what stands in its place, the number of the channel it came from."""
    numbers = torch.arange(channels, device="cpu")
    return shuffle(numbers[None, :, None, None]).flatten() if isinstance(shuffle, ChannelShuffle) else numbers


def inverse(order: Tensor) -> Tensor:
    """The order that undoes an order."""
    return order.argsort()


def shifted(layer: nn.Linear, shift: Tensor) -> InferenceLinear:
    """A linear for an input that comes with a shift ``(in,)`` added, which its output is to be free of."""
    return InferenceLinear(layer.weight, layer.bias - layer.weight @ shift)


def with_shift(norm: nn.LayerNorm, shift: Tensor | float = 0) -> InferenceNorm:
    """A LayerNorm whose output has a shift ``(d,)`` added."""
    return InferenceNorm(norm.weight, norm.bias + shift, norm.eps)
