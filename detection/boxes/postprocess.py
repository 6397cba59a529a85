"""Conversion of the predictions of object queries to detections."""

from collections.abc import Sequence

from torch import Tensor

from detection.boxes.geometry import cxcywh_to_xyxy


def best_classes(probabilities: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Return the best class, its probability and the box of each query.

    Args:
        probabilities: class probabilities ``(B, Q, K)``.
        boxes: ``(B, Q, 4)``, cxcywh, normalised to 0..1.

    Returns:
        A dictionary. The queries of each image are sorted by descending score:

        - ``boxes``: ``(B, Q, 4)``, xyxy, clipped to 0..1;
        - ``scores``: ``(B, Q)``, probability of the best class, in 0..1;
        - ``labels``: ``(B, Q)`` long, index of the best class.
    """
    scores, labels = probabilities.max(-1)
    corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    corners = corners.gather(1, order[..., None].expand(-1, -1, 4))
    return {"boxes": corners, "scores": scores, "labels": labels.gather(1, order)}


def to_pixels(detections: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Scale the boxes of a batch from 0..1 to pixels, and split the batch into images.

    Args:
        detections: dictionary with ``boxes`` ``(B, N, 4)``, xyxy, normalised to 0..1, ``scores`` ``(B, N)`` and
            ``labels`` ``(B, N)``.
        image_sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled to
            this size.

    Returns:
        List with one dictionary for each image: ``boxes`` ``(N, 4)``, xyxy in pixels, ``scores`` ``(N,)`` and
        ``labels`` ``(N,)``.
    """
    boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
    frames = boxes.new_tensor([[width, height, width, height] for height, width in image_sizes])
    return [
        {"boxes": corners * frame, "scores": score, "labels": label}
        for corners, score, label, frame in zip(boxes, scores, labels, frames, strict=True)
    ]
