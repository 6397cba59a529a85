"""The matcher, against all possible assignments."""

from itertools import permutations

import pytest
import torch

from detection.losses.matcher import HungarianMatcher
from tests.detection.conftest import overlap_of
from tests.detection.losses.conftest import random_layer, random_target


def cost(logits, box, label, wanted):
    """DETR's cost of one query for one object, in plain numbers."""
    l1 = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    return -torch.tensor(logits).softmax(0)[label].item() + 5 * l1 - 2 * overlap_of(box, wanted)[1]


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (3, 5), (4, 4), (1, 1)])
def test_no_assignment_costs_less_also_with_more_objects_than_queries(queries, objects):
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


def test_images_without_objects_have_no_matches():
    layer = random_layer(4, images=3)
    pairs = HungarianMatcher()(layer, [random_target(0), random_target(2), random_target(0)])
    assert [len(queries) for queries, _ in pairs] == [0, 2, 0]
    assert all(queries.dtype == objects.dtype == torch.long for queries, objects in pairs)


def test_layers_matched_together_match_as_each_layer_on_its_own():
    layers = [random_layer(6, images=2, seed=seed) for seed in range(3)]
    targets = [random_target(2), random_target(4, seed=2)]
    matcher = HungarianMatcher()
    for together, layer in zip(matcher.match_layers(layers, targets), layers, strict=True):
        for (queries, objects), (q, o) in zip(together, matcher(layer, targets), strict=True):
            assert queries.tolist() == q.tolist()
            assert objects.tolist() == o.tolist()


def test_nan_and_infinite_predictions_are_matched_without_an_error():
    layer = random_layer(4)
    layer["boxes"][0, 1] = torch.nan
    layer["logits"][0, 2] = torch.inf
    ((queries, _),) = HungarianMatcher()(layer, [random_target(3)])
    assert len(queries) == 3


def test_the_focal_class_cost_prefers_the_query_whose_focal_loss_falls_most():
    matcher = HungarianMatcher(cost_class=2, cost_l1=0, cost_giou=0, focal=True)
    logits = torch.tensor([[[-2.0, 1.0], [2.0, -1.0], [0.5, 3.0]]])
    boxes = torch.full((1, 3, 4), 0.5)
    target = {"labels": torch.tensor([1, 0]), "boxes": torch.full((2, 4), 0.5)}
    ((queries, objects),) = matcher({"logits": logits, "boxes": boxes}, [target])
    assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 1}


def test_a_matcher_without_any_cost_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        HungarianMatcher(0, 0, 0)
