"""From what object queries predict to detections."""

from collections.abc import Sequence

from torch import Tensor

from detection.boxes.boxes import cxcywh_to_xyxy


def best_classes(probabilities: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Each query's best class and its box.

    Args:
        probabilities: of the classes, ``(B, Q, K)``.
        boxes: ``(B, Q, 4)``, cxcywh in 0..1.

    Returns:
        ``boxes`` ``(B, Q, 4)`` xyxy in 0..1, clipped there, ``scores`` ``(B, Q)`` in 0..1 and ``labels`` ``(B, Q)``,
        best first.
    """
    scores, labels = probabilities.max(-1)
    corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    corners = corners.gather(1, order[..., None].expand(-1, -1, 4))
    return {"boxes": corners, "scores": scores, "labels": labels.gather(1, order)}


def in_frames(detections: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Detections of a batch, image by image, in pixels.

    Args:
        detections: ``boxes`` ``(B, N, 4)`` in shares of the image, ``scores`` and ``labels`` ``(B, N)``.
        image_sizes: for each image height and width of the frame in which its boxes are wanted.

    Returns:
        For each image ``boxes`` ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``.
    """
    boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
    frames = boxes.new_tensor([[width, height, width, height] for height, width in image_sizes])
    return [
        {"boxes": corners * frame, "scores": score, "labels": label}
        for corners, score, label, frame in zip(boxes, scores, labels, frames, strict=True)
    ]
