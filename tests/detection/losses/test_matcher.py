"""Matching, against all assignments there are."""

from itertools import permutations

import pytest
import torch

import detection
from detection.losses.matcher import HungarianMatcher
from mobile_former import InputError


def random_layer(queries, classes=3, images=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes + 1, generator=generator, dtype=dtype)
    boxes = torch.rand(images, queries, 4, generator=generator, dtype=dtype) * 0.4 + 0.3
    return {"logits": logits, "boxes": boxes}


def random_target(objects, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(0, classes, (objects,), generator=generator),
        "boxes": torch.rand(objects, 4, generator=generator) * 0.4 + 0.3,
    }


def cost(logits, box, label, wanted):
    """DETR's cost of one query for one object, written out."""
    l1 = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    (ax, ay, aw, ah), (bx, by, bw, bh) = box, wanted
    overlap = [
        min(a + s / 2, b + t / 2) - max(a - s / 2, b - t / 2) for a, s, b, t in ((ax, aw, bx, bw), (ay, ah, by, bh))
    ]
    inner = max(0, overlap[0]) * max(0, overlap[1])
    union = aw * ah + bw * bh - inner
    outer = 1
    for a, s, b, t in ((ax, aw, bx, bw), (ay, ah, by, bh)):
        outer *= max(a + s / 2, b + t / 2) - min(a - s / 2, b - t / 2)
    giou = inner / union - (outer - union) / outer
    return -torch.tensor(logits).softmax(0)[label].item() + 5 * l1 - 2 * giou


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (3, 5), (4, 4), (1, 1)])
def test_the_matching_costs_least_of_all_assignments_also_with_more_objects_than_queries(queries, objects):
    layer, target = random_layer(queries), random_target(objects)
    ((chosen, matched),) = HungarianMatcher()(layer, [target])
    assert len(chosen) == len(matched) == min(queries, objects)
    assert chosen.tolist() == sorted(chosen.tolist())
    table = [
        [
            cost(logits, box, label, wanted)
            for label, wanted in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ]
        for logits, box in zip(layer["logits"][0].tolist(), layer["boxes"][0].tolist(), strict=True)
    ]
    if queries >= objects:
        best = min(sum(table[q][n] for n, q in enumerate(order)) for order in permutations(range(queries), objects))
    else:
        best = min(sum(table[q][n] for q, n in enumerate(order)) for order in permutations(range(objects), queries))
    found = sum(table[q][n] for q, n in zip(chosen.tolist(), matched.tolist(), strict=True))
    assert found == pytest.approx(best, abs=1e-5)


def test_images_without_objects_match_nothing_among_others():
    layer = random_layer(4, images=3)
    pairs = HungarianMatcher()(layer, [random_target(0), random_target(2), random_target(0)])
    assert [len(queries) for queries, _ in pairs] == [0, 2, 0]
    assert all(queries.dtype == objects.dtype == torch.long for queries, objects in pairs)


def test_layers_matched_together_match_as_each_alone():
    layers = [random_layer(6, images=2, seed=seed) for seed in range(3)]
    targets = [random_target(2), random_target(4, seed=2)]
    matcher = HungarianMatcher()
    for together, layer in zip(matcher.match_layers(layers, targets), layers, strict=True):
        for (queries, objects), (q, o) in zip(together, matcher(layer, targets), strict=True):
            assert queries.tolist() == q.tolist()
            assert objects.tolist() == o.tolist()


def test_predictions_that_are_no_numbers_do_not_stop_the_matching():
    layer = random_layer(4)
    layer["boxes"][0, 1] = torch.nan
    layer["logits"][0, 2] = torch.inf
    ((queries, _),) = HungarianMatcher()(layer, [random_target(3)])
    assert len(queries) == 3


def test_a_matcher_without_any_cost_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        HungarianMatcher(0, 0, 0)


@pytest.mark.parametrize("focal", [False, True])
def test_losses_and_costs_are_float32_under_autocast(focal):
    layer = random_layer(5, images=2, dtype=torch.bfloat16)
    if focal:
        layer["logits"] = layer["logits"][..., :3]
    targets = [random_target(2), random_target(0)]
    criterion = detection.SetCriterion(num_classes=3, focal=focal)
    outside = criterion({name: values.float() for name, values in layer.items()}, targets)
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion(layer, targets)
    for name, value in outside.items():
        assert inside[name].dtype == torch.float32
        assert inside[name].item() == value.item(), name


def test_the_focal_classification_loss_is_the_sum_over_queries_and_classes_by_the_number_of_objects():
    layer = random_layer(4)
    layer["logits"] = layer["logits"][..., :3]
    target = random_target(2)
    criterion = detection.SetCriterion(num_classes=3, focal=True)
    losses = criterion(layer, [target])
    ((queries, objects),) = criterion.matcher(layer, [target])
    wanted = torch.zeros(4, 3)
    wanted[queries, target["labels"][objects]] = 1
    p = layer["logits"][0].sigmoid()
    expected = -(wanted * 0.25 * (1 - p) ** 2 * p.log() + (1 - wanted) * 0.75 * p**2 * (1 - p).log()).sum() / 2
    assert losses["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = 2 * losses["loss_ce"] + 5 * losses["loss_bbox"] + 2 * losses["loss_giou"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (7, 0)])
def test_losses_are_numbers_without_objects_and_with_more_than_queries(counts):
    layer = random_layer(4, images=2) | {"auxiliary": [random_layer(4, images=2, seed=5)]}
    layer["logits"].requires_grad_()
    losses = detection.SetCriterion(num_classes=3)(layer, [random_target(count) for count in counts])
    assert all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()
    assert layer["logits"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"labels": torch.tensor([3]), "boxes": torch.rand(1, 4)}, "count from 0, to 2"),
        ({"labels": torch.tensor([-1]), "boxes": torch.rand(1, 4)}, "count from 0"),
        ({"labels": torch.tensor([1]), "boxes": torch.tensor([[10.0, 20, 30, 40]])}, "beyond 0..1"),
        ({"labels": torch.tensor([1.0]), "boxes": torch.rand(1, 4)}, "torch.long"),
        ({"labels": torch.tensor([1, 2]), "boxes": torch.rand(1, 4)}, r"boxes \(n, 4\)"),
    ],
)
def test_targets_of_another_form_are_told(target, told):
    with pytest.raises(InputError, match=told):
        detection.SetCriterion(num_classes=3)(random_layer(4), [target])


def test_as_many_targets_as_images_are_needed():
    with pytest.raises(InputError, match="1 targets for 2 images"):
        detection.SetCriterion(num_classes=3)(random_layer(4, images=2), [random_target(1)])


def test_matcher_and_criterion_must_tell_classes_alike():
    with pytest.raises(InputError, match="must be the same"):
        detection.SetCriterion(num_classes=3, focal=True, matcher=HungarianMatcher())
