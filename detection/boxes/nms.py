"""Non-maximum suppression that treats each class separately."""

import cv2
import numpy as np
import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Apply non-maximum suppression: drop each box that overlaps a kept box of the same class with a higher score.

    Boxes with a score of 0 or less are dropped too. The result is the same on every machine.

    Args:
        boxes: ``(n, 4)``, xyxy in pixels.
        scores: ``(n,)``.
        labels: class labels ``(n,)``.
        threshold: intersection over union (IoU), in 0..1. If the IoU of two boxes of a class is above this threshold,
            the box with the lower score is dropped.

    Returns:
        Indices of the m kept boxes ``(m,)``, in the order of descending score.
    """
    if len(boxes) == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    corners = boxes.detach().cpu().double().numpy()
    left_top_size = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        left_top_size.tolist(),
        scores.detach().cpu().tolist(),
        labels.cpu().tolist(),
        score_threshold=0.0,
        nms_threshold=threshold,
    )
    kept = torch.as_tensor(np.asarray(kept, dtype=np.int64).reshape(-1), device=boxes.device)
    return kept[scores[kept].argsort(descending=True, stable=True)]  # OpenCV returns them class by class
