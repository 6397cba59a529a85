"""DETR's loss between a set of predictions and a set of objects (Carion et al., ECCV 2020, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.boxes.geometry import cxcywh_to_xyxy, generalised_iou
from detection.losses.focal import focal_loss
from detection.losses.matcher import HungarianMatcher, Pairs
from detection.losses.mixed_precision import at_least_float32, without_autocast
from detection.losses.normaliser import normaliser
from detection.losses.targets import check_targets
from mobile_former.errors import InputError


class SetCriterion(nn.Module):
    """DETR's losses, which compare the prediction of each query with the object that is matched with the query.

    Each decoder layer has a classification loss, an L1 loss of the boxes and a generalised IoU loss of the boxes.

    Args:
        num_classes: number of classes K. Class K is "no object".
        focal: whether each class has its own sigmoid and there is no class "no object". The classification loss is then
            the focal loss, divided by the number of objects.
        matcher: assigns queries to objects. Default: a matcher with DETR's costs, or with Deformable DETR's costs if
            ``focal`` is set.
        no_object_weight: weight of "no object" in the cross-entropy.
        weight_ce: weight of the classification loss in the total. Default: 1, or 2 with ``focal``.
        weight_bbox: weight of the L1 loss in the total.
        weight_giou: weight of the generalised IoU loss in the total.

    Raises:
        InputError: ``matcher.focal`` differs from ``focal``.
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
        class_weight = 2 if focal else 1
        weight_ce = class_weight if weight_ce is None else weight_ce
        matcher = matcher or HungarianMatcher(cost_class=class_weight, focal=focal)
        if matcher.focal != focal:
            raise InputError(f"the matcher has focal={matcher.focal}, the criterion focal={focal}: give both the same")
        self.num_classes = num_classes
        self.focal = focal
        self.matcher = matcher
        self.weights = {"loss_ce": weight_ce, "loss_bbox": weight_bbox, "loss_giou": weight_giou}
        class_weights = torch.ones(num_classes + 1)
        class_weights[num_classes] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, outputs: dict, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Match predictions with objects and compute the losses.

        Args:
            outputs: dictionary with ``logits`` ``(B, Q, K+1)``, or ``(B, Q, K)`` with ``focal``, and ``boxes``
                ``(B, Q, 4)``, cxcywh, normalised to 0..1. These are the predictions of the last layer. The optional key
                ``auxiliary`` holds a list of such dictionaries, one for each earlier layer.
            targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``,
                cxcywh, normalised to 0..1.

        Returns:
            A dictionary from name to scalar:

            - ``loss_ce``, ``loss_bbox``, ``loss_giou``: losses of the last layer, unweighted. The cross-entropy is
              divided by the sum of the class weights of all queries. The focal loss and the box losses are divided by
              the number of objects in the batch, or by 1 if there are none. In training, divisors are averaged over
              processes.
            - ``loss_ce_k``, ``loss_bbox_k``, ``loss_giou_k``: the same losses of ``auxiliary[k]``.
            - ``total``: weighted sum of all losses.

        Raises:
            InputError: the targets have a wrong number, shape, type or value.
        """
        check_targets(targets, len(outputs["logits"]), self.num_classes)
        losses, total = {}, 0
        with without_autocast(outputs["logits"].device):
            layers = [
                {name: at_least_float32(layer[name]) for name in ("logits", "boxes")}
                for layer in (outputs, *outputs.get("auxiliary", ()))
            ]
            matched = self.matcher.match_layers(layers, targets)
            divisors = self._divisors(layers[0]["boxes"], targets)
            for number, (layer, pairs) in enumerate(zip(layers, matched, strict=True)):
                suffix = f"_{number - 1}" if number else ""
                for name, loss in self._layer_losses(layer, targets, pairs, divisors).items():
                    losses[f"{name}{suffix}"] = loss
                    total = total + self.weights[name] * loss
        return losses | {"total": total}

    def _divisors(self, boxes: Tensor, targets: Sequence[dict]) -> Tensor:
        """Return a tensor ``(2,)`` with two divisors of losses: number of objects and sum of class weights.

        The sum is over all queries. The class weight of a query is 1 if the query is matched with an object, else
        ``no_object_weight``. In training, both divisors are averaged over processes. ``boxes`` ``(B, Q, 4)`` are the
        predicted boxes; only their shape, dtype and device are used.
        """
        queries = boxes.shape[1]
        counts = [len(target["labels"]) for target in targets]
        matched = sum(min(count, queries) for count in counts)  # the same in every layer
        weights = matched + (len(counts) * queries - matched) * self.class_weights[-1]
        divisors = torch.stack([boxes.new_tensor(float(sum(counts))), weights.to(boxes)])
        return normaliser(divisors, training=self.training)

    def _layer_losses(self, layer: dict, targets: Sequence[dict], pairs: Pairs, divisors: Tensor) -> dict[str, Tensor]:
        logits, boxes = layer["logits"], layer["boxes"]
        image = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        labels, expected = (
            torch.cat([target[name][objects] for target, (_, objects) in zip(targets, pairs, strict=True)])
            for name in ("labels", "boxes")
        )
        classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        classes[image, query] = labels
        predicted, expected = boxes[image, query], expected.to(boxes)
        overlap = generalised_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
        return {
            "loss_ce": self._classification_loss(logits, classes, divisors),
            "loss_bbox": (predicted - expected).abs().sum() / divisors[0],
            "loss_giou": (1 - overlap).sum() / divisors[0],
        }

    def _classification_loss(self, logits: Tensor, classes: Tensor, divisors: Tensor) -> Tensor:
        if not self.focal:
            weights = self.class_weights.to(logits.dtype)
            return F.cross_entropy(logits.transpose(1, 2), classes, weights, reduction="sum") / divisors[1]
        wanted = F.one_hot(classes, self.num_classes + 1)[..., :-1].to(logits.dtype)
        return focal_loss(logits, wanted).sum() / divisors[0]
