import copy
import pickle

import pytest
import torch

from mobile_former.deployment.mobile import Depthwise
from mobile_former.layers.conv_norm import depthwise
from mobile_former.layers.dynamic_relu import LARGE


def _trained(expansion, stride):
    layer = depthwise(12, expansion, stride).eval()
    for name in ("running_mean", "weight", "bias"):
        torch.nn.init.normal_(getattr(layer.norm, name))
    torch.nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    return layer


@pytest.mark.parametrize("size", [(9, 8), (150, 151)], ids=["small", "large"])
@pytest.mark.parametrize("expansion", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gives_the_channels_of_the_trained_layer_in_its_own_order(stride, expansion, size):
    torch.manual_seed(0)
    layer = _trained(expansion, stride)
    deployed = Depthwise(layer, gain=2)
    x = torch.randn(1, 12, *size).contiguous(memory_format=torch.channels_last)
    assert (x.numel() > LARGE) == (size == (150, 151))
    expected = 2 * layer(x)[:, deployed.order]
    torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)  # autograd records the operations
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)
        for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
            twin.weight.mul_(0.5)
            twin.bias.mul_(0.5)
            torch.testing.assert_close(twin(x), 0.5 * expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(deployed.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(deployed.float()(x).sum(), deployed.weight)[0]).all()
