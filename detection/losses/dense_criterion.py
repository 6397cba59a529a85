"""Losses of the dense detection head, with task-aligned one-to-many assignment (Feng et al., TOOD, ICCV 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.geometry import cxcywh_to_xyxy, generalised_iou, iou
from detection.losses.focal import GAMMA
from detection.losses.mixed_precision import without_autocast
from detection.losses.normaliser import normaliser
from detection.losses.parts import parts

TOP_POSITIONS = 10  # positions per object
SCORE_POWER, IOU_POWER = 0.5, 6.0  # exponents of the alignment
WEIGHTS = {"loss_dense_ce": 1, "loss_dense_bbox": 5, "loss_dense_giou": 2}

_NEGATIVE_WEIGHT = 0.75  # Zhang et al., VarifocalNet, CVPR 2021


class DenseCriterion(nn.Module):
    """Losses of the dense head, which predicts class logits and a box at every position of the feature maps.

    The alignment of a position with an object is ``score^½ · IoU⁶``. Here, ``score`` is the predicted probability of
    the object's class, and ``IoU`` compares the predicted box with the object's box. Each object takes the ten
    positions inside its box whose alignment is highest. If no position is inside the box, the object takes the position
    nearest to it. If several objects take the same position, the position is assigned to the object with the highest
    IoU.

    The target score of a position is its alignment times a factor. All positions of an object have the same factor. The
    factor is chosen so that the highest target score of the object equals the highest IoU of these positions.

    In the box losses, each object has the same weight, which its positions share in proportion to their target scores.
    In TOOD, the target score itself is the weight. This is not done here, because small objects would have little
    weight: they take few positions, and their target scores are low as long as their predicted boxes are poor
    (experiments/README.md).
    """

    def forward(self, dense: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Assign objects to positions and compute the losses.

        Args:
            dense: output of :class:`detection.models.dense_head.DenseHead`.
            targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``,
                cxcywh, normalised to 0..1.

        Returns:
            A dictionary from name to scalar. Each loss except ``total`` is unweighted. The divisors below are at least
            1. In training, they are averaged over processes.

            - ``loss_dense_ce``: cross-entropy with the target scores, divided by the sum of the target scores. Easy
              negatives are down-weighted.
            - ``loss_dense_bbox``: L1 distance of the boxes, averaged over the objects with positions.
            - ``loss_dense_giou``: generalised IoU loss, averaged over the same objects.
            - ``total``: weighted sum of these losses.
        """
        with without_autocast(dense["logits"].device):
            logits, boxes = dense["logits"], dense["boxes"]
            wanted = torch.zeros_like(logits)
            images, positions, weights, objects = [], [], [], []
            for image, target in enumerate(targets):
                if len(target["labels"]) == 0:
                    continue
                taken, chosen, quality = assign(
                    logits[image], boxes[image], dense["centres"][image], dense["padding"][image], target
                )
                wanted[image, taken, target["labels"][chosen]] = quality
                images.append(torch.full_like(taken, image))
                positions.append(taken)
                weights.append(shares(quality, chosen, len(target["labels"])))
                objects.append(target["boxes"][chosen].to(boxes))
            weight = torch.where(wanted > 0, wanted, _NEGATIVE_WEIGHT * logits.detach().sigmoid() ** GAMMA)
            entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight
            total = normaliser(wanted.sum(), training=self.training)
            losses = {"loss_dense_ce": entropy.masked_fill(dense["padding"][..., None], 0).sum() / total}
            # Without objects the losses are 0, but boxes still need a gradient: every process must reduce it.
            losses["loss_dense_bbox"] = losses["loss_dense_giou"] = 0 * boxes.sum()
            learned = normaliser(sum((share.sum() for share in weights), 0 * total), training=self.training)
            if images:
                predicted = boxes[torch.cat(images), torch.cat(positions)]
                weight, expected = torch.cat(weights), torch.cat(objects)
                overlap = generalised_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
                losses["loss_dense_bbox"] = ((predicted - expected).abs().sum(-1) * weight).sum() / learned
                losses["loss_dense_giou"] = ((1 - overlap) * weight).sum() / learned
        return losses | {"total": sum(WEIGHTS[name] * loss for name, loss in losses.items())}


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, centres: Tensor, padding: Tensor, target: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Assign the objects of one image to positions of the feature maps, as described in :class:`DenseCriterion`.

    Args:
        logits: class logits of the positions ``(P, K)``.
        boxes: predicted boxes ``(P, 4)``, cxcywh, normalised to 0..1.
        centres: centres of the positions ``(P, 2)``, x and y, normalised to 0..1.
        padding: ``(P,)`` bool, True on padding.
        target: dictionary with ``labels`` ``(n,)`` long and ``boxes`` ``(n, 4)``, cxcywh, normalised to 0..1. n is at
            least 1.

    Returns:
        A tuple of three tensors ``(m,)``: the indices of the positions with an object, the indices of their objects,
        and the target scores in 0..1.
    """
    count = len(target["labels"])
    taken = [
        _best_positions(logits, boxes, centres, padding, target["labels"][part], target["boxes"][part].to(boxes), part)
        for part in parts(count, len(centres), boxes.device)
    ]
    positions, objects, alignment, overlap = (torch.cat(values) for values in zip(*taken, strict=True))
    # Each position keeps the object with the highest IoU, the first of several.
    highest = overlap.new_full((len(centres),), -1).scatter_reduce_(0, positions, overlap, "amax")
    best = overlap == highest[positions]
    first = objects.new_full((len(centres),), count).scatter_reduce_(0, positions[best], objects[best], "amin")
    kept = (best & (objects == first[positions])).nonzero()[:, 0]
    kept = kept[positions[kept].argsort()]
    positions, objects, alignment, overlap = (values[kept] for values in (positions, objects, alignment, overlap))
    most_overlap, most_alignment = (
        values.new_zeros(count).scatter_reduce_(0, objects, values, "amax") for values in (overlap, alignment)
    )
    scale = most_overlap / most_alignment.clamp(min=torch.finfo(alignment.dtype).tiny)
    return positions, objects, alignment * scale[objects]


def shares(scores: Tensor, objects: Tensor, count: int) -> Tensor:
    """Divide the target score of each position by the sum of the target scores of its object.

    Args:
        scores: target scores ``(m,)``.
        objects: index of the object of each position ``(m,)``.
        count: number of objects.

    Returns:
        ``(m,)`` in 0..1. The shares of an object sum to 1, or are 0 if all its scores are 0.
    """
    total = scores.new_zeros(count).scatter_add_(0, objects, scores)
    return scores / total[objects].clamp(min=torch.finfo(scores.dtype).tiny)


def _best_positions(
    logits: Tensor, boxes: Tensor, centres: Tensor, padding: Tensor, labels: Tensor, objects: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the positions that each object takes. Several objects can take the same position.

    Args:
        logits: class logits ``(P, K)``. For ``boxes``, ``centres`` and ``padding``, see :func:`assign`.
        labels: labels of the objects ``(n,)``.
        objects: boxes of the objects ``(n, 4)``, cxcywh, normalised to 0..1.
        numbers: indices of the objects in their image ``(n,)``.

    Returns:
        A tuple of four tensors ``(m,)``: the indices of the positions, the indices of their objects, the alignments and
        the IoUs.
    """
    corners = cxcywh_to_xyxy(objects)
    distance = (centres[:, None] - objects[:, :2]).square().sum(-1)  # (P, n)
    distance = distance.masked_fill(padding[:, None], torch.inf)
    inside = ((centres[:, None] > corners[:, :2]) & (centres[:, None] < corners[:, 2:])).all(-1) & ~padding[:, None]
    nearest = F.one_hot(distance.argmin(0), len(centres)).T.bool()
    inside |= nearest & ~inside.any(0)
    overlap = iou(cxcywh_to_xyxy(boxes)[:, None], corners) * inside
    alignment = logits[:, labels].sigmoid() ** SCORE_POWER * overlap**IOU_POWER
    # Positions of equal alignment, for example 0 before boxes overlap anything, are ordered by distance.
    order = alignment + 1e-9 / (1 + distance)
    best = order.masked_fill(~inside, -1).topk(min(TOP_POSITIONS, len(centres)), dim=0).indices
    taken = inside.gather(0, best)
    return best[taken], numbers.expand_as(best)[taken], alignment.gather(0, best)[taken], overlap.gather(0, best)[taken]
