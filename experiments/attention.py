"""See the bridge: where each token looks, and which token each place listens to, block by block.

    python -m experiments.attention IMAGE --ckpt runs/…/checkpoints/best.ckpt

For each image a picture of the bridge's attention and, for E2E-MF, one of the boxes after each of its blocks. In a
notebook: :func:`bridge_attention`, :func:`draw_bridge`, :func:`box_steps`, :func:`draw_boxes`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from classification.module import ClassificationModule
from classification.predict import CheckpointClassifier
from detection.boxes import cxcywh_to_xyxy
from detection.e2e_mf import E2EMobileFormer
from detection.module import DetectionModule
from detection.pictures import caption
from detection.predict import CheckpointDetector, listed
from experiments.attention_figures import best_queries, draw_boxes, draw_bridge
from mobile_former.block import MobileFormerBlock
from mobile_former.bridge import MobileToFormer
from mobile_former.deployed_backbone import DeployedBackbone
from mobile_former.deployed_mobile import DeployedMobile
from mobile_former.errors import InputError
from mobile_former.model import Backbone, MobileFormer
from mobile_former.padding import padding_pyramid
from mobile_former.training.checkpoint import load_checkpoint
from mobile_former.training.command import Parser, require_writable, run_command, tell_unreadable
from mobile_former.training.images import ImageError, expand, read_image, to_planes
from mobile_former.weights import read_file

__all__ = [
    "BlockAttention",
    "best_queries",
    "block_names",
    "box_steps",
    "bridge_attention",
    "draw_boxes",
    "draw_bridge",
    "load_predictor",
    "look",
    "recording",
]

_TOLD = 3  # classes or detections in a title

Predictor = CheckpointClassifier | CheckpointDetector


def main() -> None:
    """Draw by the command line's options."""
    parser = Parser(prog="python -m experiments.attention", description="Draw the bridge's attention, block by block.")
    parser.add_argument("images", type=str, nargs="+", help="images, folders, or quoted globs")
    parser.add_argument(
        "--ckpt_path", "--ckpt", type=str, required=True, help="a run's checkpoints/best.ckpt, of either task"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/attention"), help="a folder for the pictures")
    parser.add_argument(
        "--blocks", type=str, nargs="+", default=None, help="the blocks to draw, such as backbone3; default: all"
    )
    parser.add_argument("--head", type=int, default=None, help="the head to draw, 1 or 2; default: their mean")
    parser.add_argument(
        "--score_threshold", type=float, default=0.3, help="least score of a detection that is drawn, 0 to 1"
    )
    options = parser.parse_args()
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score_threshold is {options.score_threshold}: give a score from 0 to 1")

    paths = expand(options.images)
    names = _names(paths)
    predictor = load_predictor(options.ckpt_path)
    for name in names:  # before the work, so that none is lost
        require_writable(options.output / f"{name}-bridge.png")
    errors = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path)
        except (ImageError, FileNotFoundError) as error:
            errors.append(str(error))
            continue
        seen = look(predictor, image)
        title = f"{path.name}: {seen.told(options.score_threshold)}"
        figures = {
            "bridge": draw_bridge(
                seen.image,
                _chosen(seen.blocks, options.blocks),
                head=options.head,
                queries=seen.queries(options.score_threshold),
                title=title,
            )
        }
        if seen.steps:
            figures["boxes"] = draw_boxes(
                seen.image, seen.steps, seen.class_names, score_threshold=options.score_threshold, title=title
            )
        for kind, figure in figures.items():
            target = options.output / f"{name}-{kind}.png"
            figure.savefig(target)
            print(f"written: {target}")
    tell_unreadable(errors, len(paths))


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


def load_predictor(path: str | Path) -> Predictor:
    """Read a checkpoint of either task.

    Args:
        path: the ``.ckpt`` file.

    Returns:
        What predicts as the task's ``predict`` does, on the GPU where there is one.

    Raises:
        FileNotFoundError: no such file.
        InputError: no checkpoint, or one of another library's model.
    """
    content = read_file(Path(path))
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(options, dict) and "category_ids" in options:
        predictor = CheckpointDetector(*load_checkpoint(path, DetectionModule, "detection"))
    else:
        predictor = CheckpointClassifier(*load_checkpoint(path, ClassificationModule, "classification"))
    block_names(predictor.module.model)  # an error now, rather than after the first image
    return predictor


@dataclass(frozen=True)
class Look:
    """One image seen by a model.

    Attributes:
        image: as the model saw it, ``(H, W, 3)`` uint8, without padding.
        answer: of a classifier the best classes, ``{"class", "probability"}``, of a detector all that it found,
            ``{"label", "class", "score", "box"}``, boxes xyxy in pixels of the whole image; best first.
        class_names: of the labels.
        blocks: the bridge's attention.
        steps: of E2E-MF, see :func:`box_steps`; of others empty.
        seconds: that the model took.
    """

    image: np.ndarray
    answer: list[dict]
    class_names: list[str]
    blocks: list[BlockAttention]
    steps: list[dict[str, Tensor]]
    seconds: float

    def above(self, score_threshold: float = 0.3) -> list[dict]:
        """Of a detector's answer what has a least score, in 0..1; a classifier's as it is."""
        return [each for each in self.answer if each.get("score", 1) >= score_threshold]

    def told(self, score_threshold: float = 0.3) -> str:
        """The answer in a few words; of a detector, what has a least score."""
        answer = self.above(score_threshold)
        captions = [caption(each["class"], each.get("score", each.get("probability"))) for each in answer[:_TOLD]]
        others = len(answer) - _TOLD if answer and "score" in answer[0] else 0
        return (", ".join(captions) or "nothing found") + (f" and {others} more" if others > 0 else "")

    def queries(self, score_threshold: float = 0.3) -> dict[int, str]:
        """The queries of E2E-MF to draw, see :func:`best_queries`; none of other models."""
        return best_queries(self.steps, self.class_names, score_threshold=score_threshold) if self.steps else {}


def look(predictor: Predictor, image: np.ndarray, *, top_k: int = 5) -> Look:
    """Predict one image, prepared as ``predict`` does it, and record the bridge's attention.

    Args:
        predictor: as :func:`load_predictor` gives it.
        image: ``(H, W, 3)`` uint8 RGB, as it was read.
        top_k: classes to tell, at most.
    """
    model, names = predictor.module.model, predictor.class_names
    detects = isinstance(predictor, CheckpointDetector)
    targets = {"bboxes": np.zeros((0, 4)), "labels": []} if detects else {}
    prepared = predictor.transform(image=image, **targets)["image"]
    planes = to_planes(prepared)
    with recording(model) as record:
        start = time.perf_counter()
        if detects:
            (found,) = predictor.detect([planes], [image.shape[:2]])
        else:
            best = predictor.logits([planes])[0].softmax(0).topk(min(top_k, len(names)))
            values, labels = best.values.tolist(), best.indices.tolist()
        seconds = time.perf_counter() - start
    if detects:
        answer = listed(found, names, 0)
    else:
        answer = [{"class": names[each], "probability": value} for each, value in zip(labels, values, strict=True)]
    steps = box_steps(model, record.outputs) if isinstance(model, E2EMobileFormer) else []
    # Whoever keeps many of them shall not fill a GPU with them.
    steps = [{name: value.cpu() for name, value in step.items()} for step in steps]
    return Look(prepared, answer, names, [block.cpu() for block in record.blocks], steps, seconds)


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


def _chosen(blocks: Sequence[BlockAttention], names: Sequence[str] | None) -> list[BlockAttention]:
    known = [block.name for block in blocks]
    strange = [name for name in names or () if name not in known]
    if strange:
        raise InputError(f"--blocks: the model has no {strange[0]!r}, but {', '.join(known)}")
    return [block for block in blocks if names is None or block.name in names]


def _names(paths: Sequence[Path]) -> list[str]:
    """For each image what its pictures' names begin with: that of the file, with a number where several have it."""
    taken: set[str] = set()
    names = []
    for path in paths:
        number = 1
        name = path.stem
        while name.casefold() in taken:  # not every file system tells A from a
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


if __name__ == "__main__":
    run_command(main)
