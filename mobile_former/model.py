"""Mobile-Former: the backbone and the classifier (Chen et al., Mobile-Former, CVPR 2022)."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import MobileToFormer
from mobile_former.errors import InputError, nearest
from mobile_former.layers.conv_norm import ConvNorm, channel_shuffle
from mobile_former.layers.eager import channels_last_on_cpu
from mobile_former.layers.linear import linear
from mobile_former.layers.padding import mean_pool, padding_pyramid, zero_padding
from mobile_former.mobile import Lite
from mobile_former.variants import MIN_SIZE, VARIANTS, Variant
from mobile_former.weights.hub import HubModel


class MobileFormer(HubModel, nn.Module):
    """Image classifier in one of the published Mobile-Former variants.

    Args:
        variant: name of a published model, see :func:`mobile_former.list_models`.
        num_classes: number of classes.
        in_chans: number of image channels.
        dropout: dropout rate before the last linear layer, in ``[0, 1)``.
        drop_path: stochastic depth rate of the last block, in ``[0, 1)``. The rate increases linearly with depth.
        spatial_dynamic_relu: True for the spatially aware dynamic ReLU of the detectors' backbone, whose slopes differ
            between positions; False for the same slopes at all positions.

    Attributes:
        usage: class names and preprocessing of a model that :meth:`from_pretrained` loaded; None for other models.

    Raises:
        InputError: the variant is unknown, or a number is out of range.
    """

    def __init__(
        self,
        variant: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        spatial_dynamic_relu: bool = False,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"no model is named {variant!r}: {nearest(variant, VARIANTS)}")
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}: a classifier needs at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}: give a rate of at least 0 and below 1")
        self.variant = variant
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.spatial_dynamic_relu = spatial_dynamic_relu
        spec = VARIANTS[variant]
        self.backbone = Backbone(
            spec, in_chans=in_chans, drop_path=drop_path, spatial_dynamic_relu=spatial_dynamic_relu
        )
        self.classifier = Classifier(spec, num_classes, dropout)

    @staticmethod
    @functools.cache
    def published(variant: str, **options) -> "MobileFormer":
        """Return a published model on the meta device, where tensors have names and shapes but no values.

        The model is cached and shared by all callers: do not modify it.

        Args:
            variant: name of the model.
            options: further arguments of :class:`MobileFormer`.
        """
        with torch.device("meta"):
            return MobileFormer(variant, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, in_chans, H, W)`` with sides of at least 32 pixels."""
        maps, tokens = self.backbone(images)
        return self.classifier(maps[32], tokens)

    def forward_features(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the feature maps and tokens of the backbone. See :meth:`Backbone.forward`."""
        return self.backbone(images, padding_mask)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or an ``nn.Identity`` if ``num_classes`` is 0."""
        return self.classifier.logits

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a new one with random weights, as timm's models do.

        The class names in :attr:`usage` are removed.

        Args:
            num_classes: number of classes. With 0, the last linear layer is removed, and the model returns the features
                that were the input of this layer, ``(B, features)``.

        Raises:
            InputError: the number is negative.
        """
        if num_classes < 0:
            raise InputError(f"num_classes is {num_classes}: give 0 (no last layer) or more")
        weight = self.classifier.features.weight
        self.num_classes = num_classes
        self.classifier.logits = (
            linear(len(weight), num_classes).to(weight.device, weight.dtype) if num_classes else nn.Identity()
        )
        if self.usage is not None:
            self.usage = replace(self.usage, class_names=None)


class Backbone(nn.Module):
    """Mobile-Former without the classifier: the stem, the learned tokens and the blocks.

    Args:
        spec: specification of the variant.
        in_chans: number of image channels.
        drop_path: stochastic depth rate of the last block, in ``[0, 1)``. The rate increases linearly with depth.
        spatial_dynamic_relu: True for the spatially aware dynamic ReLU, whose slopes differ between positions; False
            for the same slopes at all positions.

    Attributes:
        strides: list of the strides of the blocks' outputs, relative to the image.
        channels: dictionary from the stride of each returned feature map to its number of channels.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(self, spec: Variant, *, in_chans: int = 3, drop_path: float = 0.0, spatial_dynamic_relu: bool = False):
        super().__init__()
        if in_chans < 1:
            raise InputError(f"in_chans is {in_chans}: an image needs at least 1 channel")
        if not 0 <= drop_path < 1:
            raise InputError(f"drop_path is {drop_path}: give a rate of at least 0 and below 1")
        self.in_chans = in_chans
        self.channels_last = spec.groups == 1  # grouped convolutions are slower channels-last on a CPU
        self.stem = ConvNorm(in_chans, spec.stem, kernel_size=3, stride=2)
        self.tokens = nn.Parameter(torch.randn(spec.tokens))
        self.blocks = nn.ModuleList()
        self.strides: list[int] = []
        self.channels: dict[int, int] = {}
        channels, stride = spec.stem, 2
        for number, block in enumerate(spec.blocks, start=1):
            if block.kind == "lite":
                self.blocks.append(
                    Lite(channels, block.out_channels, *block.expansions, block.stride, groups=spec.groups)
                )
            else:
                self.blocks.append(
                    MobileFormerBlock(
                        block,
                        channels,
                        spec.tokens[1],
                        groups=spec.groups,
                        drop_path=drop_path * number / len(spec.blocks),
                        spatial_dynamic_relu=spatial_dynamic_relu,
                    )
                )
            channels, stride = block.out_channels, stride * block.stride
            self.strides.append(stride)
            if stride >= 4:
                self.channels[stride] = channels

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Compute the feature maps and the tokens.

        Args:
            images: normalised images ``(B, in_chans, H, W)``. Both sides are at least 32 pixels and may be odd.
            padding_mask: ``(B, H, W)`` bool, True on padding; None for no padding. A position of a feature map is
                padding if all pixels that it covers are padding. Features outside the padding do not depend on the
                padded pixels, with one exception: in training, BatchNorm's statistics include the padded positions.

        Returns:
            The feature maps and the tokens after the last block, ``(B, M, d)``. The feature maps are a dictionary from
            stride to the output of the last block with this stride, ``{4: (B, C, ⌈H/4⌉, ⌈W/4⌉), 8: …, 16: …, 32: …}``.

        Raises:
            InputError: the images or the mask have the wrong shape or type, or a side is shorter than 32 pixels.
        """
        check_images(images, padding_mask, self.in_chans)
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, (1, 2, 4, 8, 16, 32))
        x = F.relu6(self.stem(zero_padding(images, padding.get(1))))
        if self.channels_last:
            x = channels_last_on_cpu(x)
        tokens = self.tokens.expand(images.shape[0], -1, -1)  # len() would fix the batch in torch.export
        return run_blocks(self.blocks, self.strides, x, tokens, padding)


def run_blocks(
    blocks: Iterable[nn.Module],
    strides: Iterable[int],
    x: Tensor,
    tokens: Tensor | tuple[Tensor, ...],
    padding: Mapping[int, Tensor],
) -> tuple[dict[int, Tensor], Tensor | tuple[Tensor, ...]]:
    """Pass the stem's output and the tokens through the blocks.

    Args:
        blocks: blocks of the backbone.
        strides: stride of the output of each block, relative to the image.
        x: output of the stem, ``(B, C, ⌈H/2⌉, ⌈W/2⌉)``.
        tokens: tokens before the first block. The blocks of :class:`Backbone` take a tensor ``(B, M, d)``. The blocks
            of :class:`mobile_former.deployment.backbone.DeployedBackbone` take a tuple ``(tokens, query, gate)``.
        padding: dictionary from stride to the padding mask of the feature map at this stride, see
            :func:`padding_pyramid`; empty without padding.

    Returns:
        The feature maps, and the tokens after the last block, with the type of the argument ``tokens``. The feature
        maps are a dictionary from each stride of 4 or more to the output of the last block with this stride.
    """
    maps, in_stride = {}, 2
    for block, stride in zip(blocks, strides, strict=True):
        if isinstance(block, Lite):
            x = block(x, padding.get(in_stride))
        else:
            x, tokens = block(x, tokens, padding.get(in_stride), padding.get(stride))
        if stride >= 4:
            maps[stride] = x
        in_stride = stride
    return maps, tokens


class Classifier(nn.Module):
    """Classification head on the last feature map and the tokens.

    A Mobile→Former bridge first updates the tokens from the map. Two linear layers then compute the logits from the
    pooled map and the first token.

    Args:
        spec: specification of the variant.
        num_classes: number of classes.
        dropout: dropout rate before the last linear layer.
    """

    def __init__(self, spec: Variant, num_classes: int, dropout: float):
        super().__init__()
        channels, token_dim = spec.blocks[-1].out_channels, spec.tokens[1]
        hidden = 6 * channels
        self.to_former = MobileToFormer(channels, token_dim)
        self.shuffle = channel_shuffle(spec.groups, enabled=spec.groups > 1)
        self.expand = ConvNorm(channels, hidden, groups=spec.groups)
        self.features = linear(hidden + token_dim, spec.features)
        self.norm = nn.BatchNorm1d(spec.features)
        self.dropout = nn.Dropout(dropout)
        self.logits = linear(spec.features, num_classes)

    def forward(self, x: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            x: last feature map of the backbone, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``.
            padding: ``(B, 1, H, W)`` bool, True on padding, which the attention and the pooling ignore; None for no
                padding.

        Returns:
            The logits, ``(B, num_classes)``.
        """
        return self.logits(self.hidden(x, tokens, padding))

    def hidden(self, x: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the input of the last linear layer, ``(B, features)``. The arguments are those of :meth:`forward`."""
        tokens, _ = self.to_former(x, tokens, padding)
        pooled = mean_pool(F.relu6(self.expand(self.shuffle(x))), padding)
        features = torch.cat([F.hardswish(pooled), tokens[:, 0]], dim=1)
        return self.dropout(F.hardswish(self.norm(self.features(features))))


def check_images(images: Tensor, padding_mask: Tensor | None, in_chans: int) -> None:
    """Raise InputError if :meth:`Backbone.forward` cannot use the images or the padding mask.

    The checks cover the shapes, the types and the minimum side of 32 pixels.
    """
    if images.ndim != 4 or images.shape[1] != in_chans:
        raise InputError(f"images have shape {tuple(images.shape)}: the model takes (B, {in_chans}, H, W)")
    if not images.is_floating_point():
        raise InputError(f"images have type {images.dtype}: convert them to a floating-point type and normalise them")
    if images.shape[2] < MIN_SIZE or images.shape[3] < MIN_SIZE:
        raise InputError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels: both sides must be at least {MIN_SIZE}; "
            "resize or pad them"
        )
    if padding_mask is not None and padding_mask.dtype != torch.bool:
        raise InputError(f"padding_mask has type {padding_mask.dtype}: give a bool mask, True on padding")
    if padding_mask is not None and padding_mask.shape != (images.shape[0], *images.shape[2:]):
        raise InputError(
            f"padding_mask has shape {tuple(padding_mask.shape)}: images of shape {tuple(images.shape)} "
            f"need {(images.shape[0], *images.shape[2:])}"
        )
