import numpy as np
import pytest
import torch

import detection
from detection.losses.matcher import HungarianMatcher
from mobile_former import InputError
from tests.conftest import REFERENCE
from tests.detection.losses.conftest import random_layer, random_target


@pytest.mark.parametrize("stem", ["set_loss", "set_loss_empty"])
def test_matching_and_every_loss_agree_with_the_reference(stem):
    data = np.load(REFERENCE / f"{stem}.npz")
    logits, boxes = (torch.from_numpy(data[f"pred_{name}"]) for name in ("logits", "boxes"))
    targets = [
        {"labels": torch.from_numpy(data[f"labels{i}"]).long(), "boxes": torch.from_numpy(data[f"boxes{i}"])}
        for i in range(len(data["counts"]))
    ]
    layers = [{"logits": a, "boxes": b} for a, b in zip(logits, boxes, strict=True)]
    outputs = layers[-1] | {"auxiliary": layers[:-1]}
    criterion = detection.SetCriterion(num_classes=logits.shape[-1] - 1)
    for i, (queries, objects) in enumerate(criterion.matcher(outputs, targets)):
        assert queries.tolist() == data[f"match_query{i}"].tolist()
        assert objects.tolist() == data[f"match_target{i}"].tolist()
    losses = criterion(outputs, targets)
    expected = {name.removeprefix("loss/"): data[name] for name in data.files if name.startswith("loss/")}
    assert losses.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(float(value), abs=1e-5), name
    assert losses["total"].item() == pytest.approx(float(data["total"]), rel=1e-6)


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


def test_the_focal_loss_is_summed_over_queries_and_classes_and_divided_by_the_number_of_objects():
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
def test_losses_are_finite_without_objects_and_with_more_objects_than_queries(counts):
    layer = random_layer(4, images=2) | {"auxiliary": [random_layer(4, images=2, seed=5)]}
    layer["logits"].requires_grad_()
    losses = detection.SetCriterion(num_classes=3)(layer, [random_target(count) for count in counts])
    assert all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()
    assert layer["logits"].grad.isfinite().all()


def test_matcher_and_criterion_must_have_the_same_focal_option():
    with pytest.raises(InputError, match=r"focal=False, the criterion focal=True: give both the same"):
        detection.SetCriterion(num_classes=3, focal=True, matcher=HungarianMatcher())
