import pytest
import torch

import detection
from mobile_former import InputError
from tests.detection.losses.conftest import random_layer, random_target


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"labels": torch.tensor([3]), "boxes": torch.rand(1, 4)}, r"labels \[3\]: give labels from 0 to 2"),
        ({"labels": torch.tensor([-1]), "boxes": torch.rand(1, 4)}, "give labels from 0"),
        ({"labels": torch.tensor([1]), "boxes": torch.tensor([[10.0, 20, 30, 40]])}, r"outside 0\.\.1"),
        ({"labels": torch.tensor([1.0]), "boxes": torch.rand(1, 4)}, "torch.long"),
        ({"labels": torch.tensor([1, 2]), "boxes": torch.rand(1, 4)}, r"boxes \(n, 4\)"),
    ],
)
def test_a_target_of_a_wrong_form_is_an_error(target, message):
    with pytest.raises(InputError, match=message):
        detection.SetCriterion(num_classes=3)(random_layer(4), [target])


def test_a_missing_target_is_an_error():
    with pytest.raises(InputError, match="1 targets for 2 images"):
        detection.SetCriterion(num_classes=3)(random_layer(4, images=2), [random_target(1)])
