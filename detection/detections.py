"""From what object queries predict to detections."""

from collections.abc import Sequence

from torch import Tensor

from detection.boxes import cxcywh_to_xyxy


def best_classes(
    probabilities: Tensor, boxes: Tensor, image_sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """Each query's best class and its box in pixels.

    Args:
        probabilities: of the classes, ``(B, Q, K)``.
        boxes: ``(B, Q, 4)``, cxcywh in 0..1.
        image_sizes: for each image height and width of the frame in which its boxes are wanted.

    Returns:
        For each image ``boxes`` ``(Q, 4)`` xyxy, clipped to the frame, ``scores`` ``(Q,)`` in 0..1 and ``labels``
        ``(Q,)``, best first.
    """
    scores, labels = probabilities.max(-1)
    corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1)
    detections = []
    for image_scores, image_labels, image_boxes, (height, width) in zip(
        scores, labels, corners, image_sizes, strict=True
    ):
        order = image_scores.argsort(descending=True, stable=True)
        frame = image_boxes.new_tensor([width, height, width, height])
        detections.append(
            {"boxes": image_boxes[order] * frame, "scores": image_scores[order], "labels": image_labels[order]}
        )
    return detections
