"""Convolution with BatchNorm, and the channel shuffle between grouped convolutions."""

from torch import Tensor, nn

from mobile_former.layers.pointwise import convolve


class ConvNorm(nn.Module):
    """Bias-free convolution with "same" padding, followed by BatchNorm.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        kernel_size: side of the kernel, an odd number.
        stride: stride of the convolution.
        groups: groups of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")  # variance 2 / (k² · C_out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise ``(B, in_channels, H, W)`` to ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        return self.norm(convolve(self.conv, x))


def depthwise(channels: int, expansion: int, stride: int = 1) -> ConvNorm:
    """Build a 3×3 depthwise convolution with BatchNorm and ``expansion`` output channels per input channel."""
    return ConvNorm(channels, channels * expansion, kernel_size=3, stride=stride, groups=channels)


class ChannelShuffle(nn.Module):
    """Channel shuffle: views the channel axis as ``(groups, C / groups)`` and transposes the two axes.

    The implementation uses only operations that every exporter supports.

    Args:
        groups: number of groups, a divisor of the number of channels.
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Shuffle the channels of ``(B, C, H, W)``."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def channel_shuffle(groups: int, *, enabled: bool) -> nn.Module:
    """Build a :class:`ChannelShuffle` if ``enabled`` is True, otherwise an ``nn.Identity``."""
    return ChannelShuffle(groups) if enabled else nn.Identity()
