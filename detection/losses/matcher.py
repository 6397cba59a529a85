"""Hungarian matching of predictions with objects (Carion et al., DETR, ECCV 2020, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detection.boxes.geometry import cxcywh_to_xyxy, generalised_iou
from detection.losses.focal import focal_loss
from detection.losses.mixed_precision import at_least_float32, without_autocast

Pairs = list[tuple[Tensor, Tensor]]


class HungarianMatcher:
    """Matcher that assigns queries to objects one to one, with the lowest total cost.

    The cost of a query and an object is a weighted sum of a class cost, the L1 distance of the boxes, and the negative
    generalised IoU of the boxes. The class cost is the negative predicted probability of the object's class. With
    ``focal``, the class cost is instead the focal loss with this class present, minus the focal loss with this class
    absent (Zhu et al., Deformable DETR, ICLR 2021).

    Args:
        cost_class: weight of the class cost.
        cost_l1: weight of the L1 distance.
        cost_giou: weight of the negative generalised IoU.
        focal: whether each class has its own sigmoid and there is no class "no object".

    Raises:
        ValueError: all weights are 0.
    """

    def __init__(self, cost_class: float = 1, cost_l1: float = 5, cost_giou: float = 2, focal: bool = False):
        if cost_class == cost_l1 == cost_giou == 0:
            raise ValueError("cost_class, cost_l1 and cost_giou are all 0: give at least one of them a weight")
        self.cost_class = cost_class
        self.cost_l1 = cost_l1
        self.cost_giou = cost_giou
        self.focal = focal

    def __call__(self, outputs: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Pairs:
        """Match the predictions of one decoder layer with the objects.

        Args:
            outputs: dictionary with ``logits`` ``(B, Q, K+1)``, class K being "no object", or ``(B, Q, K)`` with
                ``focal``; and ``boxes`` ``(B, Q, 4)``, cxcywh, normalised to 0..1.
            targets: list with one dictionary for each image: ``labels`` ``(n,)`` long, and ``boxes`` ``(n, 4)``,
                cxcywh, normalised to 0..1.

        Returns:
            List with one tuple for each image: the indices of the matched queries in ascending order, and the indices
            of their objects. Both are long tensors ``(min(Q, n),)``.
        """
        return self.match_layers([outputs], targets)[0]

    @torch.no_grad()
    def match_layers(self, layers: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> list[Pairs]:
        """Match the predictions of several decoder layers with the objects.

        The costs of all layers are computed together and transferred to the CPU once.

        Args:
            layers: list with the dictionary ``outputs`` of each layer, see :meth:`__call__`. All layers have the same
                shapes.
            targets: objects of each image, see :meth:`__call__`.

        Returns:
            List with the result of :meth:`__call__` for each layer.
        """
        from scipy.optimize import linear_sum_assignment  # here, because prediction needs no matching

        device = layers[0]["logits"].device
        with without_autocast(device):
            logits = torch.stack([layer["logits"] for layer in layers])
            boxes = torch.stack([layer["boxes"] for layer in layers])
            costs = self._costs(at_least_float32(logits), at_least_float32(boxes), targets).cpu().numpy()
        return [
            [
                tuple(
                    torch.as_tensor(indices, dtype=torch.long, device=device)
                    for indices in linear_sum_assignment(image[:, : len(target["labels"])])
                )
                for image, target in zip(layer, targets, strict=True)
            ]
            for layer in costs
        ]

    def _costs(self, logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Return the matching costs ``(L, B, Q, N)`` of L layers, B images and Q queries.

        N is the largest number of objects in an image. For an image with fewer objects, the columns after its last
        object have no meaning. ``logits`` and ``boxes`` are the predictions of all layers, ``(L, B, Q, …)``.
        """
        labels = pad_sequence([target["labels"].to(logits.device) for target in targets], batch_first=True)
        objects = pad_sequence([target["boxes"].to(boxes) for target in targets], batch_first=True, padding_value=0.5)
        index = labels[None, :, None].expand(*logits.shape[:3], -1)
        classes = self._class_costs(logits).gather(3, index)
        distances = (boxes[..., :, None, :] - objects[:, None]).abs().sum(-1)
        overlaps = generalised_iou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(objects)[:, None])
        costs = self.cost_class * classes + self.cost_l1 * distances - self.cost_giou * overlaps
        # The solver rejects NaN. A prediction that is NaN shows in the loss.
        return costs.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)

    def _class_costs(self, logits: Tensor) -> Tensor:
        if not self.focal:
            return -logits.softmax(-1)
        return focal_loss(logits, torch.ones_like(logits)) - focal_loss(logits, torch.zeros_like(logits))
