"""The dense head, its one-to-many assignment and the focal loss."""

import math

import numpy as np
import pytest
import torch

from detection.losses.dense_criterion import DenseCriterion, assign
from detection.losses.focal import focal_loss
from detection.losses.matcher import HungarianMatcher
from detection.models.dense_head import DenseHead
from mobile_former.layers.padding import content_size, padding_pyramid


def corners(box):
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def overlap(first, second):
    """Intersection over union of two boxes cxcywh, and what generalised IoU takes off."""
    a, b = corners(first), corners(second)
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = first[2] * first[3] + second[2] * second[3] - inner
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inner / union, (outer - union) / outer


def made(positions=40, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, 1, (positions, 2))
    boxes = np.concatenate(
        [centres + generator.normal(0, 0.02, (positions, 2)), generator.uniform(0.1, 0.5, (positions, 2))], 1
    )
    return {
        "logits": torch.tensor(generator.normal(0, 1, (1, positions, classes))),
        "boxes": torch.tensor(boxes)[None],
        "centres": torch.tensor(centres)[None],
        "padding": torch.zeros(1, positions, dtype=torch.bool),
    }


def expected_assignment(dense, target):
    """Position → (object, score), written out."""
    centres, boxes = dense["centres"][0].tolist(), dense["boxes"][0].tolist()
    probability = dense["logits"][0].sigmoid().tolist()
    alignment, overlaps, taken = {}, {}, {}
    for number, (label, box) in enumerate(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)):
        left, top, right, bottom = corners(box)
        inside = [p for p, (x, y) in enumerate(centres) if left < x < right and top < y < bottom]
        for p in inside:
            overlaps[p, number] = overlap(boxes[p], box)[0]
            alignment[p, number] = probability[p][label] ** 0.5 * overlaps[p, number] ** 6
        for p in sorted(inside, key=lambda p: -alignment[p, number])[:10]:
            taken.setdefault(p, []).append(number)
    owners = {p: max(objects, key=lambda number: overlaps[p, number]) for p, objects in taken.items()}
    best = {
        number: tuple(
            max(table[p, number] for p, n in owners.items() if n == number) for table in (alignment, overlaps)
        )
        for number in owners.values()
    }
    return {p: (number, alignment[p, number] / best[number][0] * best[number][1]) for p, number in owners.items()}


TARGET = {
    "labels": torch.tensor([0, 2, 1]),
    "boxes": torch.tensor([[0.4, 0.4, 0.6, 0.5], [0.5, 0.45, 0.4, 0.6], [0.8, 0.8, 0.3, 0.3]], dtype=torch.float64),
}


def test_objects_take_the_ten_best_aligned_positions_within_them():
    dense = made()
    positions, objects, scores = assign(*(dense[name][0] for name in ("logits", "boxes", "centres", "padding")), TARGET)
    expected = expected_assignment(dense, TARGET)
    assert positions.tolist() == sorted(expected)
    assert objects.tolist() == [expected[p][0] for p in positions.tolist()]
    assert scores.tolist() == pytest.approx([expected[p][1] for p in positions.tolist()])
    # The test would prove little if no two objects wanted the same position.
    assert len(positions) < 25


def test_every_dense_loss_agrees_with_an_independent_computation():
    dense = made()
    losses = DenseCriterion()(dense, [TARGET])
    expected = expected_assignment(dense, TARGET)
    total = max(1, sum(score for _, score in expected.values()))
    entropy = l1 = giou = 0.0
    for p, logits in enumerate(dense["logits"][0].tolist()):
        for label, logit in enumerate(logits):
            probability = 1 / (1 + math.exp(-logit))
            number, score = expected.get(p, (None, 0))
            if number is not None and TARGET["labels"][number] == label:
                cross = -score * math.log(probability) - (1 - score) * math.log(1 - probability)
                entropy += score * cross
            else:
                entropy += 0.75 * probability**2 * -math.log(1 - probability)
    for p, (number, score) in expected.items():
        box, wanted = dense["boxes"][0, p].tolist(), TARGET["boxes"][number].tolist()
        l1 += score * sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
        iou, gap = overlap(box, wanted)
        giou += score * (1 - iou + gap)
    assert losses["loss_dense_ce"].item() == pytest.approx(entropy / total)
    assert losses["loss_dense_bbox"].item() == pytest.approx(l1 / total)
    assert losses["loss_dense_giou"].item() == pytest.approx(giou / total)
    assert losses["total"].item() == pytest.approx((entropy + 5 * l1 + 2 * giou) / total)


def test_an_object_between_all_positions_takes_the_nearest():
    dense = made()
    x, y = dense["centres"][0, 7].tolist()
    tiny = {"labels": torch.tensor([1]), "boxes": torch.tensor([[x + 1e-3, y, 1e-4, 1e-4]], dtype=torch.float64)}
    dense["boxes"][0, 7] = tiny["boxes"][0]
    positions, _, scores = assign(*(dense[name][0] for name in ("logits", "boxes", "centres", "padding")), tiny)
    assert positions.tolist() == [7]
    assert scores.tolist() == pytest.approx([1])


def test_padding_is_never_taken_and_adds_nothing_to_the_loss():
    dense = made()
    alone = DenseCriterion()(dense, [TARGET])
    padded = {name: torch.cat([value, value], 1) for name, value in dense.items()}
    padded["padding"][:, 40:] = True
    padded["logits"][:, 40:] = torch.finfo(torch.float64).min
    both = DenseCriterion()(padded, [TARGET])
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value)


def test_a_batch_without_objects_has_a_class_loss_alone():
    empty = {"labels": torch.empty(0).long(), "boxes": torch.empty(0, 4)}
    losses = DenseCriterion()(made(), [empty])
    assert losses["loss_dense_ce"] > 0
    assert losses["loss_dense_bbox"] == losses["loss_dense_giou"] == 0


def test_the_head_looks_at_each_cell_of_the_image_once_coarse_to_fine():
    torch.manual_seed(0)
    head = DenseHead(16, (32, 16, 8), 3).eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 50:] = True
    maps = {stride: torch.randn(2, 16, 64 // stride, 96 // stride) for stride in (32, 16, 8)}
    dense = head(maps, padding_pyramid(mask, (32, 16, 8)), content_size(torch.zeros(2, 3, 64, 96), mask))
    assert dense["logits"].shape == (2, 2 * 3 + 4 * 6 + 8 * 12, 3)
    expected = [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride in (32, 16, 8)
        for row in range(64 // stride)
        for column in range(96 // stride)
    ]
    torch.testing.assert_close(dense["centres"][0] * torch.tensor([96, 64]), torch.tensor(expected))
    torch.testing.assert_close(dense["centres"][1] * torch.tensor([50, 64]), torch.tensor(expected))
    # A cell is padding where all of its pixels are.
    outside = [x - stride / 2 >= 50 for (x, _), stride in zip(expected, [32] * 6 + [16] * 24 + [8] * 96, strict=True)]
    assert dense["padding"][1].tolist() == outside
    assert not dense["padding"][0].any()
    # To begin with every class has the probability 0.01 or so, and boxes are at their cells.
    assert dense["logits"][0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
    torch.testing.assert_close(dense["boxes"][0, :, :2], dense["centres"][0])


def test_the_focal_loss_is_the_papers():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    for wanted in (0, 1):
        p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
        true = [q if wanted else 1 - q for q in p]
        alpha = 0.25 if wanted else 0.75
        expected = [-alpha * (1 - q) ** 2 * math.log(q) for q in true]
        assert focal_loss(logits, torch.full((4,), float(wanted))).tolist() == pytest.approx(expected)


def test_the_focal_class_cost_prefers_the_query_that_the_loss_would_change_least():
    matcher = HungarianMatcher(cost_class=2, cost_l1=0, cost_giou=0, focal=True)
    logits = torch.tensor([[[-2.0, 1.0], [2.0, -1.0], [0.5, 3.0]]])
    boxes = torch.full((1, 3, 4), 0.5)
    target = {"labels": torch.tensor([1, 0]), "boxes": torch.full((2, 4), 0.5)}
    ((queries, objects),) = matcher({"logits": logits, "boxes": boxes}, [target])
    assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 1}
