import pytest
import torch

from detection.boxes.geometry import cxcywh_to_xyxy, generalised_iou, iou, xyxy_to_cxcywh
from tests.detection.conftest import corners_of, overlap_of


def random_boxes(count, seed):
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def test_boxes_are_converted_to_corners_and_back():
    boxes = random_boxes(5, seed=0)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, torch.tensor([corners_of(box) for box in boxes.tolist()], dtype=torch.float64))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


def test_overlaps_agree_with_plain_numbers_and_broadcast():
    first, second = random_boxes(6, seed=1), random_boxes(4, seed=2)
    second[0, :2] += 5  # overlaps nothing
    expected = torch.tensor([[overlap_of(a, b) for b in second.tolist()] for a in first.tolist()], dtype=torch.float64)
    corners = cxcywh_to_xyxy(first)[:, None], cxcywh_to_xyxy(second)
    torch.testing.assert_close(iou(*corners), expected[..., 0])
    torch.testing.assert_close(generalised_iou(*corners), expected[..., 1])
    assert (expected[:, 0, 1] < 0).all()


@pytest.mark.parametrize(
    ("second", "expected"),
    [([2.0, 3, 2, 3], 1), ([4.0, 5, 4, 5], -1), ([2.0, 3, 4, 5], 0)],
    ids=["the same point", "another point", "a box with the point as corner"],
)
def test_a_box_of_area_0_has_a_finite_generalised_iou(second, expected):
    point = torch.tensor([2.0, 3, 2, 3])
    assert generalised_iou(point, torch.tensor(second)).item() == expected
    assert iou(point, torch.tensor(second)).item() == 0
