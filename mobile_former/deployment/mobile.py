"""Convolutional blocks for inference.

BatchNorm, channel shuffles and the constants of dynamic ReLU are folded into the weights.

:mod:`mobile_former.deployment.exported_graphs` has the forward passes of ONNX graphs.
"""

import math

import torch
from torch import Tensor, nn

from mobile_former.deployment.folding import fold_norm, inverse, merged, shuffle_order, whole, with_unit_range
from mobile_former.deployment.modules import InferenceConv, InferenceLinear, InferenceModule
from mobile_former.deployment.onnx_layout import FLAT_STRIDE, WHOLE_STRIDE
from mobile_former.layers.conv_norm import ConvNorm
from mobile_former.layers.dynamic_relu import DynamicReLU, guiding_tokens, is_large, larger_product
from mobile_former.layers.eager import is_eager
from mobile_former.layers.padding import zero_padding
from mobile_former.mobile import DownsamplingMobile, Lite, Mobile


class DeployedMobile(InferenceModule):
    """Inference form of :class:`mobile_former.mobile.Mobile`, with the same outputs and fewer operations.

    Args:
        mobile: trained module.
        stride: stride of the output relative to the image, see :class:`Pointwise`.
    """

    def __init__(self, mobile: Mobile, *, stride: float = math.inf):
        super().__init__()
        self.reduce = merged([mobile.expand_relu.reduce, mobile.depthwise_relu.reduce])
        self.expand = Pointwise(mobile.expand, out_shuffle=mobile.expand_shuffle, gain=2, stride=stride)
        self.expand_relu = SlopesReLU(mobile.expand_relu)
        self.depthwise = Depthwise(mobile.depthwise, gain=2)
        self.depthwise_relu = SlopesReLU(mobile.depthwise_relu)
        self.project = Pointwise(mobile.project, out_shuffle=mobile.project_shuffle, stride=stride)
        self.residual = mobile.residual

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Compute the output map. See :meth:`mobile_former.mobile.Mobile.forward`."""
        guide1, guide2 = self.reduce(guiding_tokens(tokens, mixing)).relu_().chunk(2, dim=-1)
        hidden = self.expand_relu(self.expand(x), guide1, mixing)
        hidden = self.depthwise_relu(self.depthwise(zero_padding(hidden, padding)), guide2, mixing)
        out = self.project(hidden)
        return out.add_(x) if self.residual else out


class DeployedDownsamplingMobile(InferenceModule):
    """Inference form of :class:`mobile_former.mobile.DownsamplingMobile`, with the same outputs and fewer operations.

    Args:
        mobile: trained module.
        stride: stride of the output relative to the image, see :class:`Pointwise`.
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
        self, x: Tensor, tokens: Tensor, mixing: Tensor | None, padding: Tensor | None, out_padding: Tensor | None
    ) -> Tensor:
        """Compute the output map. See :meth:`mobile_former.mobile.DownsamplingMobile.forward`."""
        guide1, guide2 = self.reduce(guiding_tokens(tokens, mixing)).relu_().chunk(2, dim=-1)
        x = self.project1(self.relu1(self.depthwise1(zero_padding(x, padding)), guide1, mixing))
        hidden = self.depthwise2(zero_padding(x, out_padding))
        return self.project2(self.relu2(hidden, guide2, mixing)).add_(x)


class DeployedLite(InferenceModule, Lite):
    """Inference form of :class:`mobile_former.mobile.Lite`, with the same outputs and fewer operations.

    Args:
        lite: trained block.
    """

    def __init__(self, lite: Lite):
        nn.Module.__init__(self)
        self.depthwise = Depthwise(lite.depthwise, lite.shuffle, relu6=True)
        # ONNX graphs use the columns of the whole weight: at this stride the layer keeps no grouped one.
        self.project = Pointwise(lite.project, in_order=self.depthwise.order, stride=WHOLE_STRIDE)
        self.residual = lite.residual

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the output map. See :meth:`mobile_former.mobile.Lite.forward`."""
        out = self.project(self.depthwise(zero_padding(x, padding)))
        return out.add_(x) if self.residual else out


class SlopesReLU(InferenceModule):
    """Inference form of :class:`mobile_former.layers.dynamic_relu.DynamicReLU`, without the first layer of its MLP.

    A block has two dynamic ReLUs. The first layers of both MLPs are merged into one linear layer of the block. Each
    dynamic ReLU receives its half of this layer's output as the argument ``guide`` of :meth:`forward`.

    The preceding convolution doubles its output, so that the input map is ``2x`` instead of ``x``. The slopes are then
    simpler: ``max(a₁·x, a₂·x) = max(θ₁·2x, (θ₂ − ½)·2x)``, with the notation of ``DynamicReLU``.

    Args:
        relu: trained dynamic ReLU.
        order: for each channel of the map, the index of this channel in the trained model; None if the order is the
            same.
    """

    def __init__(self, relu: DynamicReLU, order: Tensor | None = None):
        super().__init__()
        self.slopes = with_unit_range(relu.slopes)
        if order is not None:
            rows = torch.cat([order, order + len(order)])
            self.slopes = InferenceLinear(self.slopes.weight.t()[rows], self.slopes.bias[rows])
        # Subtracted from the second slopes. A tensor, because PyTorch converts a number at every call; in the shape of
        # one image's slopes, because ONNX Runtime is faster with operands of one shape.
        lowered_by = self.slopes.bias.new_tensor([[0.0, 0.5]])
        self.register_buffer("lowered_by", lowered_by.repeat_interleave(self.slopes.out_features // 2, 1))

    def forward(self, x: Tensor, guide: Tensor, mixing: Tensor | None) -> Tensor:
        """Apply the activation function. The input ``x`` may be overwritten.

        Args:
            x: feature map, ``(B, C, H, W)``. Its values are twice those in the trained model, because the preceding
                convolution doubles its output.
            guide: output of the first layer of the MLP that computes the slopes, after the ReLU. If ``mixing`` is None,
                it is the output for the first token, ``(B, r)``. Otherwise it is the output for all tokens,
                ``(B, M, r)``.
            mixing: weight of each token at each position, ``(B, M, H, W)``, for the spatially aware dynamic ReLU; None
                for the same slopes at all positions.

        Returns:
            The output map, ``(B, C, H, W)``.
        """
        slopes = self.slopes(guide).clamp_(0.0, 1.0) - self._buffers["lowered_by"]
        return larger_product(x, slopes, mixing, overwrite=True)


class Pointwise(InferenceConv):
    """Pointwise convolution for inference, with BatchNorm and channel shuffles folded into the weight.

    A grouped convolution becomes an ungrouped one, see :func:`mobile_former.deployment.folding.whole`. If ONNX graphs
    use the grouped convolution, the layer also stores the grouped weight.

    Args:
        layer: trained layer.
        in_order: for each input channel, the index of this channel in the trained model. If None, the order is derived
            from ``in_shuffle``.
        in_shuffle: channel shuffle before the layer in the trained model; None if there is none.
        out_shuffle: channel shuffle after the layer in the trained model; None if there is none.
        gain: factor by which the output is multiplied.
        stride: stride of the feature map relative to the image. It determines how ONNX graphs compute the layer, see
            :func:`mobile_former.deployment.exported_graphs.pointwise`. The default, infinity, selects the computation
            for maps with large strides and many channels.
        relu6: apply ReLU6 to the output.
    """

    def __init__(
        self,
        layer: ConvNorm,
        *,
        in_order: Tensor | None = None,
        in_shuffle: nn.Module | None = None,
        out_shuffle: nn.Module | None = None,
        gain: float = 1,
        stride: float = math.inf,
        relu6: bool = False,
    ):
        conv = fold_norm(layer)
        weight, bias = gain * conv.weight.detach(), gain * conv.bias.detach()
        ins = inverse(shuffle_order(in_shuffle, conv.in_channels)) if in_order is None else in_order
        outs = shuffle_order(out_shuffle, conv.out_channels)
        super().__init__(whole(weight, conv.groups)[outs][:, ins][:, :, None, None], bias[outs], relu6=relu6)
        self.flat = stride <= FLAT_STRIDE
        in_training_order = in_order is None or torch.equal(in_order, shuffle_order(None, conv.in_channels))
        self.trained_groups = conv.groups if in_training_order and stride > WHOLE_STRIDE else 1
        if self.trained_groups > 1:
            self.register_buffer("group_weight", weight)
            self.register_buffer("group_bias", bias)
            self.in_shuffle, self.out_shuffle = (shuffle or nn.Identity() for shuffle in (in_shuffle, out_shuffle))


class Depthwise(InferenceConv):
    """Depthwise 3×3 convolution for inference, with one or more output channels for each input channel.

    Args:
        layer: trained layer.
        shuffle: channel shuffle after the layer in the trained model; None if there is none. It is not applied to the
            output. Instead, :attr:`order` describes the order of the output channels.
        gain: factor by which the output is multiplied.
        relu6: apply ReLU6 to the output.

    Attributes:
        repeats: number of output channels for each input channel.
        order: for each output channel, the index of this channel in the trained model, after the shuffle.
    """

    def __init__(self, layer: ConvNorm, shuffle: nn.Module | None = None, *, gain: float = 1, relu6: bool = False):
        conv = fold_norm(layer)
        repeats = conv.out_channels // conv.in_channels
        # In training, the outputs of one channel are adjacent. Here the first outputs of all channels come first.
        rows = torch.arange(conv.out_channels, device="cpu").unflatten(0, (-1, repeats)).t().flatten()
        weight, bias = gain * conv.weight[rows], gain * conv.bias[rows]
        super().__init__(weight, bias, stride=conv.stride[0], padding=1, groups=conv.out_channels, relu6=relu6)
        self.repeats = repeats
        self.order = inverse(shuffle_order(shuffle, conv.out_channels))[rows]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map ``(B, C, H, W)``, with ``repeats`` output channels for each input channel.

        The output is ``(B, repeats·C, ⌈H/stride⌉, ⌈W/stride⌉)``.
        """
        if self.repeats == 1:
            return super().forward(x)
        # Depthwise kernels are fast only with one output for each input channel.
        if self.stride == (1, 1) or not (is_eager(x) and is_large(x)):
            return super().forward(torch.cat([x] * self.repeats, dim=1))
        # With stride 2, the outputs are smaller than the repeated input.
        parts = zip(*(self._parameters[name].chunk(self.repeats) for name in ("weight", "bias")), strict=True)
        outputs = [
            self._convolve(x, weight, bias, x.shape[1], part) for part, (weight, bias) in enumerate(parts, start=1)
        ]
        return torch.cat(outputs, dim=1)
