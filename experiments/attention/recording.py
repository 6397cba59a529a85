"""Record the bridge's attention and the boxes of a model's forward passes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detection.boxes.boxes import cxcywh_to_xyxy
from detection.models.e2e_mf import E2EMobileFormer
from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import MobileToFormer
from mobile_former.deployment.backbone import DeployedBackbone
from mobile_former.deployment.mobile import DeployedMobile
from mobile_former.errors import InputError
from mobile_former.layers.padding import padding_pyramid
from mobile_former.model import Backbone, MobileFormer


@dataclass(frozen=True)
class BlockAttention:
    """The bridge's attention in one block, as the block's own forward pass used it.

    Attributes:
        name: ``backbone1`` and so on by the block's place in the backbone, of which some have no bridge; ``classifier``
            for the bridge that the classifier reads; ``detector1`` and so on for the blocks of E2E-MF's head.
        stride: pixels of the image to a place of the block's output map.
        input_stride: and of its input map.
        to_former: where each token looks: ``(B, heads, M, H, W)``, softmax over the places of the input map, 0 on
            padding.
        to_mobile: which token each place listens to: ``(B, heads, M, H', W')``, softmax over the tokens at each place
            of the output map; None where nothing reads that map: in the classifier, and in the last block of E2E-MF.
    """

    name: str
    stride: int
    input_stride: int
    to_former: Tensor
    to_mobile: Tensor | None

    def cpu(self) -> "BlockAttention":
        """The same in the CPU's memory."""
        return replace(
            self, to_former=self.to_former.cpu(), to_mobile=None if self.to_mobile is None else self.to_mobile.cpu()
        )


@dataclass
class Recording:
    """What a model's forward passes left.

    Attributes:
        blocks: the attention of all blocks, in their order.
        outputs: what the model gave.
    """

    blocks: list[BlockAttention] = field(default_factory=list)
    outputs: object = None


def bridge_attention(model: nn.Module, images: Tensor, padding_mask: Tensor | None = None) -> list[BlockAttention]:
    """The attention of both directions of the bridge, in all blocks, in evaluation mode.

    Args:
        model: a Mobile-Former classifier, an E2E-MF, or a RetinaNet on Mobile-Former.
        images: ``(B, 3, H, W)``, normalised, on the model's device.
        padding_mask: ``(B, H, W)`` bool, True on padding.

    Returns:
        The backbone's blocks that have a bridge, then the classifier's or E2E-MF's.

    Raises:
        InputError: a model without a bridge that could be seen, see :func:`recording`; or images that it cannot take.
    """
    modes = {module: module.training for module in model.modules()}
    with recording(model) as record, torch.no_grad():
        model.eval()
        try:
            if isinstance(model, MobileFormer) and padding_mask is not None:  # whose forward takes none
                maps, tokens = model.backbone(images, padding_mask)
                model.classifier(maps[32], tokens, padding_pyramid(padding_mask, (32,))[32])
            elif isinstance(model, MobileFormer):
                model(images)
            else:
                model(images, padding_mask)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return record.blocks


@contextmanager
def recording(model: nn.Module) -> Iterator[Recording]:
    """Record the bridge's attention in the forward passes made meanwhile, by hooks: nothing is computed twice.

    Args:
        model: a Mobile-Former classifier, an E2E-MF, or a RetinaNet on Mobile-Former.

    Yields:
        What the last forward pass left.

    Raises:
        InputError: another library's model, or the inference form, in which the bridge is folded into other layers.
    """
    record = Recording()
    bridges = _bridges(model)
    with ExitStack() as hooks:  # each handle removes its hook at the end
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: record.blocks.clear()))
        hooks.enter_context(
            model.register_forward_hook(lambda module, inputs, outputs: setattr(record, "outputs", outputs))
        )
        for bridge in bridges:
            for hook in _record(record, bridge):
                hooks.enter_context(hook)
        yield record


def box_steps(model: E2EMobileFormer, outputs: dict) -> list[dict[str, Tensor]]:
    """What the queries of E2E-MF predict after each of its blocks.

    Args:
        model: the detector.
        outputs: what it gave.

    Returns:
        For each block ``boxes`` ``(B, Q, 4)``, xyxy in 0..1 of the image, ``scores`` ``(B, Q)`` and ``labels``
        ``(B, Q)`` of the best class, in the order of the queries.
    """
    steps = []
    for step in (*outputs["auxiliary"], outputs):
        scores, labels = model.probabilities(step["logits"]).max(-1)
        boxes = cxcywh_to_xyxy(step["boxes"].float()).clamp(0, 1)
        steps.append({"boxes": boxes, "scores": scores, "labels": labels})
    return steps


def block_names(model: nn.Module) -> list[str]:
    """The names of the blocks that :func:`bridge_attention` tells of; raises what :func:`recording` does."""
    return [bridge.name for bridge in _bridges(model)]


@dataclass(frozen=True)
class _Bridge:
    """A block with a bridge; ``is_read`` tells whether anything reads the map that it gives."""

    name: str
    block: nn.Module
    stride: int
    input_stride: int
    is_read: bool = True


def _bridges(model: nn.Module) -> list[_Bridge]:
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise InputError("the model is compiled, and its attention cannot be seen: give the one before torch.compile")
    if any(isinstance(module, DeployedBackbone | DeployedMobile) for module in model.modules()):
        raise InputError(
            "the model is in its inference form, in which the bridge is folded into other layers: give the trained "
            "model, before mobile_former.deploy"
        )
    found = []
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, Backbone):
        strides = [2, *backbone.strides]
        for number, block in enumerate(backbone.blocks, start=1):
            if isinstance(block, MobileFormerBlock) and _has_bridge(block):
                found.append(_Bridge(f"backbone{number}", block, strides[number], strides[number - 1]))
    if isinstance(model, MobileFormer) and _has_bridge(model.classifier):
        found.append(_Bridge("classifier", model.classifier, 32, 32, is_read=False))
    if isinstance(model, E2EMobileFormer):
        last = len(model.blocks)
        for number, (block, stride) in enumerate(zip(model.blocks, model.strides, strict=True), start=1):
            found.append(_Bridge(f"detector{number}", block, stride, stride, is_read=number < last))
    if not found:
        raise InputError(
            f"{type(model).__name__} has no bridge between a map and tokens: give a Mobile-Former, or a detector on it"
        )
    return found


def _has_bridge(block: nn.Module) -> bool:
    """Whether a block's bridge is there, or an ablation has taken it out."""
    return isinstance(block.to_former, MobileToFormer)


def _record(record: Recording, bridge: _Bridge) -> list[RemovableHandle]:
    """Hooks that add a block's attention to the record."""
    weights: dict[str, Tensor] = {}

    def keep(direction: str) -> Callable:
        return lambda module, inputs, attention: weights.update({direction: attention.detach()})

    def add(module: nn.Module, inputs: tuple, outputs: tuple | Tensor) -> None:
        to_former = weights["to_former"].unflatten(3, inputs[0].shape[2:])
        to_mobile = weights["to_mobile"].unflatten(3, outputs[0].shape[2:]) if bridge.is_read else None
        record.blocks.append(BlockAttention(bridge.name, bridge.stride, bridge.input_stride, to_former, to_mobile))

    block = bridge.block
    hooks = [block.to_former.attention.register_forward_hook(keep("to_former")), block.register_forward_hook(add)]
    if bridge.is_read:
        hooks.append(block.to_mobile.attention.register_forward_hook(keep("to_mobile")))
    return hooks
