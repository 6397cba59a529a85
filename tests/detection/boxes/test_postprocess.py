import pytest
import torch

from detection.boxes.postprocess import best_classes, to_pixels


def test_each_query_gives_its_best_class_and_its_box_within_the_image_sorted_by_score():
    probabilities = torch.tensor([[[0.1, 0.3], [0.7, 0.2], [0.4, 0.5]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.5, 0.4, 0.2], [0.9, 0.9, 0.4, 0.4]]])
    detections = best_classes(probabilities, boxes)
    assert detections["scores"][0].tolist() == pytest.approx([0.7, 0.5, 0.3])
    assert detections["labels"][0].tolist() == [0, 1, 1]
    expected = torch.tensor([[0, 0.4, 0.3, 0.6], [0.7, 0.7, 1, 1], [0.4, 0.3, 0.6, 0.7]])
    torch.testing.assert_close(detections["boxes"][0], expected)


def test_boxes_are_scaled_to_the_height_and_width_of_their_image():
    detections = {
        "boxes": torch.tensor([[[0, 0.5, 0.25, 1]], [[0.5, 0, 1, 0.5]]]),
        "scores": torch.tensor([[0.9], [0.8]]),
        "labels": torch.tensor([[3], [5]]),
    }
    first, second = to_pixels(detections, [(100, 200), (40, 20)])
    assert first["boxes"].tolist() == [[0, 50, 50, 100]]
    assert second["boxes"].tolist() == [[10, 0, 20, 20]]
    assert (first["labels"].tolist(), second["labels"].tolist()) == ([3], [5])
    assert second["scores"].tolist() == pytest.approx([0.8])
