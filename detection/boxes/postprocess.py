"""Detections from the predictions of object queries."""

from collections.abc import Sequence

from torch import Tensor

from detection.boxes.geometry import cxcywh_to_xyxy


def best_classes(probabilities: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Return the best class and the box of each query, sorted by score.

    Args:
        probabilities: class probabilities ``(B, Q, K)``.
        boxes: ``(B, Q, 4)``, cxcywh, normalised to 0..1.

    Returns:
        A dictionary. The detections of each image are sorted by descending score:

        - ``boxes``: ``(B, Q, 4)``, xyxy, clipped to 0..1;
        - ``scores``: ``(B, Q)``, in 0..1;
        - ``labels``: ``(B, Q)`` long.
    """
    scores, labels = probabilities.max(-1)
    corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    corners = corners.gather(1, order[..., None].expand(-1, -1, 4))
    return {"boxes": corners, "scores": scores, "labels": labels.gather(1, order)}


def to_pixels(detections: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Scale the detections of a batch to pixels and split them by image.

    Args:
        detections: ``boxes`` ``(B, N, 4)``, xyxy, normalised to 0..1; ``scores`` ``(B, N)``; ``labels`` ``(B, N)``.
        image_sizes: output height and width of each image, usually the original size. Boxes are scaled to it.

    Returns:
        One dictionary per image: ``boxes`` ``(N, 4)``, xyxy in pixels; ``scores`` ``(N,)``; ``labels`` ``(N,)``.
    """
    boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
    frames = boxes.new_tensor([[width, height, width, height] for height, width in image_sizes])
    return [
        {"boxes": corners * frame, "scores": score, "labels": label}
        for corners, score, label, frame in zip(boxes, scores, labels, frames, strict=True)
    ]
