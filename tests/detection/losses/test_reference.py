import numpy as np
import pytest
import torch

from detection.losses.criterion import SetCriterion
from tests.conftest import REFERENCE


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
    criterion = SetCriterion(num_classes=logits.shape[-1] - 1)
    for i, (queries, objects) in enumerate(criterion.matcher(outputs, targets)):
        assert queries.tolist() == data[f"match_query{i}"].tolist()
        assert objects.tolist() == data[f"match_target{i}"].tolist()
    losses = criterion(outputs, targets)
    expected = {name.removeprefix("loss/"): data[name] for name in data.files if name.startswith("loss/")}
    assert losses.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(float(value), abs=1e-5), name
    assert losses["total"].item() == pytest.approx(float(data["total"]), rel=1e-6)
