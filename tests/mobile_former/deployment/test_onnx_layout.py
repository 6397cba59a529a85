"""Channel padding in ONNX graphs."""

import pytest
import torch

import mobile_former
from mobile_former.deployment.onnx_layout import pad_with_copies, pad_with_zeros, padded_maps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobile_former_26m", (True, False)),  # its Lite block has no residual
        ("mobile_former_96m", (True, True)),
        ("mobile_former_294m", (False, False)),  # its stem has 16 channels
        ("mobile_former_508m", (False, False)),
    ],
)
def test_narrow_maps_are_padded_as_far_as_the_blocks_accept_it(name, expected):
    assert padded_maps(mobile_former.create_model(name).backbone) == expected


def test_a_tensor_padded_with_copies_has_whole_copies_and_then_zeros():
    assert pad_with_copies(torch.tensor([1, 2, 3, 4, 5]), 16).tolist() == [1, 2, 3, 4, 5] * 3 + [0]
    assert pad_with_copies(torch.ones(12, 2)).sum(1).tolist() == [2] * 12 + [0] * 4
    assert pad_with_copies(torch.ones(16)).tolist() == [1] * 16


def test_zeros_are_appended_along_the_given_axis():
    tensor = torch.ones(2, 3, 1, 1)
    assert pad_with_zeros(tensor, 1, 5).sum((0, 2, 3)).tolist() == [2, 2, 2, 0, 0]
    assert pad_with_zeros(tensor, 0, 3).sum((1, 2, 3)).tolist() == [3, 3, 0]
    assert pad_with_zeros(tensor, 0, 2) is tensor
