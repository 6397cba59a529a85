"""Forward passes of converted models for exported graphs (``torch.export``, ``torch.jit.trace`` and ONNX).

In such graphs, they replace the ``forward`` methods of the modules that
:func:`mobile_former.deployment.deploy.deploy` creates.

The attention of a bridge has two heads. Eager PyTorch is faster with one large matrix product for both heads, but other
runtimes are faster with two small ones. Exported graphs therefore compute the heads separately. Functions that are
registered with ``onnx_only`` use memory layouts that are fast in ONNX Runtime. At the beginning of an ONNX graph,
feature maps may be padded to 16 channels, see :mod:`mobile_former.deployment.onnx_layout`.

The tokens are ``(B·M, d)`` in ONNX graphs and ``(B, M, d)`` in the others, because ncnn does not support operations
that join the batch with another axis.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mobile_former.bridge import mask_logits, split_channels
from mobile_former.deployment.backbone import DeployedToFormer, DeployedToMobile, RowLinear, Start, TokenReads, gather
from mobile_former.deployment.mobile import DeployedLite, Depthwise, Pointwise
from mobile_former.deployment.modules import add_product, exported_forward
from mobile_former.deployment.onnx_layout import pad_with_copies, pad_with_zeros
from mobile_former.layers.padding import zero_padding


@exported_forward(Start)
def start(self: Start, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute the inputs of the first block from images ``(B, in_chans, H, W)``.

    Returns:
        The stem's output, and the tuple ``(tokens, query, gate)``. The tuple contains the initial tokens ``(B, M, d)``,
        and the query and gate of the first Mobile→Former bridge, each ``(B, heads, M, C / heads)``.
    """
    return self.stem(images), self.batched(self.reads_by_head, images.shape[0])


@exported_forward(Start, onnx_only=True)
def padded_start(self: Start, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute the inputs of the first block from images ``(B, in_chans, H, W)``. Replaces Start.forward in ONNX graphs.

    Returns:
        The stem's output, and the tuple ``(tokens, query, gate)``. The tuple contains the initial tokens ``(B·M, d)``,
        and the query and gate of the first Mobile→Former bridge. Two attributes of :class:`Start` determine the shapes:
        the stem's output has 16 channels if ``pads_stem`` is True, and the query and gate are ``(B, heads·M, C)`` if
        ``pads_bridge`` is True, otherwise ``(B, heads, M, C / heads)``.
    """
    if self.pads_stem:
        weight, bias = pad_with_copies(self.stem.weight), pad_with_copies(self.stem.bias)
        x = F.hardtanh(F.conv2d(images, weight, bias, self.stem.stride, self.stem.padding), 0.0, 6.0)
    else:
        x = self.stem(images)
    tokens, *reads = self.batched(self.reads if self.pads_bridge else self.reads_by_head, images.shape[0])
    return x, (tokens.flatten(0, 1), *reads)


exported_forward(TokenReads)(TokenReads.by_head)  # split by head, as to_former and to_mobile expect


@exported_forward(DeployedToFormer)
def to_former(
    self: DeployedToFormer, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Update the tokens by cross-attention to the feature map.

    The arguments are those of :meth:`DeployedToFormer.forward`, except that ``query`` and ``gate`` are split by head,
    ``(B, heads, M, C / heads)``, and that the tokens may be ``(B, M, d)``.

    Returns:
        The updated tokens, with the shape of ``tokens``, and the attention logits ``(B, heads·M, H·W)`` before softmax
        and mask.
    """
    positions = split_channels(x)
    logits = query @ positions  # (B, heads, M, H·W)
    visible = logits if padding is None else mask_logits(logits, padding.flatten(2)[:, None])
    gathered = (visible.softmax(3) @ positions.transpose(2, 3)) * gate.clamp(0.0, 1.0)
    gathered = gathered.transpose(1, 2).flatten(2)  # (B, M, C)
    gathered = gathered.flatten(0, 1) if tokens.ndim == 2 else gathered
    return self.norm(add_product(tokens, gathered, self.weight)), logits.flatten(1, 2)


@exported_forward(DeployedToFormer, onnx_only=True)
def padded_to_former(
    self: DeployedToFormer, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In ONNX graphs, update the tokens by cross-attention to the feature map.

    The arguments are those of :meth:`DeployedToFormer.forward`, with one exception: if the feature map is not padded to
    16 channels, ``query`` and ``gate`` are split by head, ``(B, heads, M, C / heads)``. If it is padded, they are
    ``(B, heads·M, C)``, where ``C`` is the number of channels before padding.

    Returns:
        The updated tokens ``(B·M, d)``, and the attention logits ``(B, heads·M, H·W)`` before softmax and mask.
    """
    if query.ndim == 4:
        return to_former(self, x, tokens, query, gate, padding)
    query, gate = (pad_with_zeros(reads, 2, x.shape[1]) for reads in (query, gate))
    weight = pad_with_zeros(self.weight, 0, x.shape[1])
    gathered, logits = gather(x, query, gate, padding)
    return self.norm(torch.addmm(tokens, gathered, weight)), logits


@exported_forward(DeployedToMobile)
def to_mobile(self: DeployedToMobile, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Update the feature map by cross-attention to ``key`` and ``value``, each ``(B, heads, M, C / heads)``."""
    weights = (key @ split_channels(x)).softmax(2)
    return x + (value.transpose(2, 3) @ weights).reshape(x.shape)


@exported_forward(RowLinear, onnx_only=True)
def row_linear(self: RowLinear, x: Tensor) -> Tensor:
    """Compute a linear layer of the classifier as a 1×1 convolution, because ONNX Runtime computes this faster.

    The input ``(B, in)`` is treated as a feature map ``(B, in, 1, 1)``. The classifier's weights do not fit into a
    processor's caches. The time therefore depends on how the weights are read from memory. ONNX Runtime reads the
    weight of a convolution in four parallel streams. It reads the weight of a matrix product in two streams, which
    takes a quarter longer.
    """
    return F.conv2d(x[..., None, None], self.weight.t()[..., None, None], self.bias).flatten(1)


@exported_forward(DeployedLite, onnx_only=True)
def lite(self: DeployedLite, x: Tensor, padding: Tensor | None = None) -> Tensor:
    """In ONNX graphs, compute a Lite block (depthwise and pointwise convolution).

    The output is padded to 16 channels if the input map is padded and the block has a residual connection.
    """
    # The projection is a sum over the parts of the hidden map, because a concatenation would convert the parts' layout.
    # The sum begins with the residual: ONNX Runtime fuses each addition into the convolution of its second operand.
    width = x.shape[1]
    parts = _depthwise_parts(self.depthwise, zero_padding(x, padding))
    out, weight, bias = None, self.project.weight, self.project.bias
    if self.residual:
        out, weight, bias = x, pad_with_copies(weight, width), pad_with_copies(bias, width)
    for part, columns in zip(parts, _split(self.depthwise, weight, width, dim=1), strict=True):
        product = F.conv2d(part, columns, bias)
        out, bias = product if out is None else out + product, None
    return out


@exported_forward(Pointwise, onnx_only=True)
def pointwise(self: Pointwise, x: Tensor) -> Tensor:
    """In ONNX graphs, compute a pointwise convolution in the way that is fastest in ONNX Runtime.

    The strides below are those of the feature map relative to the image.

    - A convolution that is grouped in the trained model stays grouped, and channel shuffles are computed separately. An
      ungrouped convolution would take longer, because it also multiplies the zeros of its block-diagonal weight.
    - There are two exceptions. At strides of 4 or less, a grouped convolution becomes ungrouped, because feature maps
      have few channels there and shuffles of few channels are slow. It also becomes ungrouped if its input channels are
      in another order than in the trained model.
    - At strides of 8 or less, an ungrouped convolution is one-dimensional. A two-dimensional convolution is faster, but
      ONNX Runtime also converts the memory layout of its input and output. For large maps, this conversion takes more
      time than the faster convolution saves.
    """
    if self.trained_groups > 1:
        out = F.conv2d(self.in_shuffle(x), self.group_weight, self.group_bias, groups=self.trained_groups)
        out = self.out_shuffle(out)
    elif self.flat:
        out = F.conv1d(x.flatten(2), self.weight[..., 0], self.bias).unflatten(2, x.shape[2:])
    else:
        out = F.conv2d(x, self.weight, self.bias)
    return F.hardtanh(out, 0.0, 6.0) if self.relu6 else out


@exported_forward(Depthwise, onnx_only=True)
def depthwise(self: Depthwise, x: Tensor) -> Tensor:
    """In ONNX graphs, compute a depthwise convolution.

    The channels of the input map may be padded to 16. The output map has no padded channels.
    """
    if self.repeats == 1:
        return self.forward(x)
    joined = torch.cat(_depthwise_parts(self, x), dim=1)
    size = _part_size(self, x.shape[1])
    if size < x.shape[1]:  # every part ends with zeros
        joined = joined.unflatten(1, (-1, x.shape[1]))[:, :, :size].flatten(1, 2)
    return joined[:, : len(self.bias)]


def _depthwise_parts(layer: Depthwise, x: Tensor) -> list[Tensor]:
    """Apply a depthwise layer as several convolutions, each with one output channel for each input channel.

    Args:
        layer: the depthwise layer. It can have several output channels for each input channel.
        x: input map, ``(B, C, H, W)``. Its channels may be padded to 16.

    Returns:
        List of the convolutions' outputs, each ``(B, C, ⌈H/stride⌉, ⌈W/stride⌉)``. Together they contain all output
        channels of the layer in order. Zero channels are appended to each output until it has ``C`` channels.
    """
    width, parts = x.shape[1], []
    for weight, bias in zip(_split(layer, layer.weight, width), _split(layer, layer.bias, width), strict=True):
        part = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=width)
        parts.append(F.hardtanh(part, 0.0, 6.0) if layer.relu6 else part)
    return parts


def _split(layer: Depthwise, tensor: Tensor, width: int, dim: int = 0) -> list[Tensor]:
    """Split a weight or bias into one tensor for each convolution of :func:`_depthwise_parts`.

    Args:
        layer: the depthwise layer.
        tensor: weight or bias of this layer, or weight of the next layer.
        width: number of channels of each returned tensor. Zeros are appended to reach this number.
        dim: axis of ``tensor`` that corresponds to the output channels of the depthwise layer.

    Returns:
        List with one tensor for each convolution.
    """
    return [pad_with_zeros(part, dim, width) for part in tensor.split(_part_size(layer, width), dim)]


def _part_size(layer: Depthwise, width: int) -> int:
    """Return how many output channels of a depthwise layer each convolution of :func:`_depthwise_parts` computes.

    The number is the largest multiple of the layer's number of input channels that does not exceed ``width``.

    Args:
        layer: the depthwise layer.
        width: number of channels of the input map, including channels that pad it to 16.
    """
    channels = len(layer.bias) // layer.repeats
    return width // channels * channels
