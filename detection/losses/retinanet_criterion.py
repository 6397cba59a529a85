"""Which anchor learns which object, and RetinaNet's losses (Lin et al., ICCV 2017, section 4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.anchors import encode
from detection.boxes.boxes import cxcywh_to_xyxy, iou
from detection.losses.criterion import check_targets
from detection.losses.distributed import normaliser
from detection.losses.focal import focal_loss
from detection.losses.precision import without_autocast

POSITIVE, NEGATIVE = 0.5, 0.4  # intersection over union
IGNORED, BACKGROUND = -2, -1


class RetinaNetCriterion(nn.Module):
    """Focal loss of all anchors but the ignored, and L1 of the offsets of those that have an object.

    Args:
        num_classes: number of classes K.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare predictions with objects.

        Args:
            outputs: what :class:`detection.models.retinanet.RetinaNet` gave.
            targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``; boxes are cxcywh in 0..1.

        Returns:
            ``loss_ce`` and ``loss_bbox``, divided by the number of anchors with an object (in training averaged over
            processes), at least 1; and ``total``, their sum.

        Raises:
            InputError: targets of another form.
        """
        check_targets(targets, len(outputs["logits"]), self.num_classes)
        anchors = outputs["anchors"]
        with without_autocast(anchors.device):
            assigned = []
            boxes = []
            for target, padding, extent in zip(targets, outputs["padding"], outputs["extent"], strict=True):
                pixels = target["boxes"].to(anchors.dtype) * extent.repeat(2)
                boxes.append(pixels)
                assigned.append(assign(anchors, pixels).masked_fill(padding, IGNORED))
            entropy = distance = outputs["offsets"].sum() * 0
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
    """Each anchor's object.

    An anchor takes the object that it overlaps most, from an intersection over union of 0.5 on; it is background below
    0.4, and ignored between. So that no object goes without, the anchors that overlap it most take it whatever the
    overlap.

    Args:
        anchors: ``(A, 4)``, cxcywh in pixels.
        boxes: the objects, ``(n, 4)``, cxcywh in pixels.

    Returns:
        ``(A,)``: the number of an object, -1 for background, -2 to be ignored.
    """
    objects = torch.full((len(anchors),), BACKGROUND, dtype=torch.long, device=anchors.device)
    if len(boxes) == 0:
        return objects
    overlaps = iou(cxcywh_to_xyxy(anchors)[:, None], cxcywh_to_xyxy(boxes))  # (A, n)
    best, nearest = overlaps.max(1)
    objects[best >= NEGATIVE] = IGNORED
    objects[best >= POSITIVE] = nearest[best >= POSITIVE]
    highest = overlaps.amax(0)
    for number in range(len(boxes)):
        if highest[number] > 0:
            objects[overlaps[:, number] == highest[number]] = number
    return objects
