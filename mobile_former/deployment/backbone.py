"""The backbone and the classifier for inference, with the same outputs as the trained modules but fewer operations.

- After the transformer layer of each block, one linear layer computes the inputs of two bridges from the tokens: the
  key and value for the Former→Mobile bridge of this block, and the query and gate for the Mobile→Former bridge of the
  next block. See :class:`TokenReads`.
- Output projections are fused with the residual addition (``addmm``). The bias of such a projection is added to the
  tokens by the preceding LayerNorm, as a constant shift. The biases of the layers that read the shifted tokens are
  adjusted to compensate for the shift.
- Scales and constant factors are folded into weights.

A block passes a tuple ``(tokens, query, gate)`` to the next block. The query and gate are inputs of the next
Mobile→Former bridge. The tokens ``(B·M, d)`` already include the bias of this bridge's output projection. If there is
no next Mobile→Former bridge, the tuple contains only the tokens.

:mod:`mobile_former.deployment.exported_graphs` has the forward passes of exported graphs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import HEADS, FormerToMobile, MobileToFormer, mask_logits
from mobile_former.deployment.folding import (
    fold_features_norm,
    fold_norm,
    merged,
    scaled,
    shifted,
    with_shift,
    with_unit_range,
)
from mobile_former.deployment.mobile import DeployedDownsamplingMobile, DeployedLite, DeployedMobile, Pointwise
from mobile_former.deployment.modules import InferenceConv, InferenceLinear, InferenceModule, add_product, gelu
from mobile_former.deployment.onnx_layout import padded_maps
from mobile_former.errors import InputError
from mobile_former.former import HEADS as FORMER_HEADS
from mobile_former.former import Former
from mobile_former.layers.padding import halve, padding_pyramid, zero_padding
from mobile_former.mobile import Lite
from mobile_former.model import Backbone, Classifier, MobileFormer, check_images, run_blocks


class DeployedMobileFormer(nn.Module):
    """Inference form of :class:`mobile_former.MobileFormer`, with the same outputs and fewer operations.

    Args:
        model: trained model.
    """

    def __init__(self, model: MobileFormer):
        super().__init__()
        self.variant, self.num_classes, self.in_chans = model.variant, model.num_classes, model.in_chans
        self.backbone = DeployedBackbone(model.backbone, model.classifier.to_former)
        self.classifier = DeployedClassifier(model.classifier, count=len(model.backbone.tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of images ``(B, in_chans, H, W)`` with sides of at least 32 pixels."""
        maps, tokens = self.backbone.shifted_features(images)
        return self.classifier(maps[32], *tokens)

    def forward_features(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the feature maps and tokens of the backbone. See :meth:`mobile_former.model.Backbone.forward`."""
        return self.backbone(images, padding_mask)


class DeployedBackbone(nn.Module):
    """Inference form of :class:`mobile_former.model.Backbone`, with the same outputs and fewer operations.

    Args:
        backbone: trained backbone.
        last: Mobile→Former bridge of the classifier. The last block of the backbone computes the query and gate of this
            bridge. None for a backbone without a classifier.
    """

    def __init__(self, backbone: Backbone, last: MobileToFormer | None = None):
        super().__init__()
        self.in_chans, self.strides, self.channels = backbone.in_chans, backbone.strides, backbone.channels
        bridges = [block.to_former for block in backbone.blocks if not isinstance(block, Lite)] + [last]
        count = len(backbone.tokens)
        self.start = Start(backbone, bridges[0])
        self.blocks = nn.ModuleList()
        self.register_buffer("shift", backbone.tokens.new_zeros(()) if last is None else last.output.bias.detach())
        for block, stride in zip(backbone.blocks, backbone.strides, strict=True):
            if isinstance(block, Lite):
                self.blocks.append(DeployedLite(block))
            else:
                bridges.pop(0)
                self.blocks.append(DeployedBlock(block, bridges[0], count=count, stride=stride))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Compute the feature maps and the tokens. See :meth:`mobile_former.model.Backbone.forward`."""
        maps, (tokens, *_) = self.shifted_features(images, padding_mask)
        return maps, tokens.reshape(images.shape[0], -1, tokens.shape[-1]) - self.shift

    def shifted_features(
        self, images: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[dict[int, Tensor], tuple[Tensor, ...]]:
        """Compute the feature maps and the shifted tokens. A shifted token is a token plus the constant ``shift``.

        The layers that read shifted tokens compensate for the shift, see the docstring of this module. The arguments
        are those of :meth:`forward`.

        Returns:
            A dictionary from stride to feature map, and a tuple ``(tokens, query, gate)``. The tokens ``(B·M, d)`` are
            the tokens after the last block plus the buffer ``shift``. The query and gate are inputs of the classifier's
            Mobile→Former bridge. Without a classifier, the tuple contains only the tokens, and ``shift`` is 0.
        """
        check_images(images, padding_mask, self.in_chans)
        if images.shape[0] == 0:
            raise InputError("the batch is empty: an inference form takes one image or more")
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, (1, 2, 4, 8, 16, 32))
        x, tokens = self.start(zero_padding(images, padding.get(1)))
        return run_blocks(self.blocks, self.strides, x, tokens, padding)


class Start(InferenceModule):
    """Module that computes the inputs of the first block of a backbone.

    The inputs are the output of the stem, the initial tokens, and the query and gate of the first Mobile→Former bridge.
    Only the output of the stem depends on the image. The other inputs are precomputed.

    Args:
        backbone: trained backbone.
        first: first Mobile→Former bridge of the backbone.

    Attributes:
        pads_stem: whether ONNX graphs pad the stem's output to 16 channels, see
            :mod:`mobile_former.deployment.onnx_layout`.
        pads_bridge: whether the input map of the first bridge is padded to 16 channels in ONNX graphs.
    """

    def __init__(self, backbone: Backbone, first: MobileToFormer):
        super().__init__()
        stem, tokens, reads = fold_norm(backbone.stem), backbone.tokens, TokenReads(None, first)
        self.stem = InferenceConv(stem.weight, stem.bias, stride=stem.stride[0], padding=1, relu6=True)
        self.register_buffer("tokens", tokens + first.output.bias)
        self.register_buffer("reads", torch.cat(reads(tokens, len(tokens))))
        self.register_buffer("reads_by_head", torch.cat(reads.by_head(tokens, len(tokens))))
        self.pads_stem, self.pads_bridge = padded_maps(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the inputs of the first block from images ``(B, in_chans, H, W)``.

        Returns:
            The stem's output ``(B, C, ⌈H/2⌉, ⌈W/2⌉)``, and the tuple ``(tokens, query, gate)``, see
            :class:`DeployedBlock`.
        """
        x = self.stem(images).contiguous(memory_format=torch.channels_last)  # so that no convolution copies its input
        tokens, *reads = self.batched(self._buffers["reads"], images.shape[0])
        return x, (tokens.flatten(0, 1), *reads)

    def batched(self, reads: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Repeat the initial tokens, the query and the gate for each image of a batch.

        Args:
            reads: query and gate for one image, stacked along the first axis, ``(2, …)``.
            batch: number of images.

        Returns:
            The tuple ``(tokens, query, gate)``: the initial tokens ``(batch, M, d)``, and the query and gate, each
            ``(batch, …)``.
        """
        tokens = self._buffers["tokens"].expand(batch, -1, -1)
        return tokens, *(part.expand(batch, *part.shape) for part in reads.unbind())


class DeployedBlock(InferenceModule):
    """Inference form of :class:`mobile_former.block.MobileFormerBlock`, with the same outputs and fewer operations.

    Args:
        block: trained block.
        following: Mobile→Former bridge of the next block or of the classifier; None if there is none.
        count: number of tokens.
        stride: stride of the output relative to the image, see :class:`mobile_former.deployment.mobile.Pointwise`.
    """

    def __init__(self, block: MobileFormerBlock, following: MobileToFormer | None, *, count: int, stride: int):
        super().__init__()
        self.count = count
        self.to_former = DeployedToFormer(block.to_former)
        self.former = DeployedFormer(block.former)
        self.mobile = (DeployedDownsamplingMobile if block.downsamples else DeployedMobile)(block.mobile, stride=stride)
        self.reads = TokenReads(block.to_mobile, following)
        self.to_mobile = DeployedToMobile()
        self.downsamples = block.downsamples
        self.spatial_dynamic_relu = block.spatial_dynamic_relu
        if following is not None:
            shift = following.output.bias
            self.former.ffn_norm = with_shift(self.former.ffn_norm, shift)
            self.mobile.reduce = shifted(self.mobile.reduce, shift)
            self.reads.linear = shifted(self.reads.linear, shift)

    def forward(
        self, x: Tensor, tokens: tuple[Tensor, ...], padding: Tensor | None, out_padding: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Update the feature map and the tokens.

        Args:
            x: input map, ``(B, C, H, W)``.
            tokens: tuple ``(tokens, query, gate)``. The query and gate are inputs of this block's Mobile→Former bridge,
                see :class:`TokenReads`. The tokens ``(B·M, d)`` include the bias of this bridge's output projection.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding; None for no padding.
            out_padding: ``(B, 1, H', W')`` bool, True where the output map is padding; None for no padding.

        Returns:
            The output map ``(B, C', H', W')``, and the tuple ``(tokens, query, gate)`` for the next Mobile→Former
            bridge. Without such a bridge, the tuple contains only the tokens.
        """
        count = self.count
        tokens, query, gate = tokens
        tokens, logits = self.to_former(x, tokens, query, gate, padding)
        tokens = self.former(tokens, count)
        if self.spatial_dynamic_relu:
            logits = logits.unflatten(1, (HEADS, count)).mean(1).unflatten(2, x.shape[2:])
            mixing = (halve(logits, padding) if self.downsamples else logits).softmax(1)
            guide = tokens.reshape(-1, count, tokens.shape[-1])
        else:
            mixing, guide = None, tokens[:, 0] if tokens.ndim == 3 else tokens[::count]
        x = self.mobile(x, guide, mixing, *((padding, out_padding) if self.downsamples else (padding,)))
        key, value, *reads = self.reads(tokens, count)
        return self.to_mobile(x, key, value), (tokens, *reads)


class TokenReads(InferenceModule):
    """Linear layer that computes inputs of two bridges from the tokens of a block.

    The inputs are the key and value of the block's Former→Mobile bridge, and the query and gate of the next
    Mobile→Former bridge. Each of them is ``(B, heads·M, C)``, with one row for each pair of attention head and token.
    A row uses only the channels of its head. The other channels are 0.

    Because the other channels are 0, one matrix product with the feature map computes all heads. Separate products for
    the two heads would need half as many multiplications. They would still be slower, because the channels of the map
    would have to be split in memory.

    Args:
        to_mobile: Former→Mobile bridge of the block; None if there is none.
        following: next Mobile→Former bridge; None if there is none.
    """

    def __init__(self, to_mobile: FormerToMobile | None, following: MobileToFormer | None):
        super().__init__()
        layers = []
        if to_mobile is not None:
            layers += [_scaled_for_heads(to_mobile.key, HEADS), to_mobile.value]
        if following is not None:
            layers += [_scaled_for_heads(following.query, HEADS), with_unit_range(following.gate)]
        self.linear = merged(layers)
        self.parts = len(layers)
        masks = _head_masks(layers[0], HEADS)
        self.register_buffer("heads", masks.repeat(1, 1, self.parts))

    def forward(self, tokens: Tensor, count: int) -> Sequence[Tensor]:
        """Compute the key, value, query and gate of two bridges from the tokens.

        In each row of these tensors, the channels of the other attention heads are masked, see :class:`TokenReads`.

        Args:
            tokens: ``(B·M, d)``.
            count: number of tokens of an image, ``M``.

        Returns:
            Tuple of the scaled key and the value for the Former→Mobile bridge, and the scaled query and the gate for
            the Mobile→Former bridge. Each is ``(B, heads·M, C)``. If there is only one of the bridges, the two tensors
            of the other one are left out.
        """
        heads = self._buffers["heads"]
        reads = self.linear(tokens).reshape(-1, 1, count, heads.shape[-1])
        return (reads * heads).flatten(1, 2).chunk(self.parts, 2)

    def by_head(self, tokens: Tensor, count: int) -> Sequence[Tensor]:
        """Compute the same tensors as :meth:`forward`, split by attention head and without the masked channels.

        The arguments are those of :meth:`forward`. Each returned tensor is ``(B, heads, M, C / heads)``.
        """
        parts = self.parts * HEADS
        reads = self.linear(tokens).reshape(-1, count, parts, self.linear.out_features // parts)
        return reads.transpose(1, 2).chunk(self.parts, 1)


class DeployedToFormer(InferenceModule):
    """Inference form of a :class:`mobile_former.bridge.MobileToFormer` with a gate.

    Args:
        to_former: trained bridge.
    """

    def __init__(self, to_former: MobileToFormer):
        super().__init__()
        self.weight = _by_input(2 * to_former.output.weight)  # 2, because the gate is twice a sigmoid
        self.norm = with_shift(to_former.norm)

    def forward(
        self, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update the tokens by cross-attention to the feature map.

        Args:
            x: feature map, ``(B, C, H, W)``.
            tokens: ``(B·M, d)``. They already include the bias of the output projection.
            query: scaled query, ``(B, heads·M, C)``, see :class:`TokenReads`.
            gate: gate before the clamp to 0..1, ``(B, heads·M, C)``.
            padding: ``(B, 1, H, W)`` bool, True on padding; None for no padding.

        Returns:
            The updated tokens ``(B·M, d)``, and the attention logits ``(B, heads·M, H·W)`` before softmax and mask.
        """
        gathered, logits = gather(x, query, gate, padding)
        return self.norm(add_product(tokens, gathered, self._parameters["weight"])), logits


def gather(x: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the attention of a Mobile→Former bridge, without the output projection.

    The arguments are those of :meth:`DeployedToFormer.forward`.

    Returns:
        The gated attention output ``(B·M, C)``, and the attention logits ``(B, heads·M, H·W)`` before softmax and mask.
    """
    positions = x.flatten(2)
    logits = torch.bmm(query, positions)
    visible = logits if padding is None else mask_logits(logits, padding.flatten(2))
    gathered = torch.bmm(visible.softmax(2), positions.transpose(1, 2)) * gate.clamp(0.0, 1.0)
    return gathered.reshape(x.shape[0], HEADS, -1, x.shape[1]).sum(1).flatten(0, 1), logits


class DeployedToMobile(InferenceModule):
    """Inference form of :class:`mobile_former.bridge.FormerToMobile`, with the same outputs and fewer operations."""

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Update the feature map by cross-attention to the tokens.

        Args:
            x: feature map, ``(B, C, H, W)``.
            key: scaled key of the tokens, ``(B, heads·M, C)``, see :class:`TokenReads`.
            value: value of the tokens, ``(B, heads·M, C)``.

        Returns:
            The updated feature map, ``(B, C, H, W)``.
        """
        positions = x.flatten(2)
        weights = torch.bmm(key, positions).unflatten(1, (HEADS, -1)).softmax(2).flatten(1, 2)
        out = torch.baddbmm(positions.transpose(1, 2), weights.transpose(1, 2), value)
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class DeployedFormer(InferenceModule):
    """Inference form of :class:`mobile_former.former.Former`, with the same outputs and fewer operations.

    Args:
        former: trained module.
    """

    def __init__(self, former: Former):
        super().__init__()
        self.query = _scaled_for_heads(former.query, FORMER_HEADS)
        self.register_buffer("heads", _head_masks(former.query, FORMER_HEADS))
        self.output = scaled(former.output)
        shift = former.ffn[2].bias
        self.attention_norm = with_shift(former.attention_norm, shift)
        self.expand = shifted(former.ffn[0], shift)
        self.weight = _by_input(former.ffn[2].weight)
        self.ffn_norm = with_shift(former.ffn_norm)

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Update the tokens by self-attention and the feed-forward network.

        Args:
            tokens: ``(B·M, d)``.
            count: number of tokens of an image, ``M``.

        Returns:
            The updated tokens, ``(B·M, d)``.
        """
        # Each token appears once per head with the features of the other heads set to 0, which avoids copies.
        dim = tokens.shape[-1]
        keys = (tokens.reshape(-1, 1, count, dim) * self._buffers["heads"]).flatten(1, 2)  # (B, heads·M, d)
        logits = torch.bmm(self.query(tokens).reshape(-1, count, dim), keys.transpose(1, 2))
        weights = logits.unflatten(2, (FORMER_HEADS, count)).softmax(3).flatten(2)
        gathered = torch.bmm(weights, keys).reshape(tokens.shape)
        tokens = self.attention_norm(tokens + self.output(gathered))
        return self.ffn_norm(add_product(tokens, gelu(self.expand(tokens)), self._parameters["weight"]))


class DeployedClassifier(InferenceModule):
    """Inference form of :class:`mobile_former.model.Classifier`, with the same outputs and fewer operations.

    Args:
        classifier: trained classifier.
        count: number of tokens.
    """

    def __init__(self, classifier: Classifier, *, count: int):
        super().__init__()
        self.count = count
        self.to_former = DeployedToFormer(classifier.to_former)
        self.expand = Pointwise(classifier.expand, in_shuffle=classifier.shuffle, relu6=True)
        features = fold_features_norm(classifier.features, classifier.norm)
        self.features = RowLinear(features.weight, features.bias)
        last = classifier.logits  # an nn.Identity after reset_classifier(0)
        self.logits = RowLinear(last.weight, last.bias) if isinstance(last, nn.Linear) else nn.Identity()

    def forward(self, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            x: last feature map of the backbone, ``(B, C, H, W)``.
            tokens: tokens that :meth:`DeployedBackbone.shifted_features` returns, ``(B·M, d)``.
            query: query of the classifier's Mobile→Former bridge, ``(B, heads·M, C)``.
            gate: gate of this bridge before the clamp to 0..1, ``(B, heads·M, C)``.

        Returns:
            The logits, ``(B, num_classes)``.
        """
        count = self.count
        # The classifier reads the first token only.
        token = tokens[:, :1] if tokens.ndim == 3 else tokens[::count]
        rows = slice(1) if query.ndim == 4 else slice(None, None, count)  # in exported graphs, split by head
        token, _ = self.to_former(x, token, query[..., rows, :], gate[..., rows, :], None)
        pooled = self.expand(x).mean((2, 3))
        features = self.features(torch.cat([F.hardswish(pooled), token.flatten(1)], dim=1))
        return self.logits(F.hardswish(features))


class RowLinear(InferenceLinear):
    """Linear layer of the classifier. It is applied to one vector per image, ``(B, in)``.

    In ONNX graphs, this layer is a convolution, because ONNX Runtime computes the convolution faster.
    """


def _head_masks(layer: nn.Linear, heads: int) -> Tensor:
    """Return, for each attention head, a 0/1 mask over the output features of a linear layer, ``(heads, 1, out)``.

    The mask of a head is 1 at the features of this head and 0 at the features of the other heads.
    """
    eye = torch.eye(heads, device=layer.weight.device, dtype=layer.weight.dtype)
    return eye.repeat_interleave(layer.out_features // heads, 1)[:, None]


def _by_input(weight: Tensor) -> nn.Parameter:
    """Return the weight of a linear layer as a contiguous parameter of shape ``(in, out)``.

    If there are few tokens, a matrix product with this memory layout is faster on a CPU.
    """
    return nn.Parameter(weight.detach().t().contiguous())


def _scaled_for_heads(layer: nn.Linear, heads: int) -> nn.Linear:
    """Return a copy of a query or key projection whose output is multiplied by the attention scale.

    The scale is ``1/√(out / heads)``, where ``out`` is the number of output features of the layer.
    """
    return scaled(layer, (layer.out_features // heads) ** -0.5)
