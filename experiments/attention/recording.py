"""Record the attention between feature map and tokens in every block of a model, with forward hooks.

For the detector E2E-MF, the boxes after each block of its head are available too.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detection.boxes.geometry import cxcywh_to_xyxy
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
    """Attention between feature map and tokens in one block, as used in the forward pass.

    Attributes:
        name: ``backbone1``, ``backbone2``, … by position in the backbone, ``classifier`` for the classifier, and
            ``detector1``, ``detector2``, … for the blocks of E2E-MF's head. Blocks without such attention are not
            recorded, but count in the position.
        stride: stride of the output map of the block in pixels.
        input_stride: stride of the input map of the block in pixels.
        to_former: attention of the M tokens to the input map (Mobile→Former), ``(B, heads, M, H, W)``. The softmax is
            over the positions of the map. The attention is 0 on padding.
        to_mobile: attention of the output map to the tokens (Former→Mobile), ``(B, heads, M, H', W')``. The softmax is
            over the tokens. None if no layer uses the output map. This is so in the classifier and in the last block of
            E2E-MF.
    """

    name: str
    stride: int
    input_stride: int
    to_former: Tensor
    to_mobile: Tensor | None

    def cpu(self) -> "BlockAttention":
        """Return a copy of this object whose tensors are in CPU memory."""
        return replace(
            self, to_former=self.to_former.cpu(), to_mobile=None if self.to_mobile is None else self.to_mobile.cpu()
        )


@dataclass
class Recording:
    """Attention and output of the last forward pass of a model.

    Attributes:
        blocks: list of the attention of each block, in forward order.
        outputs: output of the model.
    """

    blocks: list[BlockAttention] = field(default_factory=list)
    outputs: object = None


def bridge_attention(model: nn.Module, images: Tensor, padding_mask: Tensor | None = None) -> list[BlockAttention]:
    """Run a model in evaluation mode, and return the attention between feature map and tokens in every block.

    The training mode of the model is restored afterwards.

    Args:
        model: a Mobile-Former classifier, an E2E-MF detector, or a RetinaNet with a Mobile-Former backbone.
        images: normalised images ``(B, 3, H, W)`` on the device of the model.
        padding_mask: ``(B, H, W)`` bool, True on padding. None: the images have no padding.

    Returns:
        A list with the attention of each block in forward order: first the blocks of the backbone, then the classifier
        or the blocks of E2E-MF's head.

    Raises:
        InputError: the attention of the model cannot be recorded, see :func:`recording`, or the model rejects the
            images.
    """
    modes = {module: module.training for module in model.modules()}
    with recording(model) as record, torch.no_grad():
        model.eval()
        try:
            if isinstance(model, MobileFormer) and padding_mask is not None:  # its forward takes no mask
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
    """Record the attention between feature map and tokens in the forward passes inside a ``with`` block.

    Hooks read the attention that the forward pass computes. Nothing is computed twice.

    Args:
        model: a Mobile-Former classifier, an E2E-MF detector, or a RetinaNet with a Mobile-Former backbone.

    Yields:
        A :class:`Recording`. Each forward pass replaces its content.

    Raises:
        InputError: the model has no attention between map and tokens, is compiled, or was converted by
            ``mobile_former.deploy``, which fuses the layers of this attention with other layers.
    """
    record = Recording()
    bridges = _bridges(model)
    with ExitStack() as hooks:  # removes every hook on exit
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: record.blocks.clear()))
        hooks.enter_context(
            model.register_forward_hook(lambda module, inputs, outputs: setattr(record, "outputs", outputs))
        )
        for bridge in bridges:
            for hook in _add_hooks(record, bridge):
                hooks.enter_context(hook)
        yield record


def box_steps(model: E2EMobileFormer, outputs: dict) -> list[dict[str, Tensor]]:
    """Return the predictions of E2E-MF's queries after each block of its head.

    Args:
        model: detector.
        outputs: output of the detector.

    Returns:
        A list of one dictionary per block: ``boxes`` ``(B, Q, 4)``, xyxy normalised to [0, 1], and the ``scores`` ``(B,
        Q)`` and ``labels`` ``(B, Q)`` of each query's best class. The order of the queries is the same in all blocks.
    """
    steps = []
    for step in (*outputs["auxiliary"], outputs):
        scores, labels = model.probabilities(step["logits"]).max(-1)
        boxes = cxcywh_to_xyxy(step["boxes"].float()).clamp(0, 1)
        steps.append({"boxes": boxes, "scores": scores, "labels": labels})
    return steps


def block_names(model: nn.Module) -> list[str]:
    """Return a list of the names of the blocks that :func:`recording` records, in forward order.

    Raises:
        InputError: the attention of the model cannot be recorded, see :func:`recording`.
    """
    return [bridge.name for bridge in _bridges(model)]


@dataclass(frozen=True)
class _Bridge:
    """A block with attention between feature map and tokens.

    Attributes:
        name: name of the block, see :class:`BlockAttention`.
        block: the block.
        stride: stride of its output map in pixels.
        input_stride: stride of its input map in pixels.
        map_is_used: whether any layer uses its output map.
    """

    name: str
    block: nn.Module
    stride: int
    input_stride: int
    map_is_used: bool = True


def _bridges(model: nn.Module) -> list[_Bridge]:
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise InputError("the attention of a compiled model cannot be recorded: give the model before torch.compile")
    if any(isinstance(module, DeployedBackbone | DeployedMobile) for module in model.modules()):
        raise InputError(
            "the model is in its inference form, where the bridge is folded into other layers: give the trained "
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
        found.append(_Bridge("classifier", model.classifier, 32, 32, map_is_used=False))
    if isinstance(model, E2EMobileFormer):
        last = len(model.blocks)
        for number, (block, stride) in enumerate(zip(model.blocks, model.strides, strict=True), start=1):
            found.append(_Bridge(f"detector{number}", block, stride, stride, map_is_used=number < last))
    if not found:
        raise InputError(
            f"{type(model).__name__} has no bridge between a map and tokens: give a Mobile-Former, or a detector that "
            "is built on it"
        )
    return found


def _has_bridge(block: nn.Module) -> bool:
    """Return whether a block has attention between feature map and tokens. Ablations can remove this attention."""
    return isinstance(block.to_former, MobileToFormer)


def _add_hooks(record: Recording, bridge: _Bridge) -> list[RemovableHandle]:
    """Register forward hooks that record the attention of one block.

    Args:
        record: recording to fill. In each forward pass, the hooks append the attention to its list ``blocks``.
        bridge: the block.

    Returns:
        List of handles, with which the hooks can be removed.
    """
    weights: dict[str, Tensor] = {}

    def keep(direction: str) -> Callable:
        return lambda module, inputs, attention: weights.update({direction: attention.detach()})

    def add(module: nn.Module, inputs: tuple, outputs: tuple | Tensor) -> None:
        to_former = weights["to_former"].unflatten(3, inputs[0].shape[2:])
        to_mobile = weights["to_mobile"].unflatten(3, outputs[0].shape[2:]) if bridge.map_is_used else None
        record.blocks.append(BlockAttention(bridge.name, bridge.stride, bridge.input_stride, to_former, to_mobile))

    block = bridge.block
    hooks = [block.to_former.attention.register_forward_hook(keep("to_former")), block.register_forward_hook(add)]
    if bridge.map_is_used:
        hooks.append(block.to_mobile.attention.register_forward_hook(keep("to_mobile")))
    return hooks
