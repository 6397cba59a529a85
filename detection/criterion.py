"""DETR's set loss (Carion et al., ECCV 2020, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes import cxcywh_to_xyxy, generalised_iou
from detection.matcher import HungarianMatcher, Pairs


class SetCriterion(nn.Module):
    """Cross-entropy, L1 and generalised IoU between matched predictions and objects, layer by layer.

    Args:
        num_classes: number of classes K; class K is "no object".
        matcher: assigns predictions to objects.
        no_object_weight: weight of "no object" in the cross-entropy.
        weight_ce: weight of the cross-entropy in the total.
        weight_bbox: weight of the L1 distance in the total.
        weight_giou: weight of the generalised IoU loss in the total.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher | None = None,
        no_object_weight: float = 0.1,
        weight_ce: float = 1,
        weight_bbox: float = 5,
        weight_giou: float = 2,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher or HungarianMatcher()
        self.weights = {"loss_ce": weight_ce, "loss_bbox": weight_bbox, "loss_giou": weight_giou}
        class_weights = torch.ones(num_classes + 1)
        class_weights[num_classes] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare predictions with objects.

        Args:
            outputs: ``logits`` ``(B, Q, K+1)``, ``boxes`` ``(B, Q, 4)``, and in ``auxiliary`` a list of the same for
                earlier layers.
            targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``; boxes are cxcywh in 0..1.

        Returns:
            ``loss_ce``, ``loss_bbox`` and ``loss_giou``, unweighted, with suffix ``_k`` for auxiliary layer k; and
            ``total``, their weighted sum. Box losses are divided by the number of objects in the batch, at least 1.
        """
        layers = [outputs, *outputs.get("auxiliary", ())]
        losses = {}
        with torch.autocast(outputs["logits"].device.type, enabled=False):
            layers = [{name: _at_least_float(layer[name]) for name in ("logits", "boxes")} for layer in layers]
            count = self._count(targets, layers[0]["boxes"])
            for number, (layer, pairs) in enumerate(
                zip(layers, self.matcher.match_layers(layers, targets), strict=True)
            ):
                suffix = "" if number == 0 else f"_{number - 1}"
                losses |= {f"{name}{suffix}": loss for name, loss in self._layer(layer, targets, pairs, count).items()}
            total = sum(self.weights[name.rstrip("0123456789").rstrip("_")] * loss for name, loss in losses.items())
        return losses | {"total": total}

    def _layer(self, layer: dict, targets: Sequence[dict], pairs: Pairs, count: Tensor) -> dict[str, Tensor]:
        logits, boxes = layer["logits"], layer["boxes"]
        image = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        classes[image, query] = torch.cat(
            [t["labels"][objects] for t, (_, objects) in zip(targets, pairs, strict=True)]
        )
        expected = torch.cat([t["boxes"][objects] for t, (_, objects) in zip(targets, pairs, strict=True)]).to(boxes)
        predicted = boxes[image, query]
        overlap = generalised_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
        return {
            "loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, self.class_weights.to(logits.dtype)),
            "loss_bbox": (predicted - expected).abs().sum() / count,
            "loss_giou": (1 - overlap).sum() / count,
        }

    @staticmethod
    def _count(targets: Sequence[dict], like: Tensor) -> Tensor:
        """Objects in the batch, averaged over processes, at least 1."""
        count = like.new_tensor(float(sum(len(target["labels"]) for target in targets)))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count /= torch.distributed.get_world_size()
        return count.clamp(min=1)


def _at_least_float(x: Tensor) -> Tensor:
    """Losses are computed in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()
