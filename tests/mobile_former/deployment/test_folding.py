"""Each folding function against the computation that it replaces."""

import pytest
import torch
from torch import nn

from mobile_former.deployment.folding import (
    fold_features_norm,
    fold_norm,
    inverse,
    merged,
    scaled,
    shifted,
    shuffle_order,
    whole,
    with_shift,
)
from mobile_former.layers.conv_norm import ChannelShuffle, ConvNorm


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def randomise(norm):
    """Give a BatchNorm other statistics and weights than it starts with."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()


@pytest.mark.parametrize(("kernel_size", "stride", "groups"), [(1, 1, 2), (3, 2, 4)])
def test_the_folded_norm_gives_the_same(kernel_size, stride, groups):
    layer = ConvNorm(4, 8, kernel_size=kernel_size, stride=stride, groups=groups).double()
    randomise(layer.norm)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(fold_norm(layer)(x), layer.eval()(x))


def test_the_folded_norm_of_the_features_gives_the_same():
    layer, norm = nn.Linear(5, 3).double(), nn.BatchNorm1d(3).double()
    randomise(norm)
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(fold_features_norm(layer, norm)(x), norm.eval()(layer(x)))


def test_merged_linears_concatenate_their_outputs():
    layers = [nn.Linear(4, 3), nn.Linear(4, 2)]
    x = torch.randn(6, 4)
    torch.testing.assert_close(merged(layers)(x), torch.cat([layer(x) for layer in layers], dim=1))


def test_a_scaled_linear_multiplies_its_output():
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    torch.testing.assert_close(scaled(layer, 0.25)(x), 0.25 * layer(x))
    torch.testing.assert_close(scaled(layer)(x), layer(x))


def test_a_grouped_convolution_made_whole_gives_the_same():
    conv = nn.Conv2d(8, 12, 1, groups=4, bias=False)
    x = torch.randn(2, 8, 5, 3)
    torch.testing.assert_close(torch.einsum("oc,bchw->bohw", whole(conv.weight, conv.groups), x), conv(x))


def test_the_order_of_a_shuffle_is_that_of_its_output():
    assert shuffle_order(ChannelShuffle(2), 6).tolist() == [0, 3, 1, 4, 2, 5]
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(x[:, shuffle_order(ChannelShuffle(4), 12)], ChannelShuffle(4)(x))
    for absent in (None, nn.Identity()):
        assert shuffle_order(absent, 4).tolist() == [0, 1, 2, 3]


def test_an_order_and_its_inverse_cancel():
    order = torch.randperm(9)
    assert order[inverse(order)].tolist() == list(range(9))


def test_a_shifted_linear_takes_the_shifted_input():
    layer, x, shift = nn.Linear(4, 3).double(), torch.randn(6, 4).double(), torch.randn(4).double()
    torch.testing.assert_close(shifted(layer, shift)(x + shift), layer(x))


def test_a_norm_with_shift_adds_it_to_its_output():
    norm, x, shift = nn.LayerNorm(4, eps=1e-3).double(), torch.randn(6, 4).double(), torch.randn(4).double()
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    torch.testing.assert_close(with_shift(norm, shift)(x), norm(x) + shift)
    torch.testing.assert_close(with_shift(norm)(x), norm(x))
