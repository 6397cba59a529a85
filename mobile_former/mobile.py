"""Mobile: the MobileNet side of a block, with dynamic ReLU in place of ReLU."""

import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.checkpointing import recomputable
from mobile_former.layers.conv_norm import ConvNorm, channel_shuffle, depthwise
from mobile_former.layers.dynamic_relu import DynamicReLU
from mobile_former.layers.padding import zero_padding
from mobile_former.layers.stochastic_depth import StochasticDepth


class Mobile(nn.Module):
    """An inverted bottleneck that keeps the map's size: expand, depthwise 3×3, project.

    Args:
        in_channels: of the input map.
        out_channels: of the output map; a residual connects the two where they are equal.
        expansion: hidden channels over input channels.
        token_dim: width of the tokens that steer dynamic ReLU.
        groups: of the pointwise convolutions.
        drop_path: rate of stochastic depth on the residual.
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
        """Transform a map.

        Args:
            x: ``(B, in_channels, H, W)``.
            tokens: ``(B, M, d)``; without ``mixing`` the first may come alone, ``(B, d)``.
            mixing: ``(B, M, H, W)`` for spatially aware dynamic ReLU, see :class:`DynamicReLU`.
            padding: ``(B, 1, H, W)`` bool, True on padding.

        Returns:
            ``(B, out_channels, H, W)``.
        """
        hidden = self.expand_relu(self.expand_shuffle(self.expand(x)), tokens, mixing)
        hidden = self.depthwise_relu(self.depthwise(zero_padding(hidden, padding)), tokens, mixing)
        out = self.project_shuffle(self.project(hidden))
        return x + self.drop_path(out) if self.residual else out


class DownsamplingMobile(nn.Module):
    """Two depthwise-separable convolutions, the first of which halves the map; a residual surrounds the second.

    Args:
        in_channels: of the input map.
        out_channels: of the output map.
        expansions: hidden channels over the input's channels, and over the output's.
        token_dim: width of the tokens that steer dynamic ReLU.
        groups: of the pointwise convolutions.
        drop_path: rate of stochastic depth on the residual.
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
        """Transform and halve a map.

        Args:
            x: ``(B, in_channels, H, W)``.
            tokens: ``(B, M, d)``; without ``mixing`` the first may come alone, ``(B, d)``.
            mixing: ``(B, M, ⌈H/2⌉, ⌈W/2⌉)`` for spatially aware dynamic ReLU, see :class:`DynamicReLU`.
            padding: ``(B, 1, H, W)`` bool, True where the input is padding.
            out_padding: ``(B, 1, ⌈H/2⌉, ⌈W/2⌉)`` bool, True where the output is padding.

        Returns:
            ``(B, out_channels, ⌈H/2⌉, ⌈W/2⌉)``.
        """
        hidden = self.shuffle1(self.depthwise1(zero_padding(x, padding)))
        x = self.project1(self.relu1(hidden, tokens, mixing))
        hidden = self.shuffle2(self.depthwise2(zero_padding(x, out_padding)))
        return x + self.drop_path(self.project2(self.relu2(hidden, tokens, mixing)))


class Lite(nn.Module):
    """The block before the first tokens are used: depthwise 3×3, ReLU6, project.

    Args:
        in_channels: of the input map.
        out_channels: of the output map; a residual connects the two where they and the sizes are equal.
        expansion: hidden channels over input channels.
        stride: 1, or 2 to halve the map.
        groups: of the pointwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, *, groups: int = 1):
        super().__init__()
        self.depthwise = depthwise(in_channels, expansion, stride)
        self.shuffle = channel_shuffle(in_channels, enabled=groups > 1)
        self.project = ConvNorm(in_channels * expansion, out_channels, groups=groups)
        self.residual = stride == 1 and in_channels == out_channels

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``.

        ``padding`` is ``(B, 1, H, W)`` bool, True where the input is padding.
        """
        hidden = self.shuffle(F.relu6(self.depthwise(zero_padding(x, padding))))
        out = self.project(hidden)
        return x + out if self.residual else out
