"""The Mobile side of a block for inference: BatchNorm and shuffles folded away, dynamic ReLU's constants too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.deployment.convolution import InferenceConv, needs_gradients
from mobile_former.deployment.folding import fold_norm, inverse, merged, shuffle_order, whole
from mobile_former.deployment.modules import InferenceLinear, InferenceModule
from mobile_former.deployment.onnx_layout import filled, makes_onnx, with_zeros
from mobile_former.layers.conv_norm import ConvNorm
from mobile_former.layers.dynamic_relu import DynamicReLU, guiding_tokens
from mobile_former.layers.padding import zero_padding
from mobile_former.mobile import DownsamplingMobile, Lite, Mobile

# Of ONNX graphs: the coarsest maps whose pointwise convolutions
_FLAT_STRIDE = 8  # have the positions in one dimension
_WHOLE_STRIDE = 4  # have no groups


class DeployedMobile(InferenceModule):
    """:class:`mobile_former.mobile.Mobile` for inference.

    Args:
        mobile: the trained part.
        stride: see :class:`Pointwise`.
    """

    def __init__(self, mobile: Mobile, *, stride: int | None = None):
        super().__init__()
        self.reduce = merged([mobile.expand_relu.reduce, mobile.depthwise_relu.reduce])
        self.expand = Pointwise(mobile.expand, out_shuffle=mobile.expand_shuffle, gain=2, stride=stride)
        self.expand_relu = SlopesReLU(mobile.expand_relu)
        self.depthwise = Depthwise(mobile.depthwise, gain=2)
        self.depthwise_relu = SlopesReLU(mobile.depthwise_relu)
        self.project = Pointwise(mobile.project, out_shuffle=mobile.project_shuffle, stride=stride)
        self.residual = mobile.residual

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """As the trained part."""
        guide1, guide2 = self.reduce(guiding_tokens(tokens, mixing)).relu_().chunk(2, dim=-1)
        hidden = self.expand_relu(self.expand(x), guide1, mixing)
        hidden = self.depthwise_relu(self.depthwise(zero_padding(hidden, padding)), guide2, mixing)
        out = self.project(hidden)
        return out.add_(x) if self.residual else out


class DeployedDownsamplingMobile(InferenceModule):
    """:class:`mobile_former.mobile.DownsamplingMobile` for inference.

    Args:
        mobile: the trained part.
        stride: see :class:`Pointwise`.
    """

    def __init__(self, mobile: DownsamplingMobile, *, stride: int):
        super().__init__()
        self.reduce = merged([mobile.relu1.reduce, mobile.relu2.reduce])
        self.depthwise1 = Depthwise(mobile.depthwise1, mobile.shuffle1, gain=2)
        self.relu1 = SlopesReLU(mobile.relu1, self.depthwise1.order)
        self.project1 = Pointwise(mobile.project1, in_order=self.depthwise1.order, stride=stride)
        self.depthwise2 = Depthwise(mobile.depthwise2, mobile.shuffle2, gain=2)
        self.relu2 = SlopesReLU(mobile.relu2, self.depthwise2.order)
        self.project2 = Pointwise(mobile.project2, in_order=self.depthwise2.order, stride=stride)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        mixing: Tensor | None = None,
        padding: Tensor | None = None,
        out_padding: Tensor | None = None,
    ) -> Tensor:
        """As the trained part."""
        guide1, guide2 = self.reduce(guiding_tokens(tokens, mixing)).relu_().chunk(2, dim=-1)
        x = self.project1(self.relu1(self.depthwise1(zero_padding(x, padding)), guide1, mixing))
        hidden = self.depthwise2(zero_padding(x, out_padding))
        return self.project2(self.relu2(hidden, guide2, mixing)).add_(x)


class DeployedLite(InferenceModule):
    """:class:`mobile_former.mobile.Lite` for inference.

    Args:
        lite: the trained part.
    """

    def __init__(self, lite: Lite):
        super().__init__()
        self.depthwise = Depthwise(lite.depthwise, lite.shuffle, relu6=True)
        # Whole at any stride: forward splits its columns by the parts of the map that it reads.
        self.project = Pointwise(lite.project, in_order=self.depthwise.order, stride=_WHOLE_STRIDE)
        self.residual = lite.residual

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """As the trained part; in an ONNX graph of a filled map too, see :func:`filled`: with a residual to one."""
        hidden = zero_padding(x, padding)
        if makes_onnx():
            # With the product in parts, maps that fill blocks need not be joined, which would change their layout. The
            # runtime's convolutions add what a sum has had before, the map itself first.
            width = x.shape[1]
            out, weight, bias = None, self.project.weight, self.project.bias
            if self.residual:
                out, weight, bias = x, filled(weight, width), filled(bias, width)
            for part, columns in zip(self.depthwise.parts(hidden), self.depthwise.split(weight, width, 1), strict=True):
                product = F.conv2d(part, columns, bias)
                out, bias = product if out is None else out + product, None
            return out
        out = self.project(self.depthwise(hidden))
        return out.add_(x) if self.residual else out


class SlopesReLU(InferenceModule):
    """Dynamic ReLU of a map that comes doubled, which saves the constants: ``max(θ₁·2x, (θ₂ − ½)·2x)``.

    Args:
        relu: the trained part.
        order: of the map's channels, where it is another than in training.
    """

    def __init__(self, relu: DynamicReLU, order: Tensor | None = None):
        super().__init__()
        weight, bias = relu.slopes.weight, relu.slopes.bias
        if order is not None:
            rows = torch.cat([order, order + len(order)])
            weight, bias = weight[rows], bias[rows]
        self.slopes = InferenceLinear(weight, bias)
        # PyTorch makes a tensor of a number at every call; ONNX Runtime is faster with tensors of one shape.
        self.register_buffer("lowered_by", weight.new_full((len(weight) // 2, 1, 1), 0.5))

    def forward(self, x: Tensor, guide: Tensor, mixing: Tensor | None) -> Tensor:
        """Activate ``(B, C, H, W)``, twice the map, by the reduced guide ``(B, r)``; with ``mixing`` ``(B, M, r)``."""
        theta = F.hardsigmoid(self.slopes(guide))
        if mixing is None:
            theta1, theta2 = theta.reshape(-1, theta.shape[1], 1, 1).chunk(2, dim=1)
        else:
            theta = theta.transpose(1, 2) @ mixing.flatten(2)
            theta1, theta2 = theta.unflatten(2, mixing.shape[2:]).chunk(2, dim=1)
        slope2 = theta2 - self._buffers["lowered_by"]
        if torch.compiler.is_compiling() or needs_gradients(x, theta):
            return torch.maximum(theta1 * x, slope2 * x)
        # The map is this block's own; another one would take longer to allocate than to compute.
        first = theta1 * x
        return torch.maximum(first, x.mul_(slope2), out=first)


class Pointwise(InferenceConv):
    """A pointwise convolution, with its BatchNorm and the shuffles before and after folded into it.

    Of one in groups, PyTorch and ExecuTorch compute the whole, see
    :func:`mobile_former.deployment.folding.whole`. An ONNX graph has the groups, and the shuffles between them: for its runtime that is less work than the zeros between groups, but
    for the finest maps, which have few channels, and are much to shuffle.

    Args:
        layer: the trained part.
        in_order: for each channel of the map that comes, its number in the trained part's input.
        in_shuffle: what comes before it in training, in place of an order.
        out_shuffle: what comes after it.
        gain: what to multiply the output by.
        stride: of the map in the image. ONNX graphs have the positions of fine maps, of few channels, in one dimension:
            for images, the runtime takes another layout, to which the operations around this one would have to change,
            at a higher cost than gain. None: of many channels.
        relu6: whether ReLU6 follows.
    """

    def __init__(
        self,
        layer: ConvNorm,
        *,
        in_order: Tensor | None = None,
        in_shuffle: nn.Module | None = None,
        out_shuffle: nn.Module | None = None,
        gain: float = 1,
        stride: int | None = None,
        relu6: bool = False,
    ):
        conv = fold_norm(layer)
        weight, bias = gain * conv.weight.detach(), gain * conv.bias.detach()
        ins = inverse(shuffle_order(in_shuffle, conv.in_channels)) if in_order is None else in_order
        outs = shuffle_order(out_shuffle, conv.out_channels)
        super().__init__(whole(weight, conv.groups)[outs][:, ins][:, :, None, None], bias[outs], relu6=relu6)
        self.flat = stride is not None and stride <= _FLAT_STRIDE
        is_whole = stride is not None and stride <= _WHOLE_STRIDE
        in_training_order = in_order is None or torch.equal(in_order, shuffle_order(None, conv.in_channels))
        self.trained_groups = conv.groups if in_training_order and not is_whole else 1
        if self.trained_groups > 1:
            self.register_buffer("group_weight", weight)
            self.register_buffer("group_bias", bias)
            self.in_shuffle, self.out_shuffle = (shuffle or nn.Identity() for shuffle in (in_shuffle, out_shuffle))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H, W)``."""
        if not makes_onnx():
            return super().forward(x)
        if self.trained_groups > 1:
            x = self.in_shuffle(x)
            out = self.out_shuffle(F.conv2d(x, self.group_weight, self.group_bias, groups=self.trained_groups))
        elif self.flat:
            out = F.conv1d(x.flatten(2), self.weight[..., 0], self.bias).unflatten(2, x.shape[2:])
        else:
            out = F.conv2d(x, self.weight, self.bias)
        return F.relu6(out) if self.relu6 else out


class Depthwise(InferenceConv):
    """A 3×3 convolution of each channel by itself, or of each into several.

    Args:
        layer: the trained part.
        shuffle: the shuffle that follows in training, if any; here it is only an order, see :attr:`order`.
        gain: what to multiply the output by.
        relu6: whether ReLU6 follows.

    Attributes:
        order: for each channel that this gives, its number in training after the shuffle.
    """

    def __init__(self, layer: ConvNorm, shuffle: nn.Module | None = None, *, gain: float = 1, relu6: bool = False):
        conv = fold_norm(layer)
        repeats = conv.out_channels // conv.in_channels
        # In training, the outputs of a channel are side by side; here each comes after the first of all channels.
        rows = torch.arange(conv.out_channels, device="cpu").unflatten(0, (-1, repeats)).t().flatten()
        weight, bias = gain * conv.weight[rows], gain * conv.bias[rows]
        super().__init__(weight, bias, stride=conv.stride[0], padding=1, groups=conv.out_channels, relu6=relu6)
        self.repeats = repeats
        self.order = inverse(shuffle_order(shuffle, conv.out_channels))[rows]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, e·C, ⌈H/stride⌉, ⌈W/stride⌉)``; in an ONNX graph of a filled map too."""
        if self.repeats > 1:
            # There is fast code for one output a channel alone: in PyTorch for many channels, elsewhere for few too.
            if makes_onnx():
                return self._joined(self.parts(x))
            x = torch.cat([x] * self.repeats, dim=1)
        return super().forward(x)

    def parts(self, x: Tensor) -> list[Tensor]:
        """The same in parts as wide as the map, each ``(B, C, ⌈H/stride⌉, ⌈W/stride⌉)``.

        Of a filled map, each part has one output of every copy of a channel, and is filled with zeros.
        """
        width, parts = x.shape[1], []
        for weight, bias in zip(self.split(self.weight, width), self.split(self.bias, width), strict=True):
            part = F.conv2d(x, weight, bias, self.stride, self.padding, groups=width)
            parts.append(F.relu6(part) if self.relu6 else part)
        return parts

    def split(self, tensor: Tensor, width: int, dim: int = 0) -> list[Tensor]:
        """What belongs to the outputs of this layer, along an axis, in parts of ``width`` as those of :meth:`parts`."""
        channels = len(self.bias) // self.repeats
        return [with_zeros(part, dim, width) for part in tensor.split(width // channels * channels, dim)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        width, channels = parts[0].shape[1], len(self.bias) // self.repeats
        joined = torch.cat(parts, dim=1)
        if width % channels:  # zeros in every part
            joined = joined.unflatten(1, (-1, width))[:, :, : width // channels * channels].flatten(1, 2)
        return joined[:, : len(self.bias)]
