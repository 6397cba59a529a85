"""Constants folded into the weights before or after them: what training keeps apart, inference computes at once."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mobile_former.conv_norm import ChannelShuffle, ConvNorm


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """A convolution with its BatchNorm's statistics and weights folded into its own."""
    return fuse_conv_bn_eval(layer.conv.eval(), layer.norm.eval())


def fold_features_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    """A linear with the BatchNorm after it folded into its own weights."""
    return fuse_linear_bn_eval(layer.eval(), norm.eval())


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear with these weights, ``(out, in)`` and ``(out,)``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return layer


def merged(layers: list[nn.Linear]) -> nn.Linear:
    """Linears that read the same input as one, their outputs after one another."""
    return linear_of(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def scaled(layer: nn.Linear, factor: float) -> nn.Linear:
    """A linear with its output multiplied."""
    return linear_of(layer.weight * factor, layer.bias * factor)


def whole(conv: nn.Conv2d) -> Tensor:
    """The weights ``(out, in)`` of a pointwise convolution in groups, as one in a single group, zeros between groups.

    It multiplies more, and takes less time: small groups fill no processor's registers, and the shuffles between
    grouped convolutions, which move whole maps, become an order of rows and columns.
    """
    return torch.block_diag(*conv.weight[:, :, 0, 0].chunk(conv.groups))


def shuffle_order(shuffle: nn.Module | None, channels: int) -> Tensor:
    """For each channel that a shuffle gives, or what stands in its place, the number of the channel it came from."""
    numbers = torch.arange(channels, device="cpu")
    return shuffle(numbers[None, :, None, None]).flatten() if isinstance(shuffle, ChannelShuffle) else numbers


def inverse(order: Tensor) -> Tensor:
    """The order that undoes an order."""
    return order.argsort()


def shifted(layer: nn.Linear, shift: Tensor) -> nn.Linear:
    """A linear for an input that comes with a shift ``(in,)`` added, which its output is to be free of."""
    return linear_of(layer.weight, layer.bias - layer.weight @ shift)


def with_shift(norm: nn.LayerNorm, shift: Tensor) -> nn.LayerNorm:
    """A LayerNorm whose output has a shift ``(d,)`` added."""
    norm = copy.deepcopy(norm)  # the trained part may be in use elsewhere too
    norm.bias = nn.Parameter((norm.bias + shift).detach())
    return norm
