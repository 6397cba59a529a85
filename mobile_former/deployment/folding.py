"""Functions that fold BatchNorm, channel shuffles, constant factors and constant shifts into the weights of layers."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mobile_former.deployment.modules import InferenceLinear, InferenceNorm
from mobile_former.layers.conv_norm import ChannelShuffle, ConvNorm


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """Fold the BatchNorm of a layer into its convolution. Return the new convolution, which has a bias."""
    return fuse_conv_bn_eval(layer.conv.eval(), layer.norm.eval())


def fold_features_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    """Fold a BatchNorm into the weight and bias of the linear layer before it, and return the new linear layer."""
    return fuse_linear_bn_eval(layer.eval(), norm.eval())


def merged(layers: list[nn.Linear | InferenceLinear]) -> InferenceLinear:
    """Merge linear layers with the same input into one layer, whose output is the concatenation of their outputs."""
    return InferenceLinear(torch.cat([_weight(layer) for layer in layers]), torch.cat([layer.bias for layer in layers]))


def scaled(layer: nn.Linear, factor: float = 1) -> InferenceLinear:
    """Multiply the weight and the bias of a linear layer by ``factor``, and return the new layer.

    This multiplies the output of the layer by ``factor``.
    """
    return InferenceLinear(layer.weight * factor, layer.bias * factor)


def with_unit_range(layer: nn.Linear) -> InferenceLinear:
    """Fold the scale and shift of a hard sigmoid into the linear layer before it, and return the new layer.

    A hard sigmoid is ``(x / 6 + ½).clamp(0, 1)``. After the new layer, only the clamp is left to compute. Exported
    graphs then contain no hard-sigmoid operator. OpenCV 5 would compute such an operator wrongly: it mistakes each
    product of a hard sigmoid and another tensor for a hard swish, and ignores the other tensor.
    """
    return InferenceLinear(layer.weight / 6, layer.bias / 6 + 0.5)


def _weight(layer: nn.Linear | InferenceLinear) -> Tensor:
    """Return the weight ``(out, in)`` of a linear layer."""
    return layer.weight.t() if isinstance(layer, InferenceLinear) else layer.weight


def whole(weight: Tensor, groups: int) -> Tensor:
    """Convert the weight of a grouped pointwise convolution to the block-diagonal weight of an ungrouped one.

    The ungrouped convolution has more multiplications but is faster in PyTorch, because small groups do not fill the
    processor's vector registers. Channel shuffles before and after an ungrouped convolution can be folded into its
    weight, as permutations of the columns and rows.

    Args:
        weight: ``(out, in / groups, 1, 1)``.
        groups: number of groups.

    Returns:
        The weight of the ungrouped convolution, ``(out, in)``.
    """
    return torch.block_diag(*weight[:, :, 0, 0].chunk(groups))


def shuffle_order(shuffle: nn.Module | None, channels: int) -> Tensor:
    """Return the permutation of a channel shuffle: the index of the input channel for each output channel.

    The result is ``(channels,)``. If ``shuffle`` is not a :class:`ChannelShuffle`, the permutation is the identity.
    """
    numbers = torch.arange(channels, device="cpu")
    return shuffle(numbers[None, :, None, None]).flatten() if isinstance(shuffle, ChannelShuffle) else numbers


def inverse(order: Tensor) -> Tensor:
    """Return the inverse of a permutation. Both permutations are tensors of indices, ``(n,)``."""
    return order.argsort()


def shifted(layer: nn.Linear | InferenceLinear, shift: Tensor) -> InferenceLinear:
    """Adapt the bias of a linear layer to inputs with a constant shift, and return the new layer.

    ``shifted(layer, shift)(x + shift)`` equals ``layer(x)``. The shift is a vector ``(in,)``.
    """
    weight = _weight(layer)
    return InferenceLinear(weight, layer.bias - weight @ shift)


def with_shift(norm: nn.LayerNorm, shift: Tensor | float = 0) -> InferenceNorm:
    """Return a LayerNorm whose output is the output of ``norm`` plus the constant vector ``shift``, ``(d,)``.

    The shift is added to the bias. With a shift of 0, the LayerNorm is only converted to :class:`InferenceNorm`.
    """
    return InferenceNorm(norm.weight, norm.bias + shift, norm.eps)
