"""Forward passes of the inference form in exported graphs.

In all exported graphs, the attention of the bridge is computed per head. Other runtimes are faster with two small
matrix products, one per head, than with the one large product that eager PyTorch runs. Functions registered with
``onnx_only`` choose layouts that are fast in ONNX Runtime. The maps at the beginning of an ONNX graph may be
channel-padded, see :mod:`mobile_former.deployment.onnx_layout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mobile_former.bridge import mask_logits, split_channels
from mobile_former.deployment.backbone import DeployedToFormer, DeployedToMobile, RowLinear, Start, TokenReads, gather
from mobile_former.deployment.mobile import DeployedLite, Depthwise, Pointwise
from mobile_former.deployment.modules import exported_forward
from mobile_former.deployment.onnx_layout import pad_with_copies, pad_with_zeros
from mobile_former.layers.padding import zero_padding


@exported_forward(Start)
def start(self: Start, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the stem's output, and the tuple of tokens, query and gate.

    Query and gate are split by head, ``(B, heads, M, C / heads)``.
    """
    return self.stem(images), self.batched(self.reads_by_head, images.shape[0])


@exported_forward(Start, onnx_only=True)
def padded_start(self: Start, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the stem's output, and the tuple of tokens, query and gate.

    The stem's output may be channel-padded. Query and gate are split by head, except if the first bridge reads a
    channel-padded map.
    """
    if not self.pads_stem:
        return start(self, images)
    weight, bias = pad_with_copies(self.stem.weight), pad_with_copies(self.stem.bias)
    x = F.relu6(F.conv2d(images, weight, bias, self.stem.stride, self.stem.padding))
    return x, self.batched(self.reads if self.pads_bridge else self.reads_by_head, images.shape[0])


exported_forward(TokenReads)(TokenReads.by_head)  # split by head, as to_former and to_mobile expect


@exported_forward(DeployedToFormer)
def to_former(
    self: DeployedToFormer, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Update the tokens from the map, with ``query`` and ``gate`` ``(B, heads, M, C / heads)``."""
    positions = split_channels(x)
    logits = query @ positions  # (B, heads, M, H·W)
    visible = logits if padding is None else mask_logits(logits, padding.flatten(2)[:, None])
    gathered = (visible.softmax(3) @ positions.transpose(2, 3)) * F.hardsigmoid(gate)
    gathered = gathered.transpose(1, 2).reshape(-1, x.shape[1])  # (B·M, C)
    return self.norm(torch.addmm(tokens, gathered, self.weight)), logits.flatten(1, 2)


@exported_forward(DeployedToFormer, onnx_only=True)
def padded_to_former(
    self: DeployedToFormer, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Update the tokens from the map.

    If ``query`` and ``gate`` are ``(B, heads·M, C)``, not split by head, then the map is channel-padded.
    """
    if query.ndim == 4:
        return to_former(self, x, tokens, query, gate, padding)
    query, gate = (pad_with_zeros(reads, 2, x.shape[1]) for reads in (query, gate))
    weight = pad_with_zeros(self.weight, 0, x.shape[1])
    gathered, logits = gather(x, query, gate, padding)
    return self.norm(torch.addmm(tokens, gathered, weight)), logits


@exported_forward(DeployedToMobile)
def to_mobile(self: DeployedToMobile, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Update the map from ``key`` and ``value`` ``(B, heads, M, C / heads)``."""
    weights = (key @ split_channels(x)).softmax(2)
    return x + (value.transpose(2, 3) @ weights).reshape(x.shape)


@exported_forward(RowLinear, onnx_only=True)
def row_linear(self: RowLinear, x: Tensor) -> Tensor:
    """Run the linear layer as a convolution over a map of one position.

    The classifier's weights do not fit into a processor's caches. ONNX Runtime reads the weight of a convolution in
    four streams. It reads the weight of a matrix product in two streams, and this takes a quarter longer.
    """
    return F.conv2d(x[..., None, None], self.weight[..., None, None], self.bias).flatten(1)


@exported_forward(DeployedLite, onnx_only=True)
def lite(self: DeployedLite, x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Run a Lite block.

    The output is channel-padded if the input map is channel-padded and the block has a residual connection.
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
    """Run a pointwise convolution in the layout that is fastest in ONNX Runtime.

    A grouped convolution keeps the groups and shuffles of training, because multiplying the zeros between the groups
    takes longer. Exception: on the finest maps the convolution is ungrouped. These maps have few channels, and with few
    channels the shuffles are expensive.

    Ungrouped convolutions are one-dimensional on a fine map. A two-dimensional convolution would convert the layout of
    the map, and on fine maps the conversion takes longer than the convolution gains.
    """
    if self.trained_groups > 1:
        out = F.conv2d(self.in_shuffle(x), self.group_weight, self.group_bias, groups=self.trained_groups)
        out = self.out_shuffle(out)
    elif self.flat:
        out = F.conv1d(x.flatten(2), self.weight[..., 0], self.bias).unflatten(2, x.shape[2:])
    else:
        out = F.conv2d(x, self.weight, self.bias)
    return F.relu6(out) if self.relu6 else out


@exported_forward(Depthwise, onnx_only=True)
def depthwise(self: Depthwise, x: Tensor) -> Tensor:
    """Run a depthwise convolution. The output is not channel-padded, even if the input map is."""
    if self.repeats == 1:
        return self.forward(x)
    joined = torch.cat(_depthwise_parts(self, x), dim=1)
    size = _part_size(self, x.shape[1])
    if size < x.shape[1]:  # every part ends with zeros
        joined = joined.unflatten(1, (-1, x.shape[1]))[:, :, :size].flatten(1, 2)
    return joined[:, : len(self.bias)]


def _depthwise_parts(layer: Depthwise, x: Tensor) -> list[Tensor]:
    """Run a depthwise convolution in parts.

    Each part has one output channel for each channel of ``x``. The map ``x`` may be channel-padded.

    Returns:
        Parts ``(B, C, ⌈H/stride⌉, ⌈W/stride⌉)``. Together they contain all output channels in order. The remaining
        channels at the end of each part are zero.
    """
    width, parts = x.shape[1], []
    for weight, bias in zip(_split(layer, layer.weight, width), _split(layer, layer.bias, width), strict=True):
        part = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=width)
        parts.append(F.relu6(part) if layer.relu6 else part)
    return parts


def _split(layer: Depthwise, tensor: Tensor, width: int, dim: int = 0) -> list[Tensor]:
    """Split a weight or bias into one piece per part, along the axis ``dim`` of the layer's output channels.

    Zeros are appended to each piece up to ``width``.
    """
    return [pad_with_zeros(part, dim, width) for part in tensor.split(_part_size(layer, width), dim)]


def _part_size(layer: Depthwise, width: int) -> int:
    """Return the number of channels in a part: the largest multiple of the layer's input channels up to ``width``."""
    channels = len(layer.bias) // layer.repeats
    return width // channels * channels
