"""Convolution followed by BatchNorm, and the shuffle that lets grouped convolutions exchange channels."""

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A bias-free convolution with "same" padding, then BatchNorm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel.
        stride: of the convolution; the output has ⌈H/stride⌉ × ⌈W/stride⌉ positions.
        groups: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")  # variance 2 / (k² · C_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        return self.norm(self.conv(x))


def depthwise(channels: int, expansion: int, stride: int = 1) -> ConvNorm:
    """A 3×3 convolution of each channel by itself into ``expansion`` channels."""
    return ConvNorm(channels, channels * expansion, kernel_size=3, stride=stride, groups=channels)


class ChannelShuffle(nn.Module):
    """Channels seen as ``(groups, C / groups)`` and transposed, in operations that every exporter knows.

    Args:
        groups: a divisor of the number of channels.
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Reorder the channels of ``(B, C, H, W)``."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def channel_shuffle(groups: int, *, enabled: bool) -> nn.Module:
    """A shuffle, or nothing where pointwise convolutions are whole."""
    return ChannelShuffle(groups) if enabled else nn.Identity()
