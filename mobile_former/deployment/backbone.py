"""The backbone and its classifier for inference: few operations, the same numbers.

What reads the tokens after a block, its own bridge and the next block's, is one matrix product. Linears that are added
to the tokens take the tokens as their bias; where their own biases went, the LayerNorm before carries them (a shift),
and whoever reads the tokens is shifted back by its own bias. Scales and constant factors are in the weights.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import HEADS, FormerToMobile, MobileToFormer, mask_logits, split_channels
from mobile_former.deployment.convolution import InferenceConv
from mobile_former.deployment.folding import (
    fold_features_norm,
    fold_norm,
    merged,
    scaled,
    shifted,
    with_shift,
)
from mobile_former.deployment.mobile import DeployedDownsamplingMobile, DeployedLite, DeployedMobile, Pointwise
from mobile_former.deployment.modules import InferenceModule
from mobile_former.deployment.onnx_layout import BLOCK, filled, makes_onnx, with_zeros
from mobile_former.errors import InputError
from mobile_former.former import HEADS as FORMER_HEADS
from mobile_former.former import Former
from mobile_former.layers.padding import halve, padding_pyramid, zero_padding
from mobile_former.mobile import Lite
from mobile_former.model import Backbone, Classifier, MobileFormer, check_images


class DeployedMobileFormer(nn.Module):
    """:class:`mobile_former.MobileFormer` for inference.

    Args:
        model: the trained model.
    """

    def __init__(self, model: MobileFormer):
        super().__init__()
        self.variant = model.variant
        self.num_classes = model.num_classes
        self.in_chans = model.in_chans
        self.backbone = DeployedBackbone(model.backbone, model.classifier.to_former)
        self.classifier = DeployedClassifier(model.classifier, count=len(model.backbone.tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images ``(B, in_chans, H, W)``, both sides at least 32: logits ``(B, num_classes)``."""
        maps, *tokens = self.backbone.shifted_features(images)
        return self.classifier(maps[32], *tokens)

    def forward_features(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Maps and tokens as the trained model's ``forward_features`` gives them."""
        return self.backbone(images, padding_mask)


class DeployedBackbone(nn.Module):
    """:class:`mobile_former.model.Backbone` for inference.

    Args:
        backbone: the trained backbone.
        last: the bridge that reads tokens and map after the last block, where there is one.
    """

    def __init__(self, backbone: Backbone, last: MobileToFormer | None = None):
        super().__init__()
        self.in_chans, self.strides, self.channels = backbone.in_chans, backbone.strides, backbone.channels
        stem = fold_norm(backbone.stem)
        self.stem = InferenceConv(stem.weight, stem.bias, stride=stem.stride[0], padding=1, relu6=True)
        self.fills = _can_fill(backbone)
        self.blocks = nn.ModuleList()
        bridges = [block.to_former for block in backbone.blocks if not isinstance(block, Lite)] + [last]
        self.register_buffer("tokens", backbone.tokens + bridges[0].output.bias)
        reads = TokenReads(None, bridges[0])
        self.register_buffer("asked", torch.cat(reads(backbone.tokens, len(backbone.tokens))))
        self.register_buffer("asked_by_head", torch.cat(reads.by_head(backbone.tokens, len(backbone.tokens))))
        self.register_buffer("shift", backbone.tokens.new_zeros(()) if last is None else last.output.bias.detach())
        for block, stride in zip(backbone.blocks, backbone.strides, strict=True):
            if isinstance(block, Lite):
                self.blocks.append(DeployedLite(block))
            else:
                bridges.pop(0)
                self.blocks.append(DeployedBlock(block, bridges[0], count=len(backbone.tokens), stride=stride))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Maps and tokens as of :meth:`mobile_former.model.Backbone.forward`, errors too."""
        maps, tokens, _ = self.shifted_features(images, padding_mask)
        return maps, tokens.unflatten(0, (images.shape[0], -1)) - self.shift

    def shifted_features(
        self, images: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[dict[int, Tensor], Tensor, Sequence[Tensor]]:
        """As :meth:`forward`, but for the tokens.

        Returns:
            The maps; the tokens with ``shift`` added, ``(B·M, d)``; and the query and the gate of the bridge after the
            last block, see :class:`TokenReads`, where there is one.
        """
        check_images(images, padding_mask, self.in_chans)
        batch = images.shape[0]
        if batch == 0:
            raise InputError("the batch is empty: an inference form takes one image or more")
        padding = {} if padding_mask is None else padding_pyramid(padding_mask, (1, 2, 4, 8, 16, 32))
        x = self._stem(zero_padding(images, padding.get(1)))
        if not torch.compiler.is_exporting():  # other runtimes have layouts of their own
            x = x.contiguous(memory_format=torch.channels_last)  # in which PyTorch's convolutions copy nothing
        tokens = self.tokens.expand(batch, -1, -1).flatten(0, 1)
        asked: Sequence[Tensor] = ()
        maps = {}
        in_stride = 2
        for block, stride in zip(self.blocks, self.strides, strict=True):
            if isinstance(block, DeployedLite):
                x = block(x, padding.get(in_stride))
            else:
                asked = asked or self._first_asked(x)
                x, tokens, asked = block(x, tokens, *asked, padding.get(in_stride), padding.get(stride))
            if stride >= 4:
                maps[stride] = x
            in_stride = stride
        return maps, tokens, asked

    def _first_asked(self, x: Tensor) -> Sequence[Tensor]:
        """Query and gate of the first bridge, which reads the map ``(B, C, H, W)``."""
        by_head = torch.compiler.is_exporting() and x.shape[1] == self.asked.shape[2]
        asked = self.asked_by_head if by_head else self.asked
        return asked.unsqueeze(1).expand(-1, x.shape[0], *[-1] * (asked.ndim - 1)).unbind()

    def _stem(self, images: Tensor) -> Tensor:
        stem = self.stem
        if not (makes_onnx() and self.fills):
            return stem(images)
        return F.relu6(F.conv2d(images, filled(stem.weight), filled(stem.bias), stem.stride, stem.padding))


class DeployedBlock(InferenceModule):
    """:class:`mobile_former.block.MobileFormerBlock` for inference.

    Args:
        block: the trained block.
        following: the bridge that reads tokens and map next, where there is one.
        count: number of tokens.
        stride: see :class:`mobile_former.deployment.mobile.Pointwise`.
    """

    def __init__(self, block: MobileFormerBlock, following: MobileToFormer | None, *, count: int, stride: int):
        super().__init__()
        self.count = count
        self.to_former = DeployedToFormer(block.to_former)
        self.former = DeployedFormer(block.former)
        self.mobile = (DeployedDownsamplingMobile if block.downsamples else DeployedMobile)(block.mobile, stride=stride)
        self.reads = TokenReads(block.to_mobile, following)
        self.downsamples = block.downsamples
        self.spatial_dynamic_relu = block.spatial_dynamic_relu
        if following is not None:
            shift = following.output.bias
            self.former.ffn_norm = with_shift(self.former.ffn_norm, shift)
            self.mobile.reduce = shifted(self.mobile.reduce, shift)
            self.reads.linear = shifted(self.reads.linear, shift)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        query: Tensor,
        gate: Tensor,
        padding: Tensor | None,
        out_padding: Tensor | None,
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Update map and tokens.

        Args:
            x: ``(B, C, H, W)``.
            tokens: ``(B·M, d)``, with the bias of this block's first bridge added.
            query: of that bridge, ``(B, heads·M, C)``, from the block before, see :class:`TokenReads`; by head where a
                graph is exported.
            gate: the same of its gate, before the sigmoid.
            padding: ``(B, 1, H, W)`` bool, True where the input map is padding.
            out_padding: the same for the output map.

        Returns:
            The map ``(B, C', H', W')``, the tokens ``(B·M, d)`` with the following bridge's bias added, and its query
            and gate ``(B, heads·M, C')``, where there is one.
        """
        count = self.count
        tokens, logits = self.to_former(x, tokens, query, gate, padding)
        tokens = self.former(tokens, count)
        if self.spatial_dynamic_relu:
            logits = logits.unflatten(1, (HEADS, count)).mean(1).unflatten(2, x.shape[2:])
            mixing = (halve(logits, padding) if self.downsamples else logits).softmax(1)
            guide = tokens.reshape(-1, count, tokens.shape[1])
        else:
            mixing, guide = None, tokens[::count]
        if self.downsamples:
            x = self.mobile(x, guide, mixing, padding, out_padding)
        else:
            x = self.mobile(x, guide, mixing, padding)
        if torch.compiler.is_exporting():
            key, value, *asked = self.reads.by_head(tokens, count)
            weights = (key @ split_channels(x)).softmax(2)
            return x + (value.transpose(2, 3) @ weights).reshape(x.shape), tokens, asked
        key, value, *asked = self.reads(tokens, count)
        positions = x.flatten(2)
        weights = torch.bmm(key, positions).unflatten(1, (HEADS, count)).softmax(2).flatten(1, 2)
        told = torch.baddbmm(positions.transpose(1, 2), weights.transpose(1, 2), value)
        return told.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2), tokens, asked


class TokenReads(InferenceModule):
    """All that bridges read of the tokens after a block, as one linear.

    Each token comes once for each head, with the other heads' channels 0, or of the gate so low that its sigmoid is 0.
    Then one product serves all heads, and the map's channels stay together, as they lie in memory: that is faster than
    half as many multiplications of a map in parts.

    Args:
        to_mobile: the block's own bridge to its map, if it has one: key, scaled, and value.
        following: the bridge that reads tokens and map next, if there is one: query, scaled, and gate.
    """

    def __init__(self, to_mobile: FormerToMobile | None, following: MobileToFormer | None):
        super().__init__()
        layers = []
        if to_mobile is not None:
            layers += [_scaled_for_heads(to_mobile.key, HEADS), to_mobile.value]
        if following is not None:
            layers += [_scaled_for_heads(following.query, HEADS), following.gate]
        self.linear = merged(layers)
        self.parts = len(layers)
        heads = _heads(self.linear.weight, HEADS, layers[0].out_features)[:, None]
        floor = torch.zeros_like(heads).repeat(1, 1, self.parts)
        if following is not None:
            floor[..., -heads.shape[-1] :] = -3 * (1 - heads)
        heads = heads.repeat(1, 1, self.parts)
        self.register_buffer("heads", heads)
        self.register_buffer("floor", floor)

    def forward(self, tokens: Tensor, count: int) -> Sequence[Tensor]:
        """Of ``(B·M, d)``, key, value, query and gate in this order, each ``(B, heads·M, C)``."""
        heads = self._buffers["heads"]
        read = self.linear(tokens).reshape(-1, 1, count, heads.shape[-1])
        return torch.addcmul(self._buffers["floor"], read, heads).flatten(1, 2).chunk(self.parts, 2)

    def by_head(self, tokens: Tensor, count: int) -> Sequence[Tensor]:
        """The same, each ``(B, heads, M, C / heads)``: other runtimes are faster at two small products than PyTorch."""
        parts = self.parts * HEADS
        read = self.linear(tokens).reshape(-1, count, parts, self.linear.out_features // parts)
        return read.transpose(1, 2).chunk(self.parts, 1)


class DeployedToFormer(InferenceModule):
    """:class:`mobile_former.bridge.MobileToFormer`, gated, for inference; its reads of the tokens come from outside.

    Args:
        to_former: the trained part.
    """

    def __init__(self, to_former: MobileToFormer):
        super().__init__()
        self.weight = _by_input(2 * to_former.output.weight)  # the gate is twice a sigmoid
        self.norm = with_shift(to_former.norm)

    def forward(
        self, x: Tensor, tokens: Tensor, query: Tensor, gate: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update the tokens, see :meth:`DeployedBlock.forward`.

        Returns:
            The tokens ``(B·M, d)``, and the logits ``(B, heads·M, H·W)`` before softmax and mask.
        """
        weight = self._parameters["weight"]
        if query.ndim == 4:  # by head
            positions = split_channels(x)
            logits = query @ positions  # (B, heads, M, H·W)
            visible = logits if padding is None else mask_logits(logits, padding.flatten(2)[:, None])
            gathered = (visible.softmax(3) @ positions.transpose(2, 3)) * F.hardsigmoid(gate)
            gathered = gathered.transpose(1, 2).reshape(-1, x.shape[1])  # (B·M, C)
            return self.norm(torch.addmm(tokens, gathered, weight)), logits.flatten(1, 2)
        positions = x.flatten(2)
        if x.shape[1] != query.shape[2]:  # a filled map
            query, gate = (with_zeros(read, 2, x.shape[1]) for read in (query, gate))
            weight = with_zeros(weight, 0, x.shape[1])
        logits = torch.bmm(query, positions)
        visible = logits if padding is None else mask_logits(logits, padding.flatten(2))
        gathered = torch.bmm(visible.softmax(2), positions.transpose(1, 2)) * F.hardsigmoid(gate)
        gathered = gathered.reshape(x.shape[0], HEADS, -1, x.shape[1]).sum(1).flatten(0, 1)  # (B·M, C)
        return self.norm(torch.addmm(tokens, gathered, weight)), logits


class DeployedFormer(InferenceModule):
    """:class:`mobile_former.former.Former` for inference.

    Args:
        former: the trained part.
    """

    def __init__(self, former: Former):
        super().__init__()
        self.query = _scaled_for_heads(former.query, FORMER_HEADS)
        self.register_buffer("heads", _heads(former.query.weight, FORMER_HEADS, former.query.out_features)[:, None])
        self.output = scaled(former.output)
        shift = former.ffn[2].bias
        self.attention_norm = with_shift(former.attention_norm, shift)
        self.expand = shifted(former.ffn[0], shift)
        self.weight = _by_input(former.ffn[2].weight)
        self.ffn_norm = with_shift(former.ffn_norm)

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Let the tokens ``(B·M, d)``, M of an image, exchange what they gathered."""
        # Each token once for each head, with the other heads' features 0: a few products with 0 in place of copies.
        keys = (tokens.reshape(-1, 1, count, tokens.shape[1]) * self._buffers["heads"]).flatten(1, 2)  # (B, heads·M, d)
        logits = torch.bmm(self.query(tokens).reshape(-1, count, tokens.shape[1]), keys.transpose(1, 2))
        weights = logits.unflatten(2, (FORMER_HEADS, count)).softmax(3).flatten(2)
        gathered = torch.bmm(weights, keys).flatten(0, 1)
        tokens = self.attention_norm(tokens + self.output(gathered))
        return self.ffn_norm(torch.addmm(tokens, _gelu(self.expand(tokens)), self._parameters["weight"]))


class DeployedClassifier(InferenceModule):
    """:class:`mobile_former.model.Classifier` for inference.

    Args:
        classifier: the trained part.
        count: number of tokens.
    """

    def __init__(self, classifier: Classifier, *, count: int):
        super().__init__()
        self.count = count
        self.to_former = DeployedToFormer(classifier.to_former)
        self.expand = Pointwise(classifier.expand, in_shuffle=classifier.shuffle, relu6=True)
        self.features = fold_features_norm(classifier.features, classifier.norm)
        self.logits = scaled(classifier.logits)

    def forward(self, x: Tensor, tokens: Tensor, asked: Sequence[Tensor]) -> Tensor:
        """Classify what :meth:`DeployedBackbone.shifted_features` gave: logits ``(B, num_classes)``."""
        # Of the tokens, only the first is read.
        count = self.count
        token, _ = self.to_former(x, tokens[::count], *(part[..., ::count, :] for part in asked), None)
        pooled = self.expand(x).mean((2, 3))
        features = _one_row(self.features, torch.cat([F.hardswish(pooled), token], dim=1))
        return _one_row(self.logits, F.hardswish(features))


def _can_fill(backbone: Backbone) -> bool:
    """Whether in ONNX graphs the stem's map can be filled: those that read it have to know, and few of them do."""
    lites = list(itertools.takewhile(lambda block: isinstance(block, Lite), backbone.blocks))
    readers_know = lites and (not lites[-1].residual or backbone.blocks[len(lites)].downsamples)
    return bool(readers_know) and backbone.stem.conv.out_channels < BLOCK


def _one_row(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear, or what was put in its place, over ``(B, in)``; in an ONNX graph a convolution of a single position.

    Such linears read more weights than a processor's caches hold. ONNX Runtime reads those of a convolution in four
    streams, those of a product in two, which takes a quarter longer.
    """
    if not (makes_onnx() and isinstance(layer, nn.Linear)):
        return layer(x)
    return F.conv2d(x[..., None, None], layer.weight[..., None, None], layer.bias).flatten(1)


def _heads(like: Tensor, heads: int, width: int) -> Tensor:
    """Which features belong to which head: ``(heads, width)`` of 0 and 1."""
    return torch.eye(heads, device=like.device, dtype=like.dtype).repeat_interleave(width // heads, 1)


def _by_input(weight: Tensor) -> nn.Parameter:
    """A linear's weight ``(out, in)`` as ``(in, out)``, as :class:`InferenceLinear` too has it lie in memory."""
    return nn.Parameter(weight.detach().t().contiguous())


def _scaled_for_heads(layer: nn.Linear, heads: int) -> nn.Linear:
    return scaled(layer, (layer.out_features // heads) ** -0.5)


def _gelu(x: Tensor) -> Tensor:
    """Of ``(B·M, d)``. For a contiguous tensor PyTorch asks oneDNN, which for tokens takes five times as long."""
    return F.gelu(x) if torch.compiler.is_compiling() else F.gelu(x.mT).mT
