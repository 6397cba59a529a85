"""RetinaNet's losses, and its assignment of anchors to objects (Lin et al., ICCV 2017, section 4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.anchors import encode
from detection.boxes.geometry import cxcywh_to_xyxy, iou
from detection.losses.focal import focal_loss
from detection.losses.mixed_precision import without_autocast
from detection.losses.normaliser import normaliser
from detection.losses.parts import parts
from detection.losses.targets import check_targets

POSITIVE, NEGATIVE = 0.5, 0.4  # intersection over union
IGNORED, BACKGROUND = -2, -1


class RetinaNetCriterion(nn.Module):
    """RetinaNet's losses: the focal loss of the classes and the L1 loss of the box offsets.

    The focal loss covers all anchors except those on padding and those that :func:`assign` ignores. The L1 loss covers
    only the anchors that are assigned to an object.

    Args:
        num_classes: number of classes K.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Assign anchors to objects and compute the losses.

        Args:
            outputs: output of :class:`detection.models.retinanet.RetinaNet`.
            targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``,
                cxcywh, normalised to 0..1.

        Returns:
            A dictionary from name to scalar. Losses are divided by the number of anchors that are assigned to an
            object, or by 1 if there are none. In training, this number is averaged over processes.

            - ``loss_ce``: focal loss.
            - ``loss_bbox``: L1 loss of the offsets.
            - ``total``: sum of both losses.

        Raises:
            InputError: the targets have a wrong number, shape, type or value.
        """
        check_targets(targets, len(outputs["logits"]), self.num_classes)
        anchors = outputs["anchors"]
        with without_autocast(anchors.device):
            boxes = [
                target["boxes"].to(anchors.dtype) * extent.repeat(2)
                for target, extent in zip(targets, outputs["extent"], strict=True)
            ]
            assigned = [
                assign(anchors, pixels).masked_fill(padding, IGNORED)
                for pixels, padding in zip(boxes, outputs["padding"], strict=True)
            ]
            entropy = distance = outputs["offsets"].sum() * 0  # offsets need a gradient, also without objects
            positives = sum((objects >= 0).sum() for objects in assigned).to(entropy.dtype)
            count = normaliser(positives, training=self.training)
            for logits, offsets, objects, pixels, target in zip(
                outputs["logits"], outputs["offsets"], assigned, boxes, targets, strict=True
            ):
                positive, counted = objects >= 0, objects != IGNORED
                classes = torch.full_like(objects, self.num_classes)
                classes[positive] = target["labels"][objects[positive]]
                wanted = F.one_hot(classes[counted], self.num_classes + 1)[:, :-1].to(logits.dtype)
                entropy = entropy + focal_loss(logits[counted], wanted).sum()
                expected = encode(pixels[objects[positive]], anchors[positive])
                distance = distance + (offsets[positive] - expected).abs().sum()
            losses = {"loss_ce": entropy / count, "loss_bbox": distance / count}
        return losses | {"total": sum(losses.values())}


@torch.no_grad()
def assign(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Assign each anchor of one image to an object or to the background, or ignore it.

    Each anchor is compared with the object that it overlaps most, by intersection over union (IoU). If the IoU is 0.5
    or more, the anchor is assigned to this object. If the IoU is below 0.4, the anchor is background. Between these
    limits, the anchor is ignored. In addition, each object gets the anchors that have the highest IoU with
    this object. This IoU may be below 0.5 but must be above 0.

    Args:
        anchors: ``(A, 4)``, cxcywh in pixels.
        boxes: boxes of the objects ``(n, 4)``, cxcywh in pixels.

    Returns:
        ``(A,)`` long: the index of an object, -1 for background, -2 for ignored.
    """
    objects = torch.full((len(anchors),), BACKGROUND, dtype=torch.long, device=anchors.device)
    if len(boxes) == 0:
        return objects
    corners = cxcywh_to_xyxy(anchors)[:, None]
    best, nearest, claimed = torch.full_like(anchors[:, 0], -1), objects.clone(), objects.clone()
    for numbers in parts(len(boxes), len(anchors), boxes.device):
        overlaps = iou(corners, cxcywh_to_xyxy(boxes[numbers]))  # (A, part of n)
        overlap, position = overlaps.max(1)
        nearest = torch.where(overlap > best, numbers[position], nearest)
        best = torch.maximum(best, overlap)
        highest = overlaps.amax(0)
        anchor, position = ((overlaps == highest) & (highest > 0)).nonzero(as_tuple=True)
        # If two objects have the same best anchor, it is assigned to the last of them.
        claimed.scatter_reduce_(0, anchor, numbers[position], "amax")
    objects[best >= NEGATIVE] = IGNORED
    objects[best >= POSITIVE] = nearest[best >= POSITIVE]
    return torch.where(claimed >= 0, claimed, objects)
