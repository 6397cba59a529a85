"""DETR's set loss (Carion et al., ECCV 2020, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.boxes import cxcywh_to_xyxy, generalised_iou
from detection.losses.distributed import normaliser
from detection.losses.focal import focal_loss
from detection.losses.matcher import HungarianMatcher, Pairs
from detection.losses.precision import at_least_float32, without_autocast
from mobile_former.errors import InputError


class SetCriterion(nn.Module):
    """Cross-entropy, L1 and generalised IoU between matched predictions and objects, layer by layer.

    Args:
        num_classes: number of classes K; class K is "no object".
        focal: whether classes are told by sigmoid, without a class "no object"; focal loss, divided like the box
            losses, is then the classes' loss.
        matcher: assigns predictions to objects; default: DETR's costs, with ``focal`` Deformable DETR's.
        no_object_weight: weight of "no object" in the cross-entropy.
        weight_ce: weight of the cross-entropy in the total; default: 1, with ``focal`` 2.
        weight_bbox: weight of the L1 distance in the total.
        weight_giou: weight of the generalised IoU loss in the total.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        focal: bool = False,
        matcher: HungarianMatcher | None = None,
        no_object_weight: float = 0.1,
        weight_ce: float | None = None,
        weight_bbox: float = 5,
        weight_giou: float = 2,
    ):
        super().__init__()
        if matcher is not None and matcher.focal != focal:
            raise InputError(f"the matcher's focal is {matcher.focal}, the criterion's {focal}: they must be the same")
        self.num_classes = num_classes
        self.focal = focal
        self.matcher = matcher or HungarianMatcher(cost_class=2 if focal else 1, focal=focal)
        if weight_ce is None:
            weight_ce = 2 if focal else 1
        self.weights = {"loss_ce": weight_ce, "loss_bbox": weight_bbox, "loss_giou": weight_giou}
        class_weights = torch.ones(num_classes + 1)
        class_weights[num_classes] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compare predictions with objects.

        Args:
            outputs: ``logits`` ``(B, Q, K+1)`` (``focal``: ``(B, Q, K)``), ``boxes`` ``(B, Q, 4)``, and in
                ``auxiliary`` a list of the same for earlier layers.
            targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``; boxes are cxcywh in 0..1.

        Returns:
            ``loss_ce``, ``loss_bbox`` and ``loss_giou``, unweighted, with suffix ``_k`` for auxiliary layer k; and
            ``total``, their weighted sum. Box losses are divided by the number of objects in the batch, at least 1.

        Raises:
            InputError: targets of another form.
        """
        check_targets(targets, len(outputs["logits"]), self.num_classes)
        layers = [outputs, *outputs.get("auxiliary", ())]
        losses = {}
        with without_autocast(outputs["logits"].device):
            layers = [{name: at_least_float32(layer[name]) for name in ("logits", "boxes")} for layer in layers]
            counts = self._counts(layers[0]["boxes"], targets)
            for number, (layer, pairs) in enumerate(
                zip(layers, self.matcher.match_layers(layers, targets), strict=True)
            ):
                suffix = "" if number == 0 else f"_{number - 1}"
                losses |= {f"{name}{suffix}": loss for name, loss in self._layer(layer, targets, pairs, counts).items()}
            total = sum(self.weights[name.rstrip("0123456789").rstrip("_")] * loss for name, loss in losses.items())
        return losses | {"total": total}

    def _layer(self, layer: dict, targets: Sequence[dict], pairs: Pairs, counts: Tensor) -> dict[str, Tensor]:
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
            "loss_ce": self._classification(logits, classes, counts),
            "loss_bbox": (predicted - expected).abs().sum() / counts[0],
            "loss_giou": (1 - overlap).sum() / counts[0],
        }

    def _counts(self, boxes: Tensor, targets: Sequence[dict]) -> Tensor:
        """What losses are divided by: the number of objects, and the sum of the weights of all queries' classes."""
        queries = boxes.shape[1]
        objects = [len(target["labels"]) for target in targets]
        # As many queries as there are objects learn these, the others that there are none: in every layer.
        matched = sum(min(count, queries) for count in objects)
        weights = matched + (len(objects) * queries - matched) * self.class_weights[-1]
        counts = torch.stack([boxes.new_tensor(float(sum(objects))), weights.to(boxes)])
        return normaliser(counts, training=self.training)

    def _classification(self, logits: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
        if not self.focal:
            weights = self.class_weights.to(logits.dtype)
            return F.cross_entropy(logits.transpose(1, 2), classes, weights, reduction="sum") / counts[1]
        wanted = F.one_hot(classes, self.num_classes + 1)[..., :-1].to(logits.dtype)
        return focal_loss(logits, wanted).sum() / counts[0]


def check_targets(targets: Sequence[dict[str, Tensor]], images: int, num_classes: int) -> None:
    """Raise InputError where targets are not as many, or not of the form, that a loss needs.

    Values are looked at on the CPU alone: on a GPU, looking would make it wait.
    """
    if len(targets) != images:
        raise InputError(f"there are {len(targets)} targets for {images} images: give one for each")
    for number, target in enumerate(targets):
        labels, boxes = target["labels"], target["boxes"]
        if labels.ndim != 1 or labels.dtype != torch.long or boxes.shape != (len(labels), 4):
            raise InputError(
                f"target {number} has labels of shape {tuple(labels.shape)} and type {labels.dtype}, and boxes of "
                f"shape {tuple(boxes.shape)}: give labels (n,) of type torch.long and boxes (n, 4)"
            )
        if labels.device.type != "cpu" or len(labels) == 0:
            continue
        if labels.min() < 0 or labels.max() >= num_classes:
            raise InputError(
                f"target {number} has labels {labels.tolist()}: they count from 0, to {num_classes - 1} here"
            )
        if boxes.min() < 0 or boxes.max() > 1.001:
            raise InputError(f"target {number} has boxes beyond 0..1: give cxcywh in shares of the image's sides")
