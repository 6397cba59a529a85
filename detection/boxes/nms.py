"""Non-maximum suppression, class by class."""

import cv2
import numpy as np
import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Leave out what overlaps a better detection of its class.

    Args:
        boxes: ``(n, 4)`` xyxy in pixels.
        scores: ``(n,)``.
        labels: ``(n,)``.
        threshold: intersection over union above which the worse of two goes, in 0..1.

    Returns:
        Indices of what stays, the best first; the same for the same input, whatever the machine.
    """
    if len(boxes) == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    corners = boxes.detach().cpu().double().numpy()
    sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        sizes.tolist(),
        scores.detach().cpu().tolist(),
        labels.cpu().tolist(),
        score_threshold=0.0,
        nms_threshold=threshold,
    )
    kept = torch.as_tensor(np.asarray(kept, dtype=np.int64).reshape(-1), device=boxes.device)
    # OpenCV gives them class by class.
    return kept[scores[kept].argsort(descending=True, stable=True)]
