"""Mobile, the convolutional part of a Mobile-Former block: a MobileNet block with dynamic ReLU instead of ReLU."""

import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.activated_conv import activated_conv, can_train_activated_conv
from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.conv_norm import ConvNorm, channel_shuffle, depthwise
from mobile_former.layers.dynamic_relu import DynamicReLU
from mobile_former.layers.padding import zero_padding
from mobile_former.layers.pointwise import convolve
from mobile_former.layers.stochastic_depth import StochasticDepth


class Mobile(nn.Module):
    """Inverted bottleneck with stride 1: pointwise expansion, 3×3 depthwise convolution, pointwise projection.

    The block has a residual connection if the numbers of input and output channels are equal. Its activation function
    is dynamic ReLU, whose slopes are computed from tokens.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        expansion: ratio of hidden channels to input channels.
        token_dim: dimension of the tokens.
        groups: groups of the pointwise convolutions.
        drop_path: stochastic depth rate of the residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        token_dim: int,
        *,
        groups: int = 1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNorm(in_channels, hidden, groups=groups)
        self.expand_shuffle = channel_shuffle(groups, enabled=groups > 1)
        self.expand_relu = DynamicReLU(hidden, token_dim)
        self.depthwise = depthwise(hidden, 1)
        self.depthwise_relu = DynamicReLU(hidden, token_dim)
        self.project = ConvNorm(hidden, out_channels, groups=groups)
        self.project_shuffle = channel_shuffle(groups, enabled=groups > 1)
        self.residual = in_channels == out_channels
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Compute the output map of the block.

        Args:
            x: input map, ``(B, in_channels, H, W)``.
            tokens: tokens from which the slopes of dynamic ReLU are computed, ``(B, M, d)``. If ``mixing`` is None, the
                first token ``(B, d)`` is enough.
            mixing: weight of each token at each position, ``(B, M, H, W)``, with which dynamic ReLU computes
                separate slopes for each position. If None, the slopes are the same at all positions.
            padding: ``(B, 1, H, W)`` bool, True on padding; None for no padding.

        Returns:
            The output map, ``(B, out_channels, H, W)``.
        """
        parts = (self.expand, self.expand_shuffle, self.expand_relu, self.depthwise, self.depthwise_relu, self.project)
        if can_train_activated_conv(x, *parts):  # the same computation, which stores fewer maps
            hidden = convolve(self.expand.conv, x)
            hidden = activated_conv(
                hidden, self.expand.norm, self.expand_relu, self.depthwise.conv, tokens, mixing, padding
            )
            hidden = activated_conv(hidden, self.depthwise.norm, self.depthwise_relu, self.project.conv, tokens, mixing)
            out = self.project_shuffle(self.project.norm(hidden))
        else:
            hidden = self.expand_relu(self.expand_shuffle(self.expand(x)), tokens, mixing)
            hidden = self.depthwise_relu(self.depthwise(zero_padding(hidden, padding)), tokens, mixing)
            out = self.project_shuffle(self.project(hidden))
        return x + self.drop_path(out) if self.residual else out


class DownsamplingMobile(nn.Module):
    """Block of two depthwise-separable convolutions that halves the height and width of a feature map.

    The first convolution has stride 2. The second one has a residual connection. The activation function is dynamic
    ReLU, whose slopes are computed from tokens.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        expansions: tuple of the ratios of hidden channels to input channels in the first and the second convolution.
        token_dim: dimension of the tokens.
        groups: groups of the pointwise convolutions.
        drop_path: stochastic depth rate of the residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansions: tuple[int, int],
        token_dim: int,
        *,
        groups: int = 1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        hidden1, hidden2 = in_channels * expansions[0], out_channels * expansions[1]
        self.depthwise1 = depthwise(in_channels, expansions[0], stride=2)
        self.shuffle1 = channel_shuffle(in_channels, enabled=groups > 1)
        self.relu1 = DynamicReLU(hidden1, token_dim)
        self.project1 = ConvNorm(hidden1, out_channels, groups=groups)
        self.depthwise2 = depthwise(out_channels, expansions[1])
        self.shuffle2 = channel_shuffle(out_channels, enabled=groups > 1)
        self.relu2 = DynamicReLU(hidden2, token_dim)
        self.project2 = ConvNorm(hidden2, out_channels, groups=groups)
        self.drop_path = StochasticDepth(drop_path)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        mixing: Tensor | None = None,
        padding: Tensor | None = None,
        out_padding: Tensor | None = None,
    ) -> Tensor:
        """Compute the output map of the block.

        Args:
            x: input map, ``(B, in_channels, H, W)``.
            tokens: tokens from which the slopes of dynamic ReLU are computed, ``(B, M, d)``. If ``mixing`` is None, the
                first token ``(B, d)`` is enough.
            mixing: weight of each token at each output position, ``(B, M, ⌈H/2⌉, ⌈W/2⌉)``, with which dynamic ReLU
                computes separate slopes for each position. If None, the slopes are the same at all positions.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding; None for no padding.
            out_padding: ``(B, 1, ⌈H/2⌉, ⌈W/2⌉)`` bool, True where the output map is padding; None for no padding.

        Returns:
            The output map, ``(B, out_channels, ⌈H/2⌉, ⌈W/2⌉)``.
        """
        x = self._separable(x, self.depthwise1, self.shuffle1, self.relu1, self.project1, tokens, mixing, padding)
        out = self._separable(x, self.depthwise2, self.shuffle2, self.relu2, self.project2, tokens, mixing, out_padding)
        return x + self.drop_path(out)

    @staticmethod
    def _separable(
        x: Tensor,
        depthwise: nn.Module,
        shuffle: nn.Module,
        relu: nn.Module,
        project: nn.Module,
        tokens: Tensor,
        mixing: Tensor | None,
        padding: Tensor | None,
    ) -> Tensor:
        """Compute a depthwise-separable convolution: apply the given modules in the order of the arguments.

        ``relu`` is a dynamic ReLU and also takes ``tokens`` and ``mixing``. Positions where ``padding`` is True are set
        to zero first.
        """
        x = zero_padding(x, padding)
        if can_train_activated_conv(x, depthwise, shuffle, relu, project):  # the same, with fewer stored maps
            hidden = depthwise.conv(x)
            return project.norm(activated_conv(hidden, depthwise.norm, relu, project.conv, tokens, mixing))
        return project(relu(shuffle(depthwise(x)), tokens, mixing))


class Lite(nn.Module):
    """MobileNet block without tokens: 3×3 depthwise convolution, ReLU6, pointwise projection.

    It is the first block of a Mobile-Former. The block has a residual connection if the stride is 1 and the numbers of
    input and output channels are equal.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        expansion: ratio of hidden channels to input channels.
        stride: stride of the depthwise convolution, 1 or 2.
        groups: groups of the pointwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, *, groups: int = 1):
        super().__init__()
        self.depthwise = depthwise(in_channels, expansion, stride)
        self.shuffle = channel_shuffle(in_channels, enabled=groups > 1)
        self.project = ConvNorm(in_channels * expansion, out_channels, groups=groups)
        self.residual = stride == 1 and in_channels == out_channels

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the output map of the block.

        Args:
            x: input map, ``(B, in_channels, H, W)``.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding; None for no padding.

        Returns:
            The output map, ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``.
        """
        hidden = self.shuffle(F.relu6(self.depthwise(zero_padding(x, padding))))
        out = self.project(hidden)
        return x + out if self.residual else out
