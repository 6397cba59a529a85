"""Hungarian matching of predictions with objects (Carion et al., DETR, ECCV 2020, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detection.boxes.boxes import cxcywh_to_xyxy, generalised_iou
from detection.losses.focal import focal_loss
from detection.losses.precision import at_least_float32, without_autocast

Pairs = list[tuple[Tensor, Tensor]]


class HungarianMatcher:
    """The assignment of queries to objects with the least total cost, each used at most once.

    Args:
        cost_class: weight of the class cost: minus the probability of the object's class.
        cost_l1: weight of the L1 distance of the boxes.
        cost_giou: weight of minus the generalised IoU.
        focal: whether classes are told by sigmoid; the class cost is then what the focal loss would gain (Zhu et al.,
            Deformable DETR, ICLR 2021).

    Raises:
        ValueError: all weights are 0.
    """

    def __init__(self, cost_class: float = 1, cost_l1: float = 5, cost_giou: float = 2, focal: bool = False):
        if cost_class == cost_l1 == cost_giou == 0:
            raise ValueError("all of the matcher's costs are 0: give at least one of them a weight")
        self.cost_class = cost_class
        self.cost_l1 = cost_l1
        self.cost_giou = cost_giou
        self.focal = focal

    def __call__(self, outputs: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Pairs:
        """Match one layer's predictions.

        Args:
            outputs: ``logits`` ``(B, Q, K+1)``, the last class being "no object" (``focal``: ``(B, Q, K)``); ``boxes``
                ``(B, Q, 4)``.
            targets: for each image ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``; boxes are cxcywh in 0..1.

        Returns:
            For each image the indices of the matched queries, ascending, and of their objects: ``min(Q, n)`` of both.
        """
        return self.match_layers([outputs], targets)[0]

    @torch.no_grad()
    def match_layers(self, layers: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> list[Pairs]:
        """Match several layers' predictions, with one computation of the costs and one transfer to the host.

        Args:
            layers: for each layer what ``outputs`` is above, all of one shape.
            targets: as above.

        Returns:
            For each layer what a call returns.
        """
        device = layers[0]["logits"].device
        counts = [len(target["labels"]) for target in targets]
        with without_autocast(device):
            logits = torch.stack([layer["logits"] for layer in layers])  # (L, B, Q, K+1)
            boxes = torch.stack([layer["boxes"] for layer in layers])
            costs = self._costs(at_least_float32(logits), at_least_float32(boxes), targets, max(counts, default=0))
        costs = costs.cpu().numpy()  # (L, B, Q, most objects)
        matched = []
        for layer in costs:
            pairs = []
            for image, count in zip(layer, counts, strict=True):
                queries, objects = linear_sum_assignment(image[:, :count])
                order = np.argsort(queries)
                pairs.append(
                    tuple(
                        torch.as_tensor(indices[order], dtype=torch.long, device=device)
                        for indices in (queries, objects)
                    )
                )
            matched.append(pairs)
        return matched

    def _costs(self, logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]], most: int) -> Tensor:
        """Costs ``(L, B, Q, most)``, with meaningless values where an image has fewer objects."""
        labels = logits.new_zeros((len(targets), most), dtype=torch.long)
        objects = boxes.new_full((len(targets), most, 4), 0.5)
        for index, target in enumerate(targets):
            labels[index, : len(target["labels"])] = target["labels"]
            objects[index, : len(target["labels"])] = target["boxes"].to(boxes)
        index = labels[None, :, None, :].expand(*logits.shape[:3], most)
        classes = self._class_costs(logits).gather(3, index)
        distances = (boxes[..., :, None, :] - objects[:, None]).abs().sum(-1)
        overlaps = generalised_iou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(objects)[:, None])
        costs = self.cost_class * classes + self.cost_l1 * distances - self.cost_giou * overlaps
        # A prediction that is no number must not stop the solver; the loss tells of it.
        return costs.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)

    def _class_costs(self, logits: Tensor) -> Tensor:
        if not self.focal:
            return -logits.softmax(-1)
        return focal_loss(logits, torch.ones_like(logits)) - focal_loss(logits, torch.zeros_like(logits))
