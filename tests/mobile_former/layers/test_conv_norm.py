import math

import pytest
import torch
import torch.nn.functional as F

from mobile_former.layers.conv_norm import ChannelShuffle, ConvNorm, channel_shuffle, depthwise


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_convolution_and_its_norm_by_their_formulas(kernel_size, stride):
    torch.manual_seed(0)
    layer = ConvNorm(4, 6, kernel_size=kernel_size, stride=stride, groups=2).double()
    assert layer.conv.bias is None
    x = torch.randn(3, 4, 5, 8).double()
    convolved = F.conv2d(x, layer.conv.weight, stride=stride, padding=kernel_size // 2, groups=2)
    mean, var = convolved.mean((0, 2, 3), keepdim=True), convolved.var((0, 2, 3), correction=0, keepdim=True)
    found = layer(x)  # in training: the statistics of the batch
    assert found.shape == (3, 6, math.ceil(5 / stride), math.ceil(8 / stride))
    torch.testing.assert_close(found, (convolved - mean) / (var + 1e-5).sqrt())


def test_weights_start_with_variance_2_over_kernel_area_and_output_channels():
    torch.manual_seed(0)
    weight = ConvNorm(64, 128, kernel_size=3).conv.weight
    assert abs(weight.std().item() / math.sqrt(2 / (9 * 128)) - 1) < 0.02


def test_a_depthwise_convolution_reads_one_channel_for_each_output():
    layer = depthwise(3, 2).eval()
    x = torch.zeros(1, 3, 4, 4)
    x[:, 1] = 1
    assert layer(x).abs().amax((0, 2, 3)).bool().tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_shuffle_transposes_groups_and_channels(groups):
    x = torch.arange(8.0)[None, :, None, None].expand(2, 8, 3, 3)
    expected = [group * 8 // groups + index for index in range(8 // groups) for group in range(groups)]
    assert ChannelShuffle(groups)(x)[0, :, 0, 0].tolist() == expected
    assert torch.equal(channel_shuffle(groups, enabled=False)(x), x)
