"""Task-aligned one-to-many assignment and its losses (Feng et al., TOOD, ICCV 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.boxes import cxcywh_to_xyxy, generalised_iou, iou
from detection.losses.distributed import normaliser
from detection.losses.focal import GAMMA
from detection.losses.precision import without_autocast

TOP_POSITIONS = 10  # of an object
SCORE_POWER, IOU_POWER = 0.5, 6.0  # of the alignment
WEIGHTS = {"loss_dense_ce": 1, "loss_dense_bbox": 5, "loss_dense_giou": 2}

_NEGATIVES = 0.75  # weight of negatives (Zhang et al., VarifocalNet, CVPR 2021)


class DenseCriterion(nn.Module):
    """Compares every position of the maps with the objects it shall find.

    An object takes the ten positions within it whose alignment, ``score^½ · IoU⁶``, is best, or the nearest position
    where none lies within it; a position that several objects take goes to the one that it overlaps most. What a
    position shall score is its alignment, scaled so that an object's best position shall score the object's best IoU.
    """

    def forward(self, dense: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare.

        Args:
            dense: what :class:`detection.models.dense_head.DenseHead` gave.
            targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``; boxes are cxcywh in 0..1.

        Returns:
            ``loss_dense_ce`` (of which easy negatives count little), ``loss_dense_bbox`` and ``loss_dense_giou``,
            unweighted, divided by the sum of what positions shall score (in training averaged over processes), at
            least 1; and ``total``, their weighted sum.
        """
        with without_autocast(dense["logits"].device):
            logits, boxes = dense["logits"], dense["boxes"]
            wanted = torch.zeros_like(logits)
            images, positions, qualities, objects = [], [], [], []
            for image, target in enumerate(targets):
                if len(target["labels"]) == 0:
                    continue
                taken, chosen, quality = assign(
                    logits[image], boxes[image], dense["centres"][image], dense["padding"][image], target
                )
                wanted[image, taken, target["labels"][chosen]] = quality
                images.append(torch.full_like(taken, image))
                positions.append(taken)
                qualities.append(quality)
                objects.append(target["boxes"][chosen].to(boxes))
            focus = torch.where(wanted > 0, wanted, _NEGATIVES * logits.detach().sigmoid() ** GAMMA)
            entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * focus
            total = normaliser(wanted.sum(), training=self.training)
            losses = {"loss_dense_ce": entropy.masked_fill(dense["padding"][..., None], 0).sum() / total}
            if images:
                predicted = boxes[torch.cat(images), torch.cat(positions)]
                quality, expected = torch.cat(qualities), torch.cat(objects)
                overlap = generalised_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
                losses["loss_dense_bbox"] = ((predicted - expected).abs().sum(-1) * quality).sum() / total
                losses["loss_dense_giou"] = ((1 - overlap) * quality).sum() / total
            else:
                # Of the boxes nothing is known, but every process takes part in their gradient.
                losses["loss_dense_bbox"] = losses["loss_dense_giou"] = 0 * boxes.sum()
        return losses | {"total": sum(WEIGHTS[name] * loss for name, loss in losses.items())}


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, centres: Tensor, padding: Tensor, target: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the positions of an image's objects.

    Args:
        logits: ``(P, K)``.
        boxes: predicted at the positions, ``(P, 4)`` cxcywh.
        centres: of the positions, ``(P, 2)``.
        padding: ``(P,)`` bool, True on padding.
        target: ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)`` cxcywh, of one object or more.

    Returns:
        The positions taken ``(m,)``, the object of each ``(m,)``, and what each shall score ``(m,)``, in 0..1.
    """
    corners = cxcywh_to_xyxy(target["boxes"].to(boxes))  # (n, 4)
    distance = (centres[:, None] - target["boxes"][:, :2].to(boxes)).square().sum(-1)  # (P, n)
    distance = distance.masked_fill(padding[:, None], torch.inf)
    inside = ((centres[:, None] > corners[:, :2]) & (centres[:, None] < corners[:, 2:])).all(-1) & ~padding[:, None]
    nearest = F.one_hot(distance.argmin(0), len(centres)).T.bool()
    inside |= nearest & ~inside.any(0)
    overlap = iou(cxcywh_to_xyxy(boxes)[:, None], corners) * inside
    alignment = logits[:, target["labels"]].sigmoid() ** SCORE_POWER * overlap**IOU_POWER
    # Among equals, as where nothing overlaps yet, the nearest come first.
    order = alignment + 1e-9 / (1 + distance)
    best = order.masked_fill(~inside, -1).topk(min(TOP_POSITIONS, len(centres)), dim=0).indices
    taken = torch.zeros_like(inside).scatter_(0, best, value=True) & inside
    objects = overlap.masked_fill(~taken, -1).argmax(1)
    positions = taken.any(1).nonzero()[:, 0]
    objects = objects[positions]
    own = torch.zeros_like(taken)
    own[positions, objects] = True
    alignment, overlap = alignment * own, overlap * own
    scale = overlap.amax(0) / alignment.amax(0).clamp(min=torch.finfo(alignment.dtype).tiny)
    return positions, objects, alignment[positions, objects] * scale[objects]
