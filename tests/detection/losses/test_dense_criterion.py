import math

import numpy as np
import pytest
import torch

from detection.losses.dense_criterion import DenseCriterion, assign
from tests.detection.conftest import corners_of, overlap_of
from tests.detection.losses.conftest import Largest


def random_predictions(positions=40, classes=3):
    generator = np.random.default_rng(0)
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
    """Object and target score by position, in plain numbers."""
    centres, boxes = dense["centres"][0].tolist(), dense["boxes"][0].tolist()
    probability = dense["logits"][0].sigmoid().tolist()
    alignment, overlaps, taken = {}, {}, {}
    for number, (label, box) in enumerate(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)):
        left, top, right, bottom = corners_of(box)
        inside = [p for p, (x, y) in enumerate(centres) if left < x < right and top < y < bottom]
        for p in inside:
            overlaps[p, number] = overlap_of(boxes[p], box)[0]
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


def test_objects_take_the_ten_best_aligned_positions_inside_them():
    dense = random_predictions()
    positions, objects, scores = assign(*(dense[name][0] for name in ("logits", "boxes", "centres", "padding")), TARGET)
    expected = expected_assignment(dense, TARGET)
    assert positions.tolist() == sorted(expected)
    assert objects.tolist() == [expected[p][0] for p in positions.tolist()]
    assert scores.tolist() == pytest.approx([expected[p][1] for p in positions.tolist()])
    assert len(positions) < 25  # some positions are wanted by two objects


def test_every_dense_loss_agrees_with_an_independent_computation():
    dense = random_predictions()
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
        share = score / sum(other for owner, other in expected.values() if owner == number) / len(TARGET["labels"])
        l1 += share * sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
        giou += share * (1 - overlap_of(box, wanted)[1])
    assert losses["loss_dense_ce"].item() == pytest.approx(entropy / total)
    assert losses["loss_dense_bbox"].item() == pytest.approx(l1)
    assert losses["loss_dense_giou"].item() == pytest.approx(giou)
    assert losses["total"].item() == pytest.approx(entropy / total + 5 * l1 + 2 * giou)


def test_an_object_without_positions_inside_takes_the_nearest_position():
    dense = random_predictions()
    x, y = dense["centres"][0, 7].tolist()
    tiny = {"labels": torch.tensor([1]), "boxes": torch.tensor([[x + 1e-3, y, 1e-4, 1e-4]], dtype=torch.float64)}
    dense["boxes"][0, 7] = tiny["boxes"][0]
    positions, _, scores = assign(*(dense[name][0] for name in ("logits", "boxes", "centres", "padding")), tiny)
    assert positions.tolist() == [7]
    assert scores.tolist() == pytest.approx([1])


def test_padding_is_never_assigned_and_adds_nothing_to_the_losses():
    dense = random_predictions()
    single = DenseCriterion()(dense, [TARGET])
    padded = {name: torch.cat([value, value], 1) for name, value in dense.items()}
    padded["padding"][:, 40:] = True
    padded["logits"][:, 40:] = torch.finfo(torch.float64).min
    both = DenseCriterion()(padded, [TARGET])
    for name, value in single.items():
        torch.testing.assert_close(both[name], value)


def test_a_batch_without_objects_has_only_a_class_loss():
    empty = {"labels": torch.empty(0).long(), "boxes": torch.empty(0, 4)}
    losses = DenseCriterion()(random_predictions(), [empty])
    assert losses["loss_dense_ce"] > 0
    assert losses["loss_dense_bbox"] == losses["loss_dense_giou"] == 0


def test_the_dense_assignment_takes_the_same_memory_for_any_number_of_objects():
    """300 objects on 10 000 positions are compared in parts, with the result of an independent assignment."""
    dense = random_predictions(10_000)
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(300, 4, generator=generator, dtype=torch.float64) * 0.1 + 0.05
    boxes[:, :2] = torch.rand(300, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    target = {"labels": torch.randint(0, 3, (300,), generator=generator), "boxes": boxes}
    with Largest() as largest:
        positions, objects, scores = assign(
            *(dense[name][0] for name in ("logits", "boxes", "centres", "padding")), target
        )
    assert largest.elements <= 4 * 2**20
    expected = expected_assignment(dense, target)
    assert dict(zip(positions.tolist(), objects.tolist(), strict=True)) == {p: row[0] for p, row in expected.items()}
    assert scores.tolist() == pytest.approx([expected[p][1] for p in positions.tolist()])
