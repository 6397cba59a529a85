import pytest
import torch
import torch.nn.functional as F

from mobile_former.mobile import DownsamplingMobile, Lite, Mobile


def random(module):
    """The module in float64 evaluation, with weights and statistics far from their initial values."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5)
    return module.double().eval()


def conv_norm(part, x, *, stride=1, groups=1):
    """Convolution and BatchNorm from their parameters."""
    weight, norm = part.conv.weight, part.norm
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
    mean, var, scale, shift = (
        each[:, None, None] for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def activate(relu, x, token):
    """Shared dynamic ReLU."""
    theta = (relu.slopes(relu.reduce(token).relu()) + 3).clamp(0, 6) / 6
    first, second = (half[:, :, None, None] for half in theta.chunk(2, dim=1))
    return torch.maximum((2 * (first - 0.5) + 1) * x, 2 * (second - 0.5) * x)


def shuffled(x, groups):
    """Channels in the order of a shuffle: channel ``i`` of every group, then channel ``i + 1``."""
    count = x.shape[1] // groups
    return x[:, [group * count + index for index in range(count) for group in range(groups)]]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("out_channels", [8, 12])
def test_mobile_is_an_inverted_bottleneck(out_channels, groups):
    mobile = random(Mobile(8, out_channels, 3, 16, groups=groups))
    x, tokens = torch.randn(2, 8, 5, 6).double(), torch.randn(2, 3, 16).double()
    padding = torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    padding[0, :, 3:] = True
    with torch.no_grad():
        hidden = shuffled(conv_norm(mobile.expand, x, groups=groups), groups)
        hidden = activate(mobile.expand_relu, hidden, tokens[:, 0]) * ~padding
        hidden = activate(mobile.depthwise_relu, conv_norm(mobile.depthwise, hidden, groups=24), tokens[:, 0])
        expected = shuffled(conv_norm(mobile.project, hidden, groups=groups), groups)
        found = mobile(x, tokens, padding=padding)
        torch.testing.assert_close(found, expected + x if out_channels == 8 else expected)
        torch.testing.assert_close(found, mobile(x, tokens[:, 0], padding=padding))


@pytest.mark.parametrize("groups", [1, 4])
def test_downsampling_mobile_is_two_separable_convolutions(groups):
    mobile = random(DownsamplingMobile(8, 12, (6, 4), 16, groups=groups))
    x, tokens = torch.randn(2, 8, 5, 6).double(), torch.randn(2, 3, 16).double()
    padding, out_padding = torch.zeros(2, 1, 5, 6, dtype=torch.bool), torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    padding[0, :, 2:] = out_padding[0, :, 1:] = True
    with torch.no_grad():
        hidden = conv_norm(mobile.depthwise1, x * ~padding, stride=2, groups=8)
        hidden = activate(mobile.relu1, shuffled(hidden, 8) if groups > 1 else hidden, tokens[:, 0])
        half = conv_norm(mobile.project1, hidden, groups=groups)
        hidden = conv_norm(mobile.depthwise2, half * ~out_padding, groups=12)
        hidden = activate(mobile.relu2, shuffled(hidden, 12) if groups > 1 else hidden, tokens[:, 0])
        expected = half + conv_norm(mobile.project2, hidden, groups=groups)
        torch.testing.assert_close(mobile(x, tokens, padding=padding, out_padding=out_padding), expected)


@pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (12, 1), (8, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_lite_is_one_separable_convolution(out_channels, stride, groups):
    lite = random(Lite(8, out_channels, 3, stride, groups=groups))
    x = torch.randn(2, 8, 5, 6).double()
    with torch.no_grad():
        hidden = conv_norm(lite.depthwise, x, stride=stride, groups=8).clamp(0, 6)
        expected = conv_norm(lite.project, shuffled(hidden, 8) if groups > 1 else hidden, groups=groups)
        torch.testing.assert_close(lite(x), expected + x if (stride, out_channels) == (1, 8) else expected)
