"""Specifications of the seven published models (Chen et al., Mobile-Former, CVPR 2022, tables 1 and 8)."""

from dataclasses import dataclass
from typing import Literal

MIN_SIZE = 32  # pixels, smallest side of an image: the stride of the last map


@dataclass(frozen=True)
class BlockSpec:
    """Specification of one block of a published model.

    Attributes:
        kind: ``"lite"`` (a MobileNet block without tokens), ``"down"`` (a Mobile-Former block with stride 2) or
            ``"same"`` (a Mobile-Former block with stride 1).
        out_channels: channels of the output map.
        expansions: tuple of the ratios of hidden channels to input channels, one for each depthwise convolution of the
            block.
        stride: stride of the first depthwise convolution.
    """

    kind: Literal["lite", "down", "same"]
    out_channels: int
    expansions: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class Variant:
    """Specification of a published model.

    Attributes:
        stem: number of output channels of the stem.
        tokens: number of tokens and dimension of a token, ``(M, d)``.
        features: output features of the classifier's first linear layer.
        groups: number of groups in every pointwise convolution. Channel shuffles are inserted if it is more than 1.
        blocks: tuple of the specifications of the blocks, in order.
    """

    stem: int
    tokens: tuple[int, int]
    features: int
    groups: int
    blocks: tuple[BlockSpec, ...]


def _lite(out_channels: int, expansion: int, stride: int = 1) -> BlockSpec:
    return BlockSpec("lite", out_channels, (expansion,), stride)


def _down(out_channels: int) -> BlockSpec:
    return BlockSpec("down", out_channels, (6, 4), 2)


def _same(out_channels: int, expansion: int) -> BlockSpec:
    return BlockSpec("same", out_channels, (expansion,), 1)


_BLOCKS_52M = (
    _lite(12, 3, stride=2),
    _same(12, 3),
    _down(24),
    _same(24, 3),
    _down(48),
    _same(48, 4),
    _same(64, 6),
    _down(96),
    _same(96, 6),
)

# From small to large.
VARIANTS: dict[str, Variant] = {
    "mobile_former_26m": Variant(stem=8, tokens=(3, 128), features=1024, groups=4, blocks=_BLOCKS_52M),
    "mobile_former_52m": Variant(stem=8, tokens=(3, 128), features=1024, groups=1, blocks=_BLOCKS_52M),
    "mobile_former_96m": Variant(
        stem=12,
        tokens=(4, 128),
        features=1280,
        groups=1,
        blocks=(
            _lite(12, 2),
            _down(16),
            _down(32),
            _same(32, 3),
            _down(64),
            _same(64, 4),
            _same(88, 6),
            _down(128),
            _same(128, 6),
        ),
    ),
    "mobile_former_151m": Variant(
        stem=12,
        tokens=(6, 192),
        features=1280,
        groups=1,
        blocks=(
            _lite(12, 2),
            _down(16),
            _same(16, 3),
            _down(32),
            _same(32, 3),
            _down(64),
            _same(64, 4),
            _same(88, 6),
            _same(88, 6),
            _down(128),
            _same(128, 6),
            _same(128, 6),
        ),
    ),
    "mobile_former_214m": Variant(
        stem=12,
        tokens=(6, 192),
        features=1600,
        groups=1,
        blocks=(
            _lite(12, 2),
            _down(20),
            _same(20, 3),
            _down(40),
            _same(40, 4),
            _down(80),
            _same(80, 4),
            _same(112, 6),
            _same(112, 6),
            _down(160),
            _same(160, 6),
            _same(160, 6),
        ),
    ),
    "mobile_former_294m": Variant(
        stem=16,
        tokens=(6, 192),
        features=1920,
        groups=1,
        blocks=(
            _lite(16, 2),
            _down(24),
            _same(24, 4),
            _down(48),
            _same(48, 4),
            _down(96),
            _same(96, 4),
            _same(128, 6),
            _same(128, 6),
            _down(192),
            _same(192, 6),
            _same(192, 6),
        ),
    ),
    "mobile_former_508m": Variant(
        stem=24,
        tokens=(6, 192),
        features=1920,
        groups=1,
        blocks=(
            _lite(24, 2),
            _down(40),
            _same(40, 3),
            _down(72),
            _same(72, 3),
            _down(128),
            _same(128, 4),
            _same(176, 6),
            _same(176, 6),
            _down(240),
            _same(240, 6),
            _same(240, 6),
        ),
    ),
}
