import math

import numpy as np
import pytest
import torch

from detection.boxes.anchors import make_anchors
from detection.boxes.geometry import cxcywh_to_xyxy, iou
from detection.losses.retinanet_criterion import BACKGROUND, IGNORED, RetinaNetCriterion, assign
from tests.detection.conftest import overlap_of
from tests.detection.losses.conftest import Largest


def test_anchors_take_the_object_of_highest_overlap_and_every_object_has_an_anchor():
    generator = np.random.default_rng(0)
    anchors = np.concatenate([generator.uniform(0, 100, (300, 2)), generator.uniform(10, 60, (300, 2))], 1)
    boxes = np.concatenate([generator.uniform(10, 90, (6, 2)), generator.uniform(15, 50, (6, 2))], 1)
    boxes[5] = [50, 50, 3, 3]  # so small that no anchor has an overlap of 0.5 with it
    overlaps = np.array([[overlap_of(anchor, box)[0] for box in boxes] for anchor in anchors])
    expected = []
    for row in overlaps:
        best = max(row)
        expected.append(int(np.argmax(row)) if best >= 0.5 else IGNORED if best >= 0.4 else BACKGROUND)
    for number, column in enumerate(overlaps.T):
        if max(column) > 0:
            expected[int(np.argmax(column))] = number
    found = assign(torch.tensor(anchors), torch.tensor(boxes)).tolist()
    assert found == expected
    assert {IGNORED, BACKGROUND, 5} <= set(found)  # all cases occur


def test_without_objects_every_anchor_is_background():
    assert assign(torch.rand(7, 4), torch.empty(0, 4)).tolist() == [BACKGROUND] * 7


def outputs_of(anchors, classes=3):
    generator = torch.Generator().manual_seed(0)
    count = len(anchors)
    return {
        "logits": torch.randn(1, count, classes, generator=generator, dtype=torch.float64),
        "offsets": torch.randn(1, count, 4, generator=generator, dtype=torch.float64),
        "anchors": anchors,
        "padding": torch.zeros(1, count, dtype=torch.bool),
        "extent": torch.tensor([[100.0, 80.0]], dtype=torch.float64),
    }


def test_ignored_anchors_and_padding_add_nothing_to_the_losses():
    anchors = torch.tensor(
        [[50.0, 40, 20, 20], [51, 41, 20, 20], [54, 44, 20, 22], [20, 20, 10, 10], [50, 40, 20, 20]]
    ).double()
    outputs = outputs_of(anchors)
    outputs["padding"][0, 4] = True
    target = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.25]])}
    kinds = assign(anchors, torch.tensor([[50.0, 40, 20, 20]]).double()).tolist()
    assert kinds == [0, 0, IGNORED, BACKGROUND, 0]
    losses = RetinaNetCriterion(3)(outputs, [target])
    entropy = l1 = 0.0
    for number in (0, 1, 3):
        for label, logit in enumerate(outputs["logits"][0, number].tolist()):
            p = 1 / (1 + math.exp(-logit))
            positive = label == 2 and number != 3
            entropy += -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)
    for number in (0, 1):
        x, y, w, h = anchors[number].tolist()
        wanted = [(50 - x) / w, (40 - y) / h, math.log(20 / w), math.log(20 / h)]
        l1 += sum(abs(a - b) for a, b in zip(outputs["offsets"][0, number].tolist(), wanted, strict=True))
    assert losses["loss_ce"].item() == pytest.approx(entropy / 2)
    assert losses["loss_bbox"].item() == pytest.approx(l1 / 2)
    assert losses["total"].item() == pytest.approx((entropy + l1) / 2)


def test_an_image_without_objects_has_only_a_class_loss():
    empty = {"labels": torch.empty(0).long(), "boxes": torch.empty(0, 4)}
    losses = RetinaNetCriterion(3)(outputs_of(torch.rand(5, 4).double() + 1), [empty])
    assert losses["loss_ce"] > 0
    assert losses["loss_bbox"] == 0


@pytest.mark.parametrize("objects", [10, 1000])
def test_the_assignment_takes_the_same_memory_for_any_number_of_objects(objects):
    """Its largest tensor is that of a part of the comparisons; at once, 1000 objects would take 58 million elements."""
    anchors = make_anchors([(40, 64), (20, 32)], (16, 32), 2, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(objects, 4, generator=generator) * torch.tensor([1024, 640, 50, 50]) + 4
    with Largest() as largest:
        found = assign(anchors, boxes)
    assert largest.elements <= 4 * 2**20
    assert set(found[found >= 0].tolist()) == set(range(objects)) - overtaken(anchors, boxes)


def overtaken(anchors, boxes):
    """Objects that keep no anchor, by an assignment of one object after another."""
    overlaps = torch.stack([iou(cxcywh_to_xyxy(anchors), cxcywh_to_xyxy(box)) for box in boxes])
    best, nearest = overlaps.max(0)
    owners = torch.where(best >= 0.5, nearest, -1)
    for number, row in enumerate(overlaps):
        owners[(row == row.max()) & (row > 0)] = number
    return set(range(len(boxes))) - set(owners.tolist())
